"""`siprec-bridge serve`."""

import asyncio
import os

from siprec_bridge.cli.arguments import ConfigFile
from siprec_bridge.settings import from_environment
from siprec_bridge.telemetry import configure_logs


def serve(config: ConfigFile = None) -> None:
    """Run the bridge until SIGTERM."""
    from siprec_bridge.serving import serve as run

    settings, options = from_environment(config)
    configure_logs(settings.log_level, settings.log_format)
    # What is said, and who said it, is for our own user and group. It never grants more.
    os.umask(os.umask(0o077) | 0o007)
    asyncio.run(run(settings, options))
