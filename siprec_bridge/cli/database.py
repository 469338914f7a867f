"""The database, for a command that runs beside the bridge or without it."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import typer

from siprec_bridge.settings import Settings
from siprec_bridge.store import Database, node_id

T = TypeVar("T")


def with_database(settings: Settings, use: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """Open the database, use it, and close it. Exits where no bridge has made one."""
    # An empty one, made on the spot, would say that there are no sessions, and that nobody is to erase.
    file = settings.data_dir.absolute() / "siprec-bridge.db"
    if settings.database_url is None and not file.exists():
        refuse(
            f"there is no database {file}: give the settings of the bridge "
            "(DATA_DIR, --config, or the folder of its .env)"
        )

    async def run() -> T:
        store = Database(settings.database)
        await store.start()
        try:
            return await use(store)
        finally:
            await store.stop()

    return asyncio.run(run())


def node_here(settings: Settings, store: Database) -> str | None:
    """The node whose audio can be reached here; None: everybody's."""
    if not store.shared or settings.recordings_shared:
        return None
    return settings.node_id or node_id(settings.data_dir)


def refuse(why: str) -> NoReturn:
    """Say why not, and exit with 1."""
    print(f"siprec-bridge: {why}", file=sys.stderr)
    raise typer.Exit(1)
