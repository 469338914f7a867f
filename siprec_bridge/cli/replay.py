"""`siprec-bridge replay`: a capture recorded as if it came in live."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from siprec_bridge.cli.arguments import AsJson
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.telemetry import configure_logs


def replay(
    file: Annotated[Path, typer.Argument(help="capture (pcap, pcapng) of SIP and RTP")],
    out: Annotated[
        Path | None,
        typer.Option(help="folder for what was recorded, new or empty; ./replay-NAME if not said"),
    ] = None,
    srs: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST[:PORT] whose calls are recording sessions, whatever they look like"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record the calls of a capture as if they came in live, and tell what came of it."""
    from siprec_bridge.replay import (
        REPORT,
        Capture,
        ReplayFailed,
        UnreadableCapture,
        report_lines,
    )
    from siprec_bridge.replay import replay as run

    folder = out or Path(f"replay-{file.stem}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"--out {folder}", "is there already and not an empty folder")
    try:
        Capture(file)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "bridge.log").open("w") as logs:
            configure_logs("info", "json", logs)
            try:
                report = asyncio.run(run(file, folder, srs or ()))
            finally:
                configure_logs("error", "console")
    except UnreadableCapture as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (ReplayFailed, OSError) as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(REPORT.dump_json(report, indent=1).decode())
    else:
        for line in report_lines(report):
            print(line)
    raise typer.Exit(0 if report.ok else 1)
