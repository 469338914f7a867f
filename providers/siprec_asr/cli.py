"""`siprec-asr`: start the server; settings are environment variables."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from siprec_asr import __version__
from siprec_asr.errors import ConfigurationError
from siprec_asr.settings import PREFIX, Settings, default_socket, load


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit code 0, 1 when it cannot start, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        "siprec-asr",
        description="Keeps Whisper models loaded and serves them over a Unix socket, OpenAI's HTTP "
        "API, WebSocket and Wyoming.",
        epilog="settings (environment):\n"
        + "\n".join(
            f"  {PREFIX}{name.upper():20} {field.description}"
            for name, field in Settings.model_fields.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"siprec-asr {__version__}")
    parser.add_argument("--check", action="store_true", help="check settings and device, then end")
    arguments = parser.parse_args(argv)
    try:
        settings = load(os.environ)
        return asyncio.run(_serve(settings, check=arguments.check))
    except ConfigurationError as error:
        print(f"siprec-asr: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ("ctranslate2", "faster_whisper", "wyoming"):
            raise
        print(
            f"siprec-asr: {error.name} is missing: pip install 'siprec-bridge[asr]'",
            file=sys.stderr,
        )
        return 1


async def _serve(settings: Settings, *, check: bool) -> int:
    import structlog
    from faster_whisper.utils import available_models

    from siprec_asr.device import detect_device
    from siprec_asr.live import silero_speech
    from siprec_asr.logs import configure_logs
    from siprec_asr.models import ModelShelf
    from siprec_asr.server import AsrServer

    configure_logs(settings.log_level, settings.log_format)
    log = structlog.get_logger()
    device = detect_device(settings.device, settings.compute_type, settings.device_index)
    log.info(
        "device.chosen", device=device.name, compute_type=device.compute_type, reason=device.reason
    )
    shelf = ModelShelf(settings, device, available_models)
    path = settings.socket or default_socket(os.environ)
    if check:
        print(f"{device.name}, {device.compute_type} ({device.reason}); models: {shelf.names()}")
        return 0
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = AsrServer(settings, shelf, silero_speech, socket_path=path)
    starting = asyncio.create_task(server.start())
    told = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await told
    finally:
        starting.cancel()
        clean = await server.stop()
        if not clean or (not starting.done() and settings.preload):
            # A thread inside CTranslate2 cannot be stopped, and Python would wait for it.
            sys.stderr.flush()
            os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
