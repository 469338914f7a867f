"""`siprec-bridge archive`: what became of recordings after the call."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from siprec_bridge.cli.arguments import AsJson, ConfigFile, Limit, SessionId
from siprec_bridge.cli.database import node_here, refuse, with_database
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.store import Database, DepositBacklog, DepositRow, deposits
from siprec_bridge.store.deposits import DepositState

app = typer.Typer(help="Recordings in the object store, and encrypted.", no_args_is_help=True)


@app.command("list")
def archive_list(
    state: Annotated[
        DepositState | None, typer.Option(help="only pending, kept, done or deleting ones")
    ] = None,
    failing: Annotated[bool, typer.Option("--failing", help="only what failed last")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List what is to be archived or encrypted, or was; oldest first."""
    settings, _ = from_environment(config)

    def find(connection: Connection) -> tuple[list[DepositRow], DepositBacklog]:
        rows = deposits.listing(connection, limit, state=state, failing=failing)
        return rows, deposits.backlog(connection)

    rows, backlog = with_database(settings, lambda store: store.read(find))
    if as_json:
        shown = [
            {name: value for name, value in asdict(row).items() if name != "manifest"}
            for row in rows
        ]
        print(json.dumps(shown, default=str, indent=1))
        return
    for row in rows:
        print(f"{row.session_id}  {row.state:<8}  {_condition(row)}")
    print(
        f"{backlog.pending} pending ({backlog.octets:,} octets), {backlog.deleting} to be deleted "
        f"from stores, {backlog.failing} failing"
    )


def _condition(row: DepositRow) -> str:
    if row.reason is not None and row.state == "done":  # nothing failed, and nothing is tried again
        return row.reason
    if row.reason is not None:
        return f"failed {row.attempts} times, again {row.not_before:%H:%M:%S} UTC: {row.reason}"
    said = []
    if row.stored_at is not None:
        said.append(f"in {row.place}/{row.prefix} since {row.stored_at:%Y-%m-%d %H:%M:%S}")
    if row.sealed_at is not None:
        said.append("encrypted" if row.plain_gone_at is not None else "encrypted, plain here")
    if row.local_gone_at is not None:
        said.append("not here")
    return ", ".join(said)


@app.command("push")
def archive_push(
    session: Annotated[str | None, typer.Argument(help="id of a session")] = None,
    every: Annotated[bool, typer.Option("--all", help="all whose latest try failed")] = False,
    config: ConfigFile = None,
) -> None:
    """Try at once what failed; of a session that is archived, take its files there anew.

    A running bridge does it within seconds.
    """
    if (session is None) == (not every):
        raise ConfigurationError("archive push", "name one session, or say --all")
    settings, _ = from_environment(config)
    again = partial(deposits.again, now=datetime.now(UTC), session_id=session)
    count = with_database(settings, lambda store: store.write(again))
    if session is not None and not count:
        refuse(f"{session} is not to be archived, or its files are not here any more")
    print(f"{count} to be tried")


@app.command("fetch")
def archive_fetch(
    session: SessionId,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for a copy; not said: where they were recorded, as before"),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Bring a session's files back from the archive, proven, as they are kept there.

    Back in their place they can be transcribed again, and go after ARCHIVE_KEEP_LOCAL.
    """
    from siprec_bridge.recording import NotInStore, Stores, fetch

    settings, _ = from_environment(config)

    async def bring(store: Database) -> list[Path]:
        return await fetch(
            store,
            Stores(None, settings.archive_options),
            session,
            out=out,
            keep_local=settings.archive_keep_local,
            clock=lambda: datetime.now(UTC),
            node=node_here(settings, store),
        )

    try:
        made = with_database(settings, bring)
    except (LookupError, NotInStore, OSError) as error:
        refuse(str(error))
    for path in made:
        print(path)
