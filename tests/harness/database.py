"""A database for one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from siprec_bridge.store import Database


@asynccontextmanager
async def opened(url: str, wait: float = 0.0, node: str | None = None) -> AsyncIterator[Database]:
    database = Database(url, wait=wait, node=node)
    await database.start()
    try:
        yield database
    finally:
        await database.stop()
