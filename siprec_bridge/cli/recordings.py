"""`siprec-bridge recordings`: the audio files."""

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated

import typer

from siprec_bridge.cli.arguments import ConfigFile
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.settings import from_environment
from siprec_bridge.store import (
    Database,
    SessionRow,
    recordings,
)

_PAGE = 500  # rows of the database at once  # rows of the database at once

app = typer.Typer(help="Audio files of sessions.", no_args_is_help=True)


@app.command("verify")
def recordings_verify(
    session: Annotated[str | None, typer.Argument(help="id of a session; none: all")] = None,
    config: ConfigFile = None,
) -> None:
    """Compare finished audio files with the checksums that were noted when they were written.

    Exit code 1: a file is gone, or not what was written.
    """
    from siprec_bridge.recording.integrity import verify

    settings, _ = from_environment(config)
    files = octets = compared = unsaid = bad = 0
    for row in with_database(settings, partial(_rows_of, session=session)):
        found = verify(row)
        files, octets = files + found.files, octets + found.octets
        compared += found.unsaid is None
        unsaid += found.unsaid is not None
        bad += bool(found.troubles)
        for trouble in found.troubles:
            print(f"{found.session_id}  {trouble}")
        if session is not None and found.unsaid is not None:
            refuse(f"{session} cannot be verified: {found.unsaid}")
    left = f"; {unsaid} sessions with nothing to compare" if unsaid else ""
    print(f"{compared} sessions, {files} files, {octets:,} octets: {bad} sessions damaged{left}")
    if bad:
        raise typer.Exit(1)


async def _rows_of(store: Database, session: str | None) -> list[SessionRow]:
    """One session, or all of them."""
    if session is not None:
        row = await store.read(partial(recordings.get, session_id=session))
        if row is None:
            refuse(f"there is no session {session}")
        return [row]
    rows: list[SessionRow] = []
    before: tuple[datetime, str] | None = None
    while page := await store.read(partial(recordings.listing, limit=_PAGE, before=before)):
        # The documents of years are not held all at once.
        rows += [replace(row, document="") for row in page]
        before = page[-1].started_at, page[-1].id
    return rows
