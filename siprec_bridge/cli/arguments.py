"""Arguments that several commands take."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; the environment outranks it"),
]
Limit = Annotated[int, typer.Option(help="rows to show at most", min=1, max=10_000)]
SessionId = Annotated[str, typer.Argument(help="id of the session")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Since = Annotated[datetime | None, typer.Option("--from", help="started then (UTC) or later")]
Until = Annotated[datetime | None, typer.Option("--to", help="started before then (UTC)")]
Reason = Annotated[str | None, typer.Option(help="why, for the audit")]
By = Annotated[str | None, typer.Option(help="who asks for it, for the audit")]
DoIt = Annotated[bool, typer.Option("--yes", help="do it; else it is only shown what would go")]
