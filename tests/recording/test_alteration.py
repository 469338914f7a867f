"""Two that change one session's audio at once: one of them is told, and the checksums fit."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from recording.test_erasure import BOB, CAROL, START, WHOM, desk, loud
from siprec_bridge.media import FinishedAudio, silence
from siprec_bridge.recording import Custodian, Identifier, Keys, Safekeeping, Stores
from siprec_bridge.recording.alteration import Alteration, Altered, clear_up
from siprec_bridge.recording.integrity import verify
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.retention import InUse
from siprec_bridge.store import Database, SessionRow, deposits, recordings, schema

TO_BOB = Identifier.parse("tel:+4930901820")


def silenced(row: SessionRow, label: str) -> Callable[[Path], FinishedAudio]:
    audio = AUDIO.validate_json(row.audio or "")
    return lambda folder: silence(folder, audio, {label: [(0.0, 10.0)]})


def wish(row: SessionRow, label: str) -> Alteration:
    return Alteration(silenced(row, label), frozenset({label}), needed=True, originals=True)


@pytest.mark.parametrize("entered", [False, True], ids=["no deposit", "deposit"])
async def test_who_comes_second_is_told_and_changes_nothing(tmp_path: Path, entered: bool) -> None:
    async with desk(tmp_path) as here:
        if entered:
            await here.keep()
        row = await here.row("s-1")
        assert row is not None

        async with here.eraser._audio.altered(row, wish(row, "0"), Keys()) as first:
            with pytest.raises(InUse):
                async with here.eraser._audio.altered(row, wish(row, "1"), Keys()):
                    pass
            await _commit(here.database, row, first)
        # What it would go by is what was there before the first one.
        with pytest.raises(InUse):
            async with here.eraser._audio.altered(row, wish(row, "1"), Keys()):
                pass
        row = await here.row("s-1")
        kept = await here.database.read(lambda c: deposits.get(c, "s-1"))

    assert row is not None
    assert verify(row).troubles == ()
    assert (loud(Path(row.folder) / "s-1-0.wav"), len(loud(Path(row.folder) / "s-1-1.wav"))) == (
        [],
        10,
    )
    assert (kept is not None) == entered


async def test_two_people_erased_at_once_are_both_gone_and_the_checksums_fit(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        both = await asyncio.gather(
            here.eraser.erase(WHOM, by=None, reason=None),
            here.eraser.erase(TO_BOB, by=None, reason=None),
        )
        again = [
            await here.eraser.erase(one, by=None, reason=None)
            for one, (found,) in zip((WHOM, TO_BOB), both, strict=True)
            if found.outcome == "in_use"
        ]
        row = await here.row("s-1")

    assert sorted(found.outcome for (found,) in both) in (["erased"] * 2, ["erased", "in_use"])
    assert [found.outcome for (found,) in again] == ["erased"] * len(again)
    assert row is not None
    assert verify(row).troubles == ()
    assert loud(Path(row.folder) / "s-1-stereo.wav") == []
    assert CAROL.id not in row.document
    assert BOB.id not in row.document
    assert {"erased-1", "erased-2"} <= set(row.document.split('"'))


async def test_what_is_entered_to_be_kept_meanwhile_is_kept_as_it_is_afterwards(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        keeping, stores = Safekeeping(store=here.store), Stores(here.store, {})
        custodian = Custodian(
            here.database, here.metrics, keeping, stores, clock=lambda: START + timedelta(hours=1)
        )

        async with here.eraser._audio.altered(row, wish(row, "0"), Keys()) as altered:
            await custodian.go_round()
            meanwhile = await here.database.read(lambda c: deposits.get(c, "s-1"))
            await _commit(here.database, row, altered)
        kept = await here.keep()
        row = await here.row("s-1")

    assert meanwhile is not None
    assert (meanwhile.state, meanwhile.stored_at) == ("pending", None)
    assert row is not None
    assert (kept.state, verify(row, kept).troubles) == ("done", ())


async def test_of_one_that_was_killed_nothing_stays_in_anybodys_way(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.database.write(lambda c: deposits.lend(c, "s-1", "altering-dead", START))
        seen = await here.database.read(
            lambda c: (deposits.get(c, "s-1"), deposits.listing(c, 9), deposits.older(c, 9))
        )
        await clear_up(
            here.database, clock=lambda: START + timedelta(minutes=2), node=None, shared=True
        )
        row = await here.row("s-1")
        assert row is not None

        async with here.eraser._audio.altered(row, wish(row, "0"), Keys()) as altered:
            assert altered.treatment == "silenced"
        left = await here.database.read(
            lambda c: c.execute(schema.deposits.select()).mappings().all()
        )

    assert seen == (None, [], [("s-1", None)])
    assert left == []


async def _commit(database: Database, row: SessionRow, altered: Altered) -> None:
    assert altered.audio is not None
    audio = AUDIO.dump_json(altered.audio).decode()

    def store(connection: Connection) -> None:
        recordings.update(connection, row.id, audio=audio)
        altered.note(connection)

    await database.write(store)


async def test_a_lease_that_a_wrong_clock_gave_ends_as_others_do(tmp_path: Path) -> None:
    a_day_ahead = START + timedelta(days=1)
    async with desk(tmp_path) as here:
        await here.database.write(lambda c: deposits.lend(c, "s-1", "altering-dead", a_day_ahead))
        for minutes in (0, 2):  # the bridge starts, and looks again
            now = START + timedelta(minutes=minutes)
            await clear_up(here.database, clock=lambda: now, node=None, shared=True)  # noqa: B023
        left = await here.database.read(
            lambda c: c.execute(schema.deposits.select()).mappings().all()
        )

    assert left == []
