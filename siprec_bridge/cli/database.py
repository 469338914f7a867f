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
    """Open the database, use it, and close it."""

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
