"""Transactions of two nodes that lock the same rows in another order: both are done."""

import asyncio
import threading
import time
from datetime import UTC, datetime
from functools import partial

import psycopg
import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from harness.database import opened
from harness.postgresql import Postgresql
from siprec_bridge.store import SessionRow, StoreError, deposits, recordings, retention

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PATIENCE_S = 20.0


def sessions(connection: Connection, *ids: str) -> None:
    for id in ids:
        recordings.insert(
            connection, SessionRow(id, f"{id}@pbx", "finished", NOW, "udp:h:1", "/f", "{}")
        )


def update(id: str) -> str:
    return f"UPDATE sessions SET peer = peer || '.' WHERE id = '{id}'"


def until_somebody_waits(server: Postgresql, url: str) -> None:
    """For a lock, in this database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        f"AND datname = '{url.rpartition('/')[2]}'"
    )
    deadline = time.monotonic() + PATIENCE_S
    while not server.sql(query)[0][0]:
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


class Antagonist:
    """Another node: has one row locked, and waits for another one, which we have. Never the victim."""

    def __init__(self, server: Postgresql, url: str) -> None:
        self._server = server
        self._url = url
        self._threads: list[threading.Thread] = []

    def crosses(self, first: str, then: str) -> None:
        """Return once it waits; it gives up all that it has as soon as it has got the other one."""
        self._threads.append(threading.Thread(target=self._cross, args=(first, then)))
        self._threads[-1].start()
        until_somebody_waits(self._server, self._url)

    def end(self) -> None:
        for one in self._threads:
            one.join(PATIENCE_S)
            assert not one.is_alive()

    def _cross(self, first: str, then: str) -> None:
        with psycopg.connect(self._url) as connection:
            connection.execute("SET deadlock_timeout = '60s'")
            connection.execute(update(first).encode())
            connection.execute(update(then).encode())
            connection.rollback()


async def test_a_session_whose_changed_files_are_noted_while_another_node_would_delete_it(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    async with opened(url) as one, opened(url) as other:

        def enter(connection: Connection) -> None:
            sessions(connection, "s")
            deposits.add(connection, "s", None, NOW)

        await one.write(enter)
        kept = await one.write(
            partial(deposits.take, session_id="s", runner="altering-1", now=NOW)
        )  # fmt: skip
        assert kept is not None
        half = threading.Event()

        def noted(connection: Connection) -> bool:
            """As an alteration notes it: the deposit, then the session."""
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '20ms'")
            done = deposits.altered(connection, kept, "altering-1", NOW)
            if not half.is_set():
                half.set()
                until_somebody_waits(postgresql, url)
            deposits.remeasure(connection, "s", None)
            return done

        def take(connection: Connection) -> set[str]:
            """The session, then the deposit."""
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '60s'")
            return retention.take(connection, ["s"], "deleting-1", NOW)

        with capture_logs() as logs:
            noting = asyncio.create_task(one.write(noted))
            await asyncio.to_thread(half.wait, PATIENCE_S)
            taken = await asyncio.wait_for(other.write(take), PATIENCE_S)
            still_ours = await asyncio.wait_for(noting, PATIENCE_S)

    assert [line["event"] for line in logs] == ["database.conflict"]
    # One after the other, whoever was first.
    assert (taken, still_ours) in (({"s"}, False), (set(), True))


async def test_who_is_the_victim_again_and_again_is_done_at_last_with_all_of_its_company(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    other, left = Antagonist(postgresql, url), [3]

    def crosses(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL deadlock_timeout = '20ms'")
        connection.exec_driver_sql(update("a"))
        if left[0]:
            left[0] -= 1
            other.crosses("b", then="a")
        connection.exec_driver_sql(update("b"))

    def fails(connection: Connection) -> None:
        connection.exec_driver_sql(update("c"))
        raise LookupError("its own fault")

    async with opened(url) as database:
        await database.write(lambda connection: sessions(connection, "a", "b", "c", "d"))
        with capture_logs() as logs:
            found = await asyncio.gather(
                database.write(lambda connection: connection.exec_driver_sql(update("d")).rowcount),
                database.write(fails),
                database.write(crosses),
                return_exceptions=True,
            )
        rows = await database.read(partial(recordings.listing, limit=10))
    other.end()

    assert [type(one) for one in found] == [int, LookupError, type(None)]
    assert {row.id: row.peer for row in rows} == {
        "a": "udp:h:1.", "b": "udp:h:1.", "c": "udp:h:1", "d": "udp:h:1.",
    }  # fmt: skip
    assert [line["event"] for line in logs] == ["database.conflict"] * 3


async def test_what_is_a_conflict_for_ever_is_told_to_who_wants_it(
    postgresql: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_bridge.store.database._CONFLICTS", 1)
    url = postgresql.new_database()
    other = Antagonist(postgresql, url)

    def crosses(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL deadlock_timeout = '20ms'")
        connection.exec_driver_sql(update("a"))
        other.crosses("b", then="a")
        connection.exec_driver_sql(update("b"))

    async with opened(url) as database:
        await database.write(lambda connection: sessions(connection, "a", "b"))
        with pytest.raises(StoreError, match="deadlock detected"):
            await database.write(crosses)
        assert await database.write(lambda _: "as ever") == "as ever"
    other.end()
