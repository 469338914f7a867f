"""A custodian that goes on for days: what was there before, what takes long, and what others have."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from recording.test_safekeeping import NOW, House, house
from siprec_bridge.recording import Custodian, Safekeeping, custodian
from siprec_bridge.store import DepositRow, deposits, schema


@asynccontextmanager
async def at_work(here: House, keeping: Safekeeping) -> AsyncIterator[None]:
    """A custodian that runs."""
    works = asyncio.create_task(
        Custodian(here.database, here.metrics, keeping, here.stores, clock=lambda: here.now).run()
    )
    try:
        yield
    finally:
        works.cancel()
        await asyncio.gather(works, return_exceptions=True)


async def until(here: House, wanted: Callable[[DepositRow], object]) -> DepositRow:
    async with asyncio.timeout(20):
        while not wanted(row := await here.deposit()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return row


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renews each time, and looks each 20 ms."""
    monkeypatch.setattr(custodian, "_RENEW_S", 0.0)
    monkeypatch.setattr(custodian, "_PAUSE_S", 0.02)


async def test_what_takes_longer_than_a_lease_stays_ours(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.record()
        here.store.waits = threading.Event()
        async with at_work(here, Safekeeping(store=here.store)):
            first = await until(here, lambda row: row.manifest is not None)
            for _ in range(3):
                here.now += deposits.LEASE - timedelta(seconds=1)
                await until(here, lambda row: row.lease_until == here.now + deposits.LEASE)
            here.store.waits.set()
            await until(here, lambda row: row.state == "done")

    assert first.lease_until == NOW + deposits.LEASE
    assert here.store.puts.count("manifest.json") == 1


async def test_what_another_has_taken_is_left_to_him_and_told_of(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.record()
        here.store.waits = threading.Event()
        with capture_logs() as logs:
            async with at_work(here, Safekeeping(store=here.store)):
                await until(here, lambda row: row.manifest is not None)
                taken = schema.deposits.update().values(
                    runner="other", lease_until=here.now + timedelta(days=1)
                )
                await here.database.write(lambda connection: connection.execute(taken).rowcount)
                async with asyncio.timeout(20):
                    while not any(one["event"] == "archive.lease_lost" for one in logs):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                here.store.waits.set()
        row = await here.deposit()

    (told,) = (one for one in logs if one["event"] == "archive.lease_lost")
    assert told["session_id"] == "s1"
    assert (row.state, row.runner) == ("pending", "other")
    assert "manifest.json" not in here.store.puts


@pytest.mark.parametrize("wanted", [True, False])
async def test_recordings_of_before_are_entered_where_anybody_wants_them_kept(
    tmp_path: Path, wanted: bool
) -> None:
    async with house(tmp_path) as here:
        await here.record()
        await here.database.write(lambda connection: deposits.forget(connection, ["s1"]))
        await here.record("s2")  # once this one is dealt with, so is that
        keeping = Safekeeping(store=here.store) if wanted else Safekeeping()
        async with at_work(here, keeping):
            async with asyncio.timeout(20):
                while (await here.deposit("s2")).state != "done":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        rows = await here.database.read(lambda connection: deposits.listing(connection, 9))

    assert ("s1" in {row.session_id for row in rows}) is wanted
