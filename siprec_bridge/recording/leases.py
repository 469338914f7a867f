"""A lease on sessions' files is kept as long as somebody is at them, be it for hours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial

from siprec_bridge.store import Database, StoreError, deposits

_RENEW_S = 20.0


@asynccontextmanager
async def renewed(
    database: Database, ids: Collection[str], runner: str, clock: Callable[[], datetime]
) -> AsyncIterator[None]:
    """Have the leases on these sessions go on meanwhile; whose they are by now stay theirs."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(StoreError):
                await database.write(partial(deposits.renew, ids=ids, now=clock(), node=runner))

    renewal = asyncio.create_task(renew(), name="renewal of leases")
    try:
        yield
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)
