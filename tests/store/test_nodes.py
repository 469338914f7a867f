"""Several nodes on one database: each job runs once, and a dead node's jobs go to the others."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from harness.bridge import eventually
from harness.database import opened
from harness.postgresql import Postgresql
from siprec_bridge.store import (
    Database,
    Event,
    JobRow,
    SessionRow,
    StoreError,
    jobs,
    node_id,
    outbox,
    recordings,
    retention,
)

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
OVER = timedelta(seconds=-1)


async def queue(database: Database, count: int, of: str | None = None) -> None:
    def insert(connection: Connection) -> None:
        for number in range(count):
            id = f"{of or 'any'}-{number}"
            row = SessionRow(id, "c", "recording", NOW, "p", "/f", "{}", node=of)
            recordings.insert(connection, row)
            jobs.insert(connection, JobRow(f"{id}.1", id, "w", 1.0, NOW, node=of))

    await database.write(insert)


async def claim(
    database: Database, limit: int = 9, lease: timedelta = timedelta(minutes=1)
) -> list[str]:
    claimed = await database.write(
        partial(jobs.claim, limit=limit, now=NOW, vendor="w", node=database.node, lease=lease)
    )
    return [row.id for row in claimed]


async def test_nodes_that_claim_at_once_get_each_job_once(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    async with opened(url, node="a") as a, opened(url, node="b") as b:
        await queue(a, 200)
        taken: dict[str, list[str]] = {"a": [], "b": []}

        async def work(database: Database, name: str) -> None:
            while some := await claim(database, limit=7):
                assert len(some) <= 7
                taken[name] += some

        await asyncio.gather(work(a, "a"), work(b, "b"), work(a, "a"), work(b, "b"))

    assert len(taken["a"] + taken["b"]) == 200
    assert len({*taken["a"], *taken["b"]}) == 200


async def test_a_job_goes_only_to_nodes_that_have_its_audio(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    async with opened(url, node="a") as a, opened(url, node="b") as b:
        await queue(a, 1, of="a")
        await queue(a, 1)

        assert await b.read(partial(jobs.waiting, node="b")) == {"w": (1, 1.0)}
        assert await claim(b) == ["any-0.1"]
        assert await claim(a) == ["a-0.1"]


async def test_a_lease_that_is_over_gives_the_job_to_another_and_the_first_is_not_heard(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    async with opened(url, node="a") as a, opened(url, node="b") as b:
        await queue(a, 2)
        await queue(a, 1, of="a")
        assert await claim(a, lease=timedelta(minutes=1)) == ["any-0.1", "any-1.1", "a-0.1"]
        assert await claim(b) == []
        kept = await a.write(
            partial(jobs.renew, job_ids=["any-0.1"], now=NOW, node="a", lease=OVER)
        )

        assert kept == {"any-0.1"}
        assert await claim(b) == ["any-0.1"]
        renewed = partial(jobs.renew, job_ids=["any-0.1", "any-1.1"], now=NOW, node="a")
        assert await a.write(renewed) == {"any-1.1"}
        said = [
            await a.write(
                partial(jobs.fail, job_id="any-0.1", reason="timeout", at=NOW, runner="a")
            ),
            await a.write(
                partial(jobs.reschedule, job_id="any-0.1", not_before=NOW, reason="x", runner="a")
            ),
        ]
        await a.write(partial(jobs.release, job_ids=["any-0.1"], runner="a"))
        row = await a.read(partial(jobs.get, job_id="any-0.1"))

    assert said == [False, False]
    assert row is not None
    assert (row.state, row.runner, row.attempts) == ("running", "b", 2)


async def test_a_node_that_starts_again_takes_up_its_own_only(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    async with opened(url, node="a") as a, opened(url, node="b") as b:
        await queue(a, 1, of="a")
        await queue(a, 1, of="b")
        await claim(a)
        await claim(b)

        assert await a.write(partial(jobs.requeue_running, node="a")) == 1
        unfinished = await a.read(partial(recordings.unfinished, node="a"))
        states = {row.id: row.state for row in await a.read(partial(jobs.listing, limit=9))}

    assert [row.id for row in unfinished] == ["a-0"]
    assert states == {"a-0.1": "queued", "b-0.1": "running"}


async def test_a_node_deletes_no_audio_of_another(postgresql: Postgresql) -> None:
    async with opened(postgresql.new_database(), node="a") as a:
        for of in ("a", "b"):
            row = SessionRow(of, "c", "finished", NOW, "p", "/f", "{}", ended_at=NOW, node=of)
            await a.write(partial(recordings.insert, row=row))
        later = NOW + timedelta(days=1)
        mine = await a.read(partial(retention.ended, limit=9, before=later, node="a"))
        everybodys = await a.read(partial(retention.ended, limit=9, before=later))

    assert ([row.id for row in mine], [row.id for row in everybodys]) == (["a"], ["a", "b"])


async def test_two_bridges_of_one_name_are_the_operators_mistake(
    postgresql: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_bridge.store.nodes._PATIENCE_S", 1.5)
    url = postgresql.new_database()
    async with opened(url, node="a") as first:
        with pytest.raises(StoreError, match="another bridge runs as NODE_ID=a"):
            await Database(url, node="a").start()
        assert await first.unwritable() is None

    async with opened(url, node="a"):
        pass  # the name is free again


async def test_a_duty_is_one_nodes_until_it_dies(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    leader = f"""
import asyncio
from siprec_bridge.store import Database
async def main():
    database = Database({url!r}, node="dying")
    await database.start()
    while not database.leads("relay x"):
        await asyncio.sleep(0.05)
    print("leads", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", leader, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    while await child.stdout.readline() != b"leads\n":
        assert child.returncode is None
    async with opened(url, node="a") as a:
        assert not a.leads("relay x")
        await asyncio.sleep(1.2)  # longer than a round: it has asked, and did not get it
        assert not a.leads("relay x")

        child.kill()
        await child.wait()

        await eventually(lambda: a.leads("relay x"), "the duty")
    await asyncio.gather(child.communicate())


async def test_a_node_hears_of_others_events_also_after_a_lost_connection(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    heard = 0

    def count() -> None:
        nonlocal heard
        heard += 1

    async def append(database: Database, id: str) -> None:
        new = Event(id, "s1", "session.started", NOW, "{}")
        await database.write(partial(outbox.append, new_events=[new], sinks=[]))

    async with opened(url, node="a") as a, opened(url, node="b") as b:
        await asyncio.sleep(0.2)  # it is told at first, too
        a.on_commit(count)
        before = heard
        await append(b, "one")
        await eventually(lambda: heard > before, "the news", patience=20.0)

        before = heard
        name = url.rpartition("/")[2]
        postgresql.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{name}' AND query IN ('SELECT 1', 'LISTEN siprec_bridge_events')"
        )
        await eventually(lambda: heard > before, "being back", patience=20.0)
        before = heard
        await append(b, "two")
        await eventually(lambda: heard > before, "the news", patience=20.0)


def test_a_data_folder_keeps_its_nodes_name(tmp_path: Path) -> None:
    first = node_id(tmp_path)
    other = tmp_path / "other"
    other.mkdir()

    assert node_id(tmp_path) == first
    assert node_id(other) != first
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["node-id"]


async def test_sqlite_is_one_nodes_own(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path / 'a.db'}", node="a") as database:
        assert database.node is None
        assert database.leads("relay x")
        await queue(database, 1)
        assert await claim(database) == ["any-0.1"]
        row = await database.read(partial(jobs.get, job_id="any-0.1"))

    assert row is not None
    assert (row.runner, row.lease_until) == (None, None)
