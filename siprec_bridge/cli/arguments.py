"""Arguments that several commands take."""

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
