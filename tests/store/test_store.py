"""The database: what is promised is durable, and each work stands alone."""

import asyncio
import os
import signal
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from harness.database import opened
from harness.disk import fill, small_disk
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import (
    Database,
    Event,
    JobRow,
    SessionRow,
    StoreError,
    jobs,
    migrations,
    outbox,
    recordings,
    schema,
    transcripts,
)
from siprec_bridge.transcript import RunFacts

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def session(id: str, minutes: int = 0) -> SessionRow:
    at = NOW + timedelta(minutes=minutes)
    return SessionRow(id, f"{id}@pbx", "recording", at, "udp:h:1", "/f", "{}", warnings=("odd",))


def event(id: str) -> Event:
    return Event(id, "s1", "session.started", NOW, "{}")


async def with_session(database: Database) -> None:
    await database.write(lambda connection: recordings.insert(connection, session("s1")))


def test_a_database_is_at_the_newest_step_by_the_names_of_the_files() -> None:
    steps = ScriptDirectory(str(Path(migrations.__file__).parent))

    assert steps.get_heads() == [migrations.NEWEST]
    assert all(Path(one.path).name[1:5] == one.revision for one in steps.walk_revisions())


async def test_what_was_written_is_there_after_a_restart(database_url: str) -> None:
    async with opened(database_url) as database:
        await with_session(database)

    async with opened(database_url) as database:
        row = await database.read(partial(recordings.get, session_id="s1"))

    assert row == session("s1")


async def test_a_full_disk_is_what_writes_fail_of_until_there_is_room(tmp_path: Path) -> None:
    def write(connection: Connection) -> None:
        recordings.update(connection, "s1", document="x" * 30_000)

    with small_disk(tmp_path / "disk", "1m") as disk:
        async with opened(f"sqlite:///{disk}/a.db") as database:
            await with_session(database)
            others = fill(disk)
            causes = []
            for _ in range(2):  # with the connection that failed, and with a new one
                with pytest.raises(StoreError) as refusal:
                    await database.write(write)
                causes.append(str(refusal.value))
            others.unlink()
            await database.write(write)
            row = await database.read(partial(recordings.get, session_id="s1"))
        fill(disk)
        with pytest.raises(StoreError, match=r"a\.db: database or disk is full"):
            await Database(f"sqlite:///{disk}/a.db").start()

    assert causes == ["database or disk is full"] * 2
    assert row is not None
    assert len(row.document) == 30_000


async def test_a_work_that_fails_takes_nothing_else_with_it(database_url: str) -> None:
    def broken(connection: Connection) -> None:
        recordings.insert(connection, session("broken"))
        raise ValueError("mine")

    def twice(connection: Connection) -> None:
        recordings.insert(connection, session("twice"))
        recordings.insert(connection, session("twice"))

    async with opened(database_url) as database:
        results = await asyncio.gather(
            *(
                database.write(partial(recordings.insert, row=session(f"s{number}")))
                for number in range(50)
            ),
            database.write(broken),
            database.write(twice),
            return_exceptions=True,
        )
        rows = await database.read(partial(recordings.listing, limit=100))

    assert results[:50] == [None] * 50
    assert isinstance(results[50], ValueError)
    assert isinstance(results[51], StoreError)
    assert {row.id for row in rows} == {f"s{number}" for number in range(50)}


CHILD = """
import asyncio, sys
from siprec_bridge.store import Database, recordings, SessionRow
from datetime import datetime, UTC
async def main():
    database = Database(sys.argv[1])
    await database.start()
    for number in range(10_000):
        row = SessionRow(f"s{number:05}", "c", "recording", datetime.now(UTC), "p", "f", "{}")
        await database.write(lambda connection: recordings.insert(connection, row))
        print(row.id, flush=True)
asyncio.run(main())
"""


async def test_every_write_that_was_confirmed_survives_kill_9(database_url: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, database_url, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    confirmed = [(await child.stdout.readline()).decode().strip() for _ in range(100)]

    os.kill(child.pid, signal.SIGKILL)
    confirmed += [line.strip().decode() async for line in child.stdout if line.endswith(b"\n")]
    await child.wait()

    async with opened(database_url) as database:
        rows = await database.read(partial(recordings.listing, limit=10_000))
    assert set(confirmed) - {row.id for row in rows} == set()
    assert len(confirmed) >= 100


async def test_the_migrations_lead_to_the_schema(database_url: str) -> None:
    async with opened(database_url):
        pass
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            # What finds words differs by database and is made by the migration alone.
            opts={
                "include_name": lambda name, kind, _: (
                    not str(name).startswith(("passages_fts", "ix_passages_words"))
                )
            },
        )
        differences = compare_metadata(context, schema.metadata)
    engine.dispose()

    assert differences == []


async def test_a_database_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path / 'a.db'}"):
        pass
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    connection.close()

    with pytest.raises(StoreError):
        async with opened(f"sqlite:///{tmp_path / 'a.db'}"):
            pass


@pytest.mark.parametrize("url", ["nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_cannot_be_used_is_the_operators_mistake(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Database(url)

    assert error.value.setting.startswith("DATABASE_URL")


async def test_a_closed_database_says_so(database_url: str) -> None:
    async with opened(database_url) as database:
        assert await database.unwritable() is None

    assert await database.unwritable() == "the database is closed"
    with pytest.raises(StoreError):
        await database.read(outbox.last_seq)


async def test_jobs_go_their_ways(database_url: str) -> None:
    facts = RunFacts(provider="w", model="m", status="error", exit_code=3, stderr_tail="oh")
    async with opened(database_url) as database:
        await with_session(database)
        for number in range(3):
            row = JobRow(f"j{number}", "s1", "w", 2.5, NOW + timedelta(seconds=number))
            await database.write(partial(jobs.insert, row=row))
        claimed = await database.write(partial(jobs.claim, limit=2, now=NOW, vendor="w"))
        await database.write(partial(jobs.finish, job_id="j0", facts=facts, at=NOW))
        later = NOW + timedelta(minutes=1)
        await database.write(
            partial(jobs.reschedule, job_id="j1", not_before=later, reason="exit_code", facts=facts)
        )
        not_yet = await database.write(partial(jobs.claim, limit=9, now=NOW, vendor="w"))
        await database.write(partial(jobs.fail, job_id="j2", reason="timeout", at=NOW))
        backlog = await database.read(jobs.backlog)
        due = await database.read(partial(jobs.next_due, vendors=["w"]))
        retried = await database.write(jobs.retry)
        rows = {row.id: row for row in await database.read(partial(jobs.listing, limit=9))}

    assert [(row.id, row.state, row.attempts) for row in claimed] == [
        ("j0", "running", 1),
        ("j1", "running", 1),
    ]
    assert [row.id for row in not_yet] == ["j2"]
    assert (backlog.jobs, backlog.audio_seconds, backlog.failed) == (1, 2.5, 1)
    assert (due, retried) == (later, 1)
    assert {id: row.state for id, row in rows.items()} == {
        "j0": "done", "j1": "queued", "j2": "queued",
    }  # fmt: skip
    assert (rows["j1"].exit_code, rows["j1"].stderr_tail) == (3, "oh")


async def test_an_event_that_is_built_again_is_stored_once(database_url: str) -> None:
    async with opened(database_url) as database:
        await with_session(database)
        first = await database.write(
            partial(outbox.append, new_events=[event("a"), event("b")], sinks=["x"])
        )
        again = await database.write(
            partial(outbox.append, new_events=[event("b"), event("c")], sinks=["x"])
        )
        pending = await database.read(partial(outbox.pending, sink="x", limit=9, now=NOW))

    assert [one.id for one in first + again] == ["a", "b", "c"]
    assert [one.event.id for one in pending] == ["a", "b", "c"]
    seqs = [one.event.seq for one in pending]
    assert seqs == sorted(seqs)


async def test_a_sink_that_named_types_gets_these_and_its_backlog_is_its_own(
    database_url: str,
) -> None:
    started, ended = event("a"), Event("b", "s1", "session.ended", NOW, "{}")
    picky = outbox.Subscriber("picky", ("session.e", "transcript."))
    async with opened(database_url) as database:
        await with_session(database)
        for one in (started, ended, Event("c", "s1", "session.ended", NOW, "{}")):
            await database.write(partial(outbox.append, new_events=[one], sinks=["all", picky]))
        taken = await database.read(partial(outbox.pending, sink="picky", limit=9, now=NOW))
        await database.write(partial(outbox.delivered, sink="all", seqs=[1]))
        await database.write(partial(outbox.park, sink="all", seq=3, reason="no"))
        of_all = await database.read(partial(outbox.backlog, sink="all"))
        of_picky = await database.read(partial(outbox.backlog, sink="picky"))
        of_nobody = await database.read(partial(outbox.backlog, sink="x"))
        ends = await database.read(lambda c: (outbox.first_seq(c), outbox.last_seq(c)))

    assert [one.event.id for one in taken] == ["b", "c"]
    assert (of_all.pending, of_all.parked) == (1, 1)
    assert (of_picky.pending, of_picky.parked) == (2, 0)
    assert of_all.oldest_at == of_picky.oldest_at is not None
    assert of_nobody == outbox.SinkBacklog(0, 0, None)
    assert ends == (1, 3)


async def test_a_delivery_that_waits_holds_back_its_session_only(database_url: str) -> None:
    async with opened(database_url) as database:
        await with_session(database)
        await database.write(partial(recordings.insert, row=session("s2")))
        other = Event("z", "s2", "session.started", NOW, "{}")
        await database.write(
            partial(outbox.append, new_events=[event("a"), event("b"), other], sinks=["x"])
        )
        later = NOW + timedelta(minutes=1)
        await database.write(
            partial(outbox.failed, sink="x", seq=1, reason="nack", not_before=later)
        )
        now = await database.read(partial(outbox.pending, sink="x", limit=9, now=NOW))
        after = await database.read(partial(outbox.pending, sink="x", limit=9, now=later))

    assert [one.event.id for one in now] == ["z"]
    assert [one.event.id for one in after] == ["a", "b", "z"]


async def test_what_was_given_up_is_listed_sent_again_or_dropped_by_id_by_reason_or_all(
    database_url: str,
) -> None:
    ids = [f"e{number}" for number in range(5)]

    def give_up(connection: Connection) -> None:
        outbox.append(connection, [event(id) for id in ids], ["x", "y"])
        for seq, reason in enumerate(["410 Gone", "422 100%", "422 50%", "410 Gone"], 1):
            outbox.park(connection, "x", seq, reason)

    async with opened(database_url) as database:
        await with_session(database)
        await database.write(give_up)

        async def left() -> dict[str, str]:
            rows = await database.read(partial(outbox.parked, sink="x", limit=9))
            return {row.event.id: row.reason for row in rows}

        first = await database.read(partial(outbox.parked, sink="x", limit=2))
        after = await database.read(
            partial(outbox.parked, sink="x", limit=9, after=first[-1].event.seq, reason="gone")
        )
        by_reason = await database.write(partial(outbox.resend, sink="x", reason="00%"))
        one = await database.write(partial(outbox.resend, sink="x", event_id="e0"))
        unknown = await database.write(partial(outbox.resend, sink="x", event_id="e4"))
        others = await left()
        dropped = await database.write(
            partial(outbox.drop, sink="x", note="dropped by me: test", reason="410")
        )
        waiting = await database.read(partial(outbox.pending, sink="x", limit=9, now=NOW))
        gone = await database.write(partial(outbox.drop, sink="x", note="all", pending=True))
        rest = await left()
        sinks = await database.read(outbox.sinks)
        notes = await database.read(
            lambda c: c.execute(
                sa.select(schema.deliveries.c.state, schema.deliveries.c.reason).where(
                    schema.deliveries.c.sink == "x"
                ).order_by(schema.deliveries.c.seq)
            ).all()
        )  # fmt: skip

    assert [row.event.id for row in first] == ["e0", "e1"]
    assert [row.event.id for row in after] == ["e3"]
    assert first[0].failing_since is not None
    assert (by_reason, one, unknown) == (1, 1, 0)
    assert others == {"e2": "422 50%", "e3": "410 Gone"}
    assert (dropped, gone, rest) == (1, 4, {})
    assert [row.event.id for row in waiting] == ["e0", "e1", "e4"]
    assert [(row.attempts, row.failing_since) for row in waiting] == [(0, None)] * 3
    assert sinks == ["y"]
    assert {state for state, _ in notes} == {"dropped"}
    assert [reason for _, reason in notes][3:] == [
        "dropped by me: test; was: 410 Gone", "all; was: not tried",
    ]  # fmt: skip


async def test_an_event_fails_since_its_first_failure(database_url: str) -> None:
    async with opened(database_url) as database:
        await with_session(database)
        await database.write(partial(outbox.append, new_events=[event("a")], sinks=["x"]))
        for minutes in (0, 1, 2):
            at = NOW + timedelta(minutes=minutes)
            await database.write(
                partial(outbox.failed, sink="x", seq=1, reason="500", not_before=at, at=at)
            )
        later = NOW + timedelta(hours=1)
        (pending,) = await database.read(
            partial(outbox.pending, sink="x", limit=9, now=later, besides=["nobody"])
        )
        besides = await database.read(
            partial(outbox.pending, sink="x", limit=9, now=later, besides=["s1"])
        )

    assert (pending.attempts, pending.failing_since) == (3, NOW)
    assert besides == []


async def test_the_first_transcript_of_a_version_stays(database_url: str) -> None:
    async with opened(database_url) as database:
        await with_session(database)

        def save(text: str) -> partial[bool]:
            return partial(
                transcripts.save, session_id="s1", version=1, job_id="j", text=text,
                document="{}", at=NOW,
            )  # fmt: skip

        stored = [await database.write(save("first")), await database.write(save("second"))]
        kept = await database.read(partial(transcripts.get, session_id="s1"))

    assert stored == [True, False]
    assert kept is not None
    assert kept.text == "first"


async def test_pages_of_sessions_follow_each_other_without_gap(database_url: str) -> None:
    async with opened(database_url) as database:
        for number in range(5):
            await database.write(partial(recordings.insert, row=session(f"s{number}", number // 2)))
        seen: list[str] = []
        before: tuple[datetime, str] | None = None
        while page := await database.read(partial(recordings.listing, limit=2, before=before)):
            seen += [row.id for row in page]
            before = (page[-1].started_at, page[-1].id)

    assert seen == ["s4", "s3", "s2", "s1", "s0"]


async def test_the_latest_number_outlives_its_event(database_url: str) -> None:
    async with opened(database_url) as database:
        event = Event("e-1", "s", "session.ended", NOW, "{}")
        (first,) = await database.write(lambda c: outbox.append(c, [event], []))
        await database.write(lambda c: c.exec_driver_sql("DELETE FROM events"))
        latest = await database.read(outbox.latest_number)
        left = await database.read(outbox.last_seq)

    assert (latest, left) == (first.seq, 0)
