"""Deposits where nodes share the database: one works at each, and who has lost it is not heard."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from harness.database import opened
from siprec_bridge.store import (
    Database,
    DepositRow,
    JobRow,
    SessionRow,
    deposits,
    jobs,
    recordings,
    retention,
)
from siprec_bridge.store.jobs import JobState

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
LATER = timedelta(minutes=1)


async def lay_down(
    database: Database, id: str, *, node: str | None = None, job: JobState = "done"
) -> None:
    def store(connection: Connection) -> None:
        row = SessionRow(id, id, "finished", NOW, "udp:h:1", "/r", "{}", audio_bytes=7, node=node)
        recordings.insert(connection, row)
        jobs.insert(connection, JobRow(f"{id}.1", id, "w", 1.0, NOW, job))
        deposits.add(connection, id, node, NOW)

    await database.write(store)


async def claim(database: Database, node: str, **how: object) -> list[DepositRow]:
    taking = partial(deposits.claim, limit=10, now=NOW, node=node, **how)  # type: ignore[arg-type]
    return await database.write(taking)


async def free(database: Database, statement: str) -> None:
    await database.write(lambda connection: connection.exec_driver_sql(statement))


async def test_each_is_one_nodes_until_its_lease_is_over(database_url: str) -> None:
    async with opened(database_url) as database:
        for id in ("s1", "s2"):
            await lay_down(database, id)

        (first, second) = await claim(database, "a")
        assert await claim(database, "b") == []
        assert await database.write(
            partial(deposits.renew, ids=["s1", "s2", "s3"], now=NOW, node="a")
        ) == {"s1", "s2"}
        await free(database, "UPDATE deposits SET lease_until = '2020-01-01 00:00:00.000000'")
        (taken, _) = await claim(database, "b")
        late = await database.write(partial(deposits.note, row=first, node="a", state="done"))
        heard = await database.write(partial(deposits.note, row=taken, node="b", state="done"))
        await database.write(partial(deposits.release, node="b"))
        await database.write(partial(deposits.release, node="a"))

        assert (taken.session_id, late, heard) == ("s1", False, True)
        assert [row.session_id for row in await claim(database, "a")] == [second.session_id]


async def test_they_are_listed_by_what_is_due_and_by_what_fails(database_url: str) -> None:
    async with opened(database_url) as database:
        for id in ("done", "failing", "given-up", "new"):
            await lay_down(database, id)
        await free(database, "UPDATE deposits SET state = 'done' WHERE session_id = 'done'")
        await free(
            database,
            "UPDATE deposits SET attempts = 2 WHERE session_id IN ('done', 'failing', 'given-up')",
        )
        await free(database, "UPDATE deposits SET state = 'kept' WHERE session_id = 'given-up'")
        # Lent for a change: nobody else sees it.
        await database.write(
            lambda c: recordings.insert(
                c, SessionRow("lent", "lent", "finished", NOW, "udp:h:1", "/r", "{}")
            )
        )
        await database.write(partial(deposits.lend, session_id="lent", runner="x", now=NOW))

        async def listed(limit: int = 10, **how: object) -> list[str]:
            found = await database.read(partial(deposits.listing, limit=limit, **how))  # type: ignore[arg-type]
            return [row.session_id for row in found]

        assert await listed() == ["done", "failing", "given-up", "new"]
        assert await listed(limit=2) == ["done", "failing"]
        assert await listed(state="pending") == ["failing", "new"]
        assert await listed(failing=True) == ["failing", "given-up"]
        assert await listed(state="kept", failing=True) == ["given-up"]
        known = await database.read(partial(deposits.of_ids, ids=["new", "lent", "unknown"]))
        assert {id: row.session_id for id, row in known.items()} == {"new": "new"}


async def test_what_is_entered_while_it_is_lent_is_due_when_it_is_given_back(
    database_url: str,
) -> None:
    async with opened(database_url) as database:
        await lay_down(database, "s1")
        await database.write(lambda connection: deposits.forget(connection, ["s1"]))
        lent = await database.write(
            partial(deposits.lend, session_id="s1", runner=f"{deposits.ALTERING}x", now=NOW)
        )
        await database.write(partial(deposits.add, session_id="s1", node=None, at=NOW))

        meanwhile = await claim(database, "a")
        await database.write(partial(deposits.release, node=f"{deposits.ALTERING}x"))
        afterwards = await claim(database, "a")

    assert lent is not None
    assert meanwhile == []
    assert [(row.session_id, row.state) for row in afterwards] == [("s1", "pending")]


async def test_files_are_worked_at_where_they_are_and_objects_deleted_from_anywhere(
    database_url: str,
) -> None:
    async with opened(database_url) as database:
        await lay_down(database, "s1", node="a")
        await lay_down(database, "s2", node="a")
        (row, _) = await claim(database, "a", shared=False)
        sent = partial(deposits.note, row=row, node="a", place="s3://b", prefix="s1", manifest="{}")
        await database.write(sent)
        await database.write(partial(deposits.forget, ids=["s1", "s2"]))
        await database.write(partial(deposits.release, node="a"))

        (left,) = await claim(database, "b", shared=False)

        assert (left.session_id, left.state, left.place) == ("s1", "deleting", "s3://b")
        assert not await database.write(partial(deposits.note, row=row, node="b", state="kept"))
        await lay_down(database, "s3", node="a")
        assert await claim(database, "b", shared=False) == []
        assert [one.session_id for one in await claim(database, "b")] == ["s3"]


async def test_what_waits_for_its_transcription_is_due_by_policy_only(database_url: str) -> None:
    async with opened(database_url) as database:
        for state in ("queued", "failed", "done"):
            await lay_down(database, state, job=state)

        heard = await claim(database, "a", early=False)
        overdue = await claim(database, "a", early=False, plain_before=NOW + LATER)
        found = await database.read(deposits.backlog)

        assert [row.session_id for row in heard] == ["done"]
        assert [row.session_id for row in overdue] == ["failed", "queued"]
        assert (found.pending, found.octets, found.oldest_at, found.failing) == (3, 21, NOW, 0)


async def test_older_recordings_are_entered_once(database_url: str) -> None:
    async with opened(database_url) as database:
        for number in range(5):
            await lay_down(database, f"s{number}")
        await free(database, "DELETE FROM deposits WHERE session_id <> 's0'")

        async def enter() -> int:
            found = await database.read(partial(deposits.older, limit=3))
            for id, node in found:
                await database.write(partial(deposits.add, session_id=id, node=node, at=NOW))
            return len(found)

        assert [await enter() for _ in range(3)] == [3, 1, 0]
        listed = await database.read(partial(deposits.listing, limit=10))
        assert {row.session_id for row in listed} == {f"s{number}" for number in range(5)}
        assert await database.read(partial(deposits.listing, limit=10, failing=True)) == []


async def test_files_of_a_session_that_nobody_keeps_are_lent_to_one_alone(
    database_url: str,
) -> None:
    lend = partial(deposits.lend, session_id="s1", now=NOW)
    async with opened(database_url) as database:
        await lay_down(database, "s1")
        await free(database, "DELETE FROM deposits")

        first = await database.write(partial(lend, runner="altering-1"))
        second = await database.write(partial(lend, runner="altering-2"))
        seized = await database.write(
            partial(deposits.seize, session_id="s1", runner="deleting-1", now=NOW)
        )
        back = [
            await database.write(
                partial(deposits.given_back, session_id="s1", runner=runner, now=NOW)
            )
            for runner in ("altering-2", "altering-1")
        ]
        older = await database.read(partial(deposits.older, limit=9))

    assert (first is not None and first.lent, second, seized) == (True, None, False)
    assert (back, older) == ([False, True], [("s1", None)])


async def test_what_is_taken_to_be_deleted_waits_for_the_hold_that_is_being_set(
    database_url: str,
) -> None:
    set_, go_on = threading.Event(), threading.Event()

    def hold(connection: Connection) -> bool:
        done = retention.hold(connection, "s1", "{}", NOW)
        set_.set()
        go_on.wait(10)
        return done

    take = partial(retention.take, ids=["s1"], runner="deleting-1", now=NOW)
    async with opened(database_url) as one, opened(database_url) as other:
        await lay_down(one, "s1")
        holding = asyncio.create_task(one.write(hold))
        await asyncio.to_thread(set_.wait, 10)
        taking = asyncio.create_task(other.write(take))
        await asyncio.wait({taking}, timeout=0.2)
        early = taking.done()
        go_on.set()

        assert (early, await holding, await taking) == (False, True, set())
        await one.write(partial(retention.hold, session_id="s1", held=None, now=NOW))
        assert await other.write(take) == {"s1"}


async def test_what_a_store_still_has_of_deleted_audio_is_no_obstacle_to_a_hold(
    database_url: str,
) -> None:
    def delete_audio(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE deposits SET place = 's3://calls'")
        retention.note_audio_deleted(connection, ["gone"], NOW)
        # Before its session says so, or cut off between the two: nobody can stop it any more.
        deposits.forget(connection, ["going"])

    async with opened(database_url) as database:
        for id in ("gone", "going", "here"):
            await lay_down(database, id)
        await database.write(delete_audio)

        busy = {
            id: await database.write(partial(deposits.is_busy, session_id=id, now=NOW))
            for id in ("gone", "going", "here")
        }

    assert busy == {"gone": False, "going": True, "here": False}


async def test_nothing_is_kept_anew_of_what_is_not_here_or_is_to_be_deleted(
    database_url: str,
) -> None:
    async with opened(database_url) as database:
        for id in ("away", "deleting", "here"):
            await lay_down(database, id)
        await free(
            database,
            "UPDATE deposits SET state = 'done', stored_at = '2026-05-04 12:00:00.000000', "
            "place = 's3://calls'",
        )
        await free(
            database,
            "UPDATE deposits SET local_gone_at = '2026-05-04 12:00:00.000000' "
            "WHERE session_id = 'away'",
        )
        await database.write(partial(deposits.forget, ids=["deleting"]))

        again = [
            await database.write(partial(deposits.again, now=NOW, session_id=id))
            for id in ("nobody", "away", "here")
        ]
        await database.write(partial(deposits.changed, session_id="deleting", now=NOW))
        rows = await database.read(partial(deposits.listing, limit=9))

    assert again == [0, 0, 1]
    assert {row.session_id: (row.state, row.attempts) for row in rows} == {
        "away": ("done", 0), "deleting": ("deleting", 0), "here": ("pending", 0),
    }  # fmt: skip
