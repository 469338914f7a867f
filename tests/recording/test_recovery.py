"""After a crash: sessions are finished side by side, whatever is wrong with some of them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.desk import Office, office
from harness.disk import fill, small_disk
from harness.rtp import packets, tone
from siprec_bridge.media import FinishedAudio
from siprec_bridge.receiver.spool import RTP, SpoolHeader, SpoolWriter, _record
from siprec_bridge.recording import archive, left_behind, recover
from siprec_bridge.sdp import Codec
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import SessionRow, StoreError, outbox, recordings

AT = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def session(here: Office, id: str, document: str | None = None) -> SessionRow:
    folder = str(here.recordings / id)
    document = document or SessionDocument(session_id=id).model_dump_json()
    return SessionRow(id, f"{id}@pbx", "recording", AT, "udp:h:1", folder, document)


def spool(folder: Path) -> None:
    """A second of audio."""
    folder.mkdir(parents=True)
    codecs = (Codec(0, "PCMU", 8000),)
    header = SpoolHeader(f"{folder.name}-0", folder.name, 0, "1", codecs, int(AT.timestamp() * 1e9))
    writer = SpoolWriter(folder / f"{folder.name}-0.spool", header)
    writer.write(
        [
            _record(RTP, header.opened_ns + 20_000_000 * number, one)
            for number, one in enumerate(packets(tone(440, 1.0)))
        ]
    )
    writer.close()


async def test_a_session_that_cannot_be_finished_now_holds_up_no_other_and_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_FIRST_RETRY_S", 0.05)
    async with office(tmp_path, receiving=False) as here:
        rows = [
            session(here, "good"),
            session(here, "gone"),
            session(here, "unreadable"),
            session(here, "broken", document="no document"),
        ]
        for name in ("good", "broken"):
            spool(here.recordings / name)
        unreadable = here.recordings / "unreadable"
        unreadable.symlink_to("unreadable")  # a disk that answers, but not with what is on it

        def store(connection: Connection) -> None:
            for row in rows:
                recordings.insert(connection, row)

        await here.database.write(store)
        found = await left_behind(here.database)
        write, refused = here.database.write, [0]

        async def full_at_first(work: Callable[[Connection], object]) -> object:
            refused[0] += 1
            if refused[0] <= 4:
                raise StoreError("database or disk is full")
            return await write(work)

        monkeypatch.setattr(here.database, "write", full_at_first)
        recovery = asyncio.create_task(recover(found, here.archive, lambda: AT))

        async def states(*wanted: str) -> dict[str, str]:
            async with asyncio.timeout(20):
                while True:
                    listed = await here.database.read(partial(recordings.listing, limit=10))
                    now: dict[str, str] = {row.id: row.state for row in listed}
                    if tuple(now[row.id] for row in rows) == wanted or recovery.done():
                        return now
                    await asyncio.sleep(0.02)

        before = await states("finished", "failed", "recording", "recording")
        unreadable.unlink()
        spool(unreadable)
        after = await states("finished", "failed", "finished", "recording")
        await recovery
        told = await here.database.read(partial(outbox.since, seq=0, limit=10))

    assert list(before.values()).count("recording") == 2
    assert before["good"] == "finished"
    assert after == {
        "good": "finished", "gone": "failed", "unreadable": "finished", "broken": "recording",
    }  # fmt: skip
    assert sorted(one.session_id for one in told) == ["gone", "good", "unreadable"]
    assert {one.type for one in told} == {"session.ended"}
    assert (here.recordings / "broken" / "broken-0.spool").exists()


async def test_a_disk_that_stays_full_has_nothing_decoded_again_until_there_is_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(archive, "_LONGEST_RETRY_S", 0.02)
    with small_disk(tmp_path / "disk") as disk:
        async with office(tmp_path, receiving=False) as here:
            row = replace(session(here, "s"), folder=str(disk / "s"))
            spool(disk / "s")
            others = fill(disk)
            finisher = here.archive._finisher
            finish, begun = finisher.finish, [0]

            async def counted(*given: Any) -> FinishedAudio:
                begun[0] += 1
                return await finish(*given)

            monkeypatch.setattr(finisher, "finish", counted)
            await here.database.write(partial(recordings.insert, row=row))
            with capture_logs() as logs:
                recovery = asyncio.create_task(recover([row], here.archive, lambda: AT))

                async def complaints(more: int) -> None:
                    said = len(logs) + more
                    await eventually(lambda: len(logs) >= said, "complaints")

                await complaints(10)
                while_full = begun[0]
                fill(disk, leave=40_000)  # some, and not enough
                await eventually(lambda: begun[0] > while_full, "another try")
                await complaints(10)
                while_fuller = begun[0]
                others.unlink()
                await recovery
            (after,) = await here.database.read(partial(recordings.listing, limit=10))

    assert (while_full, while_fuller, begun[0]) == (1, 2, 3)
    assert {one["cause"] for one in logs if one["event"] == "session.not_archived"}
    assert after.state == "finished"


async def test_audio_that_was_not_to_be_found_is_finished_at_a_start_that_finds_it(
    tmp_path: Path,
) -> None:
    async with office(tmp_path, receiving=False) as here:
        await here.database.write(partial(recordings.insert, row=session(here, "s")))

        async def start() -> SessionRow:
            await recover(await left_behind(here.database), here.archive, lambda: AT)
            (row,) = await here.database.read(partial(recordings.listing, limit=10))
            return row

        unmounted = [await start(), await start()]
        spool(here.recordings / "s")
        mounted = [await start(), await start()]
        told = await here.database.read(partial(outbox.since, seq=0, limit=10))
        counted = [
            here.metrics.registry.get_sample_value(
                "siprec_sessions_assured_total", {"verdict": verdict}
            )
            for verdict in ("nothing", "complete", "incomplete")
        ]
        ended = [
            here.metrics.registry.get_sample_value("siprec_sessions_total", {"outcome": outcome})
            for outcome in ("failed", "recovered")
        ]

    assert [(one.state, one.assurance) for one in unmounted] == [("failed", "nothing")] * 2
    assert [one.state for one in mounted] == ["finished"] * 2
    assert [one.end_cause for one in mounted] == ["bridge_restarted"] * 2
    assert [one.type for one in told] == ["session.ended"]
    assert counted == [1.0, 0.0, 1.0]
    assert ended == [1.0, 0.0]
    assert (here.recordings / "s" / "s-0.wav").exists()


async def test_of_those_whose_audio_was_not_to_be_found_a_start_looks_for_the_newest_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "_MOST_FAILED", 2)
    async with office(tmp_path, receiving=False) as here:

        def store(connection: Connection) -> None:
            for number, state in enumerate(
                ("recording", "failed", "failed", "finished", "failed", "finishing")
            ):
                row = replace(session(here, f"s{number}"), started_at=AT + number * MINUTE)
                recordings.insert(connection, replace(row, state=state))  # type: ignore[arg-type]

        await here.database.write(store)
        found = await left_behind(here.database)

    assert [row.id for row in found] == ["s0", "s2", "s4", "s5"]
