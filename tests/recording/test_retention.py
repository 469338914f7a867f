"""What is deleted when: by age, for want of room, on request; and what never is."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from structlog.testing import capture_logs

from siprec_bridge.recording import InUse, Keep, Retention, UnderHold
from siprec_bridge.recording.retention import Elsewhere
from siprec_bridge.store import (
    Database,
    Event,
    JobRow,
    SessionRow,
    deposits,
    jobs,
    outbox,
    recordings,
    schema,
    transcripts,
)
from siprec_bridge.store.jobs import JobState
from siprec_bridge.telemetry import Metrics

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
SIZE = 1000


@dataclass
class Cellar:
    """A store with recordings of some days."""

    folder: Path
    database: Database
    metrics: Metrics

    async def lay_down(
        self, id: str, days: int, *, job: JobState = "done", state: str = "finished"
    ) -> None:
        """A session that ended so many days ago, with a file and an event that all sinks have."""
        folder = self.folder / id
        folder.mkdir()
        (folder / "1.wav").write_bytes(bytes(SIZE))
        at = NOW - days * DAY
        row = SessionRow(
            id, f"{id}@pbx", "finished" if state == "finished" else "recording", at, "udp:h:1",
            str(folder), "{}", ended_at=at if state == "finished" else None,
        )  # fmt: skip
        made = JobRow(
            id=f"{id}.1", session_id=id, vendor="whisper", model="base", audio_seconds=1.0,
            created_at=at, state=job,
        )  # fmt: skip

        def store(connection: Connection) -> None:
            recordings.insert(connection, row)
            jobs.insert(connection, made)
            transcripts.save(connection, id, 1, f"{id}.1", "hello", "{}", at)
            outbox.append(connection, [Event(f"e-{id}", id, "session.ended", at, "{}")], [])

        await self.database.write(store)

    def retention(self, keep: Keep) -> Retention:
        return Retention(self.database, self.metrics, keep, clock=lambda: NOW)

    async def left(self) -> dict[str, bool]:
        """Each session that is still known, and whether its audio is there."""
        rows = await self.database.read(partial(recordings.listing, limit=100))
        for row in rows:
            assert (row.audio_deleted_at is None) is Path(row.folder).exists()
        return {row.id: row.audio_deleted_at is None for row in rows}


@asynccontextmanager
async def cellar(folder: Path) -> AsyncIterator[Cellar]:
    database = Database(f"sqlite:///{folder / 'a.db'}")
    await database.start()
    try:
        yield Cellar(folder, database, Metrics())
    finally:
        await database.stop()


async def test_audio_and_sessions_go_at_their_ages_and_what_is_younger_stays(
    tmp_path: Path,
) -> None:
    async with cellar(tmp_path) as here:
        for days in (1, 40, 100):
            await here.lay_down(f"s{days}", days)

        await here.retention(Keep(audio=30 * DAY, sessions=90 * DAY)).go_round()

        assert await here.left() == {"s1": True, "s40": False}
        found = await here.database.read(partial(transcripts.get, session_id="s40"))
        assert found is not None
        assert await here.database.read(partial(transcripts.get, session_id="s100")) is None
        assert not (tmp_path / "s100").exists()
        told = [one.session_id for one in await here.database.read(
            partial(outbox.since, seq=0, limit=10)
        )]  # fmt: skip
        assert told == ["s1", "s40"]
    rendered = here.metrics.render().decode()
    assert 'siprec_retention_deleted_total{what="audio"} 1.0' in rendered
    assert 'siprec_retention_deleted_total{what="session"} 1.0' in rendered
    assert f"siprec_recordings_bytes {SIZE}.0" in rendered


async def test_nothing_goes_unless_it_is_said(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        await here.lay_down("s9000", 9000)

        await here.retention(Keep()).go_round()

        assert await here.left() == {"s9000": True}


@pytest.mark.parametrize("job", ["queued", "running"])
async def test_audio_that_waits_for_its_transcription_is_never_too_old(
    tmp_path: Path, job: JobState
) -> None:
    async with cellar(tmp_path) as here:
        await here.lay_down("waits", 100, job=job)
        await here.lay_down("lives", 100, state="recording")

        await here.retention(Keep(audio=DAY, audio_size=1, sessions=DAY)).go_round()
        with pytest.raises(InUse):
            await here.retention(Keep()).delete("waits")
        with pytest.raises(InUse):
            await here.retention(Keep()).delete("lives")

        assert await here.left() == {"waits": True, "lives": True}


async def test_where_the_recogniser_is_switched_off_recordings_go_at_their_age_or_are_deleted(
    tmp_path: Path,
) -> None:
    async with cellar(tmp_path) as here:
        for days in (1, 2, 40, 100):
            await here.lay_down(f"s{days}", days, job="off")

        await here.retention(Keep(audio=30 * DAY, sessions=90 * DAY)).go_round()
        assert await here.retention(Keep()).delete("s2")

        assert await here.left() == {"s1": True, "s40": False}
        jobs_left = await here.database.read(partial(jobs.listing, limit=10))
        assert [row.id for row in jobs_left] == ["s1.1"]


async def test_for_want_of_room_goes_what_was_heard_before_what_nobody_is_to_hear(
    tmp_path: Path,
) -> None:
    async with cellar(tmp_path) as here:
        for days in (4, 5):
            await here.lay_down(f"off{days}", days, job="off")
        for days in (1, 2):
            await here.lay_down(f"s{days}", days)
        await here.lay_down("waits", 9, job="queued")

        await here.retention(Keep(audio_size=2 * SIZE)).go_round()

        assert await here.left() == {
            "s1": False, "s2": False, "off4": True, "off5": False, "waits": True,
        }  # fmt: skip


async def test_for_want_of_room_the_oldest_goes_that_has_been_heard(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        for days in (1, 2, 3, 5):
            await here.lay_down(f"s{days}", days)
        await here.lay_down("failed", 4, job="failed")

        await here.retention(Keep(audio_size=3 * SIZE)).go_round()

        assert await here.left() == {
            "s1": True, "s2": True, "s3": False, "failed": True, "s5": False,
        }  # fmt: skip


async def test_audio_that_was_not_to_be_found_is_not_deleted_for_want_of_room_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with cellar(tmp_path) as here:
        for days in (1, 3):
            await here.lay_down(f"s{days}", days)
        await here.database.write(
            partial(recordings.update, session_id="s3", state="failed", audio=None)
        )

        await here.retention(Keep(audio_size=1)).go_round()

        assert await here.left() == {"s1": False, "s3": True}


async def test_what_is_held_stays_until_it_is_released(tmp_path: Path) -> None:
    keep = Keep(audio=DAY, audio_size=1, sessions=DAY)
    async with cellar(tmp_path) as here:
        await here.lay_down("held", 100)
        await here.database.write(
            partial(recordings.update, session_id="held", held=json.dumps({"by": "court"}))
        )

        await here.retention(keep).go_round()
        with pytest.raises(UnderHold):
            await here.retention(keep).delete("held")
        kept = await here.left()
        await here.database.write(partial(recordings.update, session_id="held", held=None))
        await here.retention(keep).go_round()

        assert (kept, await here.left()) == ({"held": True}, {})


async def test_a_round_that_was_cut_off_after_the_files_is_finished_by_the_next(
    tmp_path: Path,
) -> None:
    async with cellar(tmp_path) as here:
        await here.lay_down("half", 100)
        (tmp_path / "half" / "1.wav").unlink()
        (tmp_path / "half").rmdir()

        await here.retention(Keep(audio=DAY)).go_round()

        assert await here.left() == {"half": False}


async def test_what_the_disk_does_not_let_go_holds_up_nothing_else_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def stubborn(folder: str) -> None:
        if Path(folder).name.startswith("stuck"):
            raise OSError(30, "Read-only file system", folder)
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", stubborn)
    with capture_logs() as lines:
        async with cellar(tmp_path) as here:
            for id, days in (("stuck1", 200), ("old", 199), ("stuck2", 60), ("aged", 50)):
                await here.lay_down(id, days)
            for days in (5, 4, 3):
                await here.lay_down(f"s{days}", days)
            keep = Keep(audio=30 * DAY, sessions=90 * DAY, audio_size=3 * SIZE)

            await here.retention(keep).go_round()
            with pytest.raises(OSError, match="Read-only file system"):
                await here.retention(keep).delete("stuck1", also=lambda _: pytest.fail("it is not"))
            left = await here.left()
            monkeypatch.setattr(shutil, "rmtree", remove)
            deleted = await here.retention(keep).delete("stuck1")

    assert left == {
        "stuck1": True,
        "stuck2": True,
        "aged": False,
        "s5": False,
        "s4": False,
        "s3": True,
    }
    assert {one["session_id"] for one in lines if one["event"] == "retention.not_deleted"} == {
        "stuck1", "stuck2",
    }  # fmt: skip
    assert deleted


async def test_on_request_a_session_goes_with_what_belongs_to_it_or_not_at_all(
    tmp_path: Path,
) -> None:
    done: list[str] = []
    async with cellar(tmp_path) as here:
        for id in ("mine", "theirs", "changing"):
            await here.lay_down(id, 1)
        node = sa.update(schema.sessions).where(schema.sessions.c.id == "theirs").values(node="b")
        await here.database.write(lambda connection: connection.execute(node))
        lend = partial(
            deposits.lend, session_id="changing", runner=f"{deposits.ALTERING}x", now=NOW
        )
        await here.database.write(lend)
        keeper = Retention(here.database, here.metrics, Keep(), clock=lambda: NOW, node="a")

        with pytest.raises(Elsewhere, match="b"):
            await keeper.delete("theirs", also=lambda _: done.append("theirs"))
        with pytest.raises(InUse):
            await keeper.delete("changing", also=lambda _: done.append("changing"))
        unknown = await keeper.delete("unknown", also=lambda _: done.append("unknown"))
        mine = await keeper.delete("mine", also=lambda _: done.append("mine"))

        assert await here.left() == {"theirs": True, "changing": True}
    assert (unknown, mine, done) == (False, True, ["mine"])


async def test_more_than_one_batch_goes_in_one_round(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        for number in range(230):
            await here.lay_down(f"s{number}", 100)

        await here.retention(Keep(audio=DAY)).go_round()

        assert set((await here.left()).values()) == {False}


async def test_old_events_go_once_every_sink_has_them(tmp_path: Path) -> None:
    async with cellar(tmp_path) as here:
        event = partial(Event, session_id="s", type="session.ended", at=NOW, body="{}")
        await here.database.write(partial(outbox.append, new_events=[event("had")], sinks=[]))
        await here.database.write(
            partial(outbox.append, new_events=[event("awaited")], sinks=["amqp"])
        )
        later = datetime.now(UTC) + 2 * DAY
        retention = Retention(here.database, here.metrics, Keep(events=DAY), clock=lambda: later)

        await retention.go_round()
        left = await here.database.read(partial(outbox.since, seq=0, limit=10))

    assert [one.id for one in left] == ["awaited"]
