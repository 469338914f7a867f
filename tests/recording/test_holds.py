"""A hold that is set in the last moment: it keeps the session as it is, or it is refused."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from recording.test_alteration import wish
from recording.test_erasure import START, WHOM, desk
from recording.test_retention import DAY, NOW, cellar
from siprec_bridge.recording import Keep, Keys, Retention, UnderHold
from siprec_bridge.store import deposits, recordings, retention
from siprec_bridge.store.schema import deposits as kept
from siprec_bridge.telemetry import Metrics


def hold(id: str, now: datetime = NOW) -> Callable[[Connection], bool]:
    return partial(retention.hold, session_id=id, held="{}", now=now)


async def test_what_is_being_deleted_cannot_be_held_any_more(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        await here.lay_down("s1", 1)
        taken = await here.database.write(
            partial(retention.take, ids=["s1"], runner=f"{deposits.DELETING}x", now=NOW)
        )

        with pytest.raises(retention.Going):
            await here.database.write(hold("s1"))
        row = await here.database.read(partial(recordings.get, session_id="s1"))
        # Whoever was at it has died: its lease ends.
        later = await here.database.write(hold("s1", NOW + timedelta(minutes=2)))

    assert taken == {"s1"}
    assert row is not None
    assert (row.held, later) == (None, True)


async def test_what_a_custodian_was_at_and_is_deleted_cannot_be_held_any_more(
    tmp_path: Path,
) -> None:
    async with cellar(tmp_path) as here:
        await here.lay_down("s1", 1)
        await here.database.write(partial(deposits.add, session_id="s1", node=None, at=NOW))
        claim = partial(deposits.claim, limit=1, now=NOW, node=None)
        (claimed,) = await here.database.write(claim)  # he encrypts it, nothing is in a store yet
        taken = await here.database.write(
            partial(retention.take, ids=["s1"], runner=f"{deposits.DELETING}x", now=NOW)
        )

        with pytest.raises(retention.Going):
            await here.database.write(hold("s1"))
        kept = await here.database.write(lambda c: deposits.note(c, claimed, None, state="done"))

    assert (taken, kept) == ({"s1"}, False)


async def test_what_takes_long_to_delete_cannot_be_held_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_bridge.recording.leases._RENEW_S", 0.02)
    begun, go_on, remove, now = threading.Event(), threading.Event(), shutil.rmtree, NOW

    def slowly(folder: str) -> None:
        begun.set()
        assert go_on.wait(20)
        remove(folder)

    async def leased_until() -> datetime:
        return await here.database.read(lambda c: c.scalars(sa.select(kept.c.lease_until)).one())

    monkeypatch.setattr(shutil, "rmtree", slowly)
    async with cellar(tmp_path) as here:
        await here.lay_down("s1", 1)
        keeper = Retention(here.database, Metrics(), Keep(), clock=lambda: now)
        deleting = asyncio.create_task(keeper.delete("s1"))
        try:
            assert await asyncio.to_thread(begun.wait, 20)
            now += timedelta(minutes=5)  # a share that is slow
            async with asyncio.timeout(10):
                while await leased_until() < now:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

            with pytest.raises(retention.Going):
                await here.database.write(hold("s1", now))
        finally:
            go_on.set()
            assert await deleting
        assert await here.left() == {}


async def test_what_is_held_since_it_was_found_to_be_too_old_stays(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        for id in ("s1", "s2"):
            await here.lay_down(id, 40)
        keeper = here.retention(Keep(sessions=DAY))
        rows = await here.database.read(partial(retention.ended, limit=9, before=NOW))
        await here.database.write(hold("s1"))

        deleted = await keeper._delete_sessions(rows, "age")

        assert deleted.gone == {"s2"}
        assert await here.left() == {"s1": True}
        with pytest.raises(UnderHold):
            await keeper.delete("s1")
        left = await here.database.read(partial(deposits.get, session_id="s1"))
    assert left is None


async def test_a_round_ends_also_where_somebody_works_at_all_that_is_due(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        await here.lay_down("s1", 40)
        lend = partial(deposits.lend, session_id="s1", runner=f"{deposits.ALTERING}x", now=NOW)
        await here.database.write(lend)

        async with asyncio.timeout(10):
            await here.retention(Keep(audio=DAY, sessions=DAY, audio_size=1)).go_round()

        assert await here.left() == {"s1": True}


async def test_what_is_being_changed_cannot_be_held_and_what_is_held_is_not_changed(
    tmp_path: Path,
) -> None:
    now = START + timedelta(hours=1)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        before = (Path(row.folder) / "s-1-0.wav").read_bytes()

        async with here.eraser._audio.altered(row, wish(row, "1"), Keys()):
            with pytest.raises(retention.Going):
                await here.database.write(hold("s-1", now))
        await here.database.write(hold("s-1", now))
        with pytest.raises(UnderHold):  # its caller looked before
            async with here.eraser._audio.altered(row, wish(row, "0"), Keys()):
                pass
        (found,) = await here.eraser.erase(WHOM, by=None, reason=None)

        assert found.outcome == "held"
        assert (Path(row.folder) / "s-1-0.wav").read_bytes() == before
