"""What a server adds to a file: it goes away, comes back, answers late, and has several clients."""

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from harness.database import opened
from harness.postgresql import Postgresql
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import (
    Database,
    Event,
    SessionRow,
    SipMessage,
    StoreError,
    ladder,
    outbox,
    recordings,
)
from siprec_bridge.store import database as database_module
from siprec_bridge.store.dialect import number_in_order

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def session(id: str) -> SessionRow:
    return SessionRow(id, f"{id}@pbx", "recording", NOW, "udp:h:1", "/f", "{}")


def insert(id: str) -> partial[None]:
    return partial(recordings.insert, row=session(id))


def event(id: str) -> Event:
    return Event(id, "s1", "session.started", NOW, "{}")


async def ids(database: Database) -> set[str]:
    return {row.id for row in await database.read(partial(recordings.listing, limit=10_000))}


@pytest.fixture
def own_server() -> Iterator[Postgresql]:
    """A server that the test may stop and kill."""
    server = Postgresql()
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def test_nodes_that_start_at_once_migrate_once(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    nodes = [Database(url) for _ in range(4)]

    await asyncio.gather(*(one.start() for one in nodes))

    await asyncio.gather(*(one.write(insert(f"s{n}")) for n, one in enumerate(nodes)))
    assert await ids(nodes[0]) == {"s0", "s1", "s2", "s3"}
    for one in nodes:
        await one.stop()


async def test_a_server_killed_under_load_loses_nothing_that_was_confirmed(
    own_server: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_FRESH_S", 0.0)  # else a commit just before it counts
    monkeypatch.setattr(database_module, "_PROBE_TIMEOUT_S", 0.5)
    confirmed: set[str] = set()
    refused: set[str] = set()
    done = False

    async def write(database: Database, writer: int) -> None:
        number = 0
        while not done:
            number += 1
            id = f"w{writer}-{number:05}"
            try:
                await database.write(insert(id))
                confirmed.add(id)
            except StoreError:
                refused.add(id)
                await asyncio.sleep(0.05)

    async with opened(own_server.new_database()) as database:
        writers = [asyncio.create_task(write(database, number)) for number in range(5)]
        for _ in range(2):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_server.kill9)
            await asyncio.sleep(0.3)
            with pytest.raises(StoreError):
                await database.read(outbox.last_seq)
            assert await database.unwritable() is not None
            await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(30):
            while await database.unwritable() is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        done = True
        await asyncio.gather(*writers)
        stored = await ids(database)

    assert len(confirmed) > 10
    assert refused
    # Refused is not stored: who does it again does not do it twice.
    assert stored == confirmed


async def test_a_restarted_server_costs_readers_nothing(own_server: Postgresql) -> None:
    async with opened(own_server.new_database()) as database:
        await database.write(insert("s1"))
        await database.read(outbox.last_seq)
        await asyncio.to_thread(own_server.stop)
        await asyncio.to_thread(own_server.start)

        assert await ids(database) == {"s1"}


async def test_the_start_waits_for_a_server_that_is_away_as_long_as_it_is_told(
    own_server: Postgresql,
) -> None:
    url = own_server.new_database()
    await asyncio.to_thread(own_server.stop)
    with pytest.raises(StoreError, match=f"postgresql://127.0.0.1:{own_server.port}/"):
        await Database(url).start()

    async def come_back() -> None:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_server.start)

    coming = asyncio.create_task(come_back())
    async with opened(url, wait=20.0) as database:
        assert await database.unwritable() is None
    await coming


async def test_a_database_that_does_not_exist_is_not_waited_for(postgresql: Postgresql) -> None:
    async with asyncio.timeout(5.0):
        with pytest.raises(StoreError, match="does not exist"):
            await Database(postgresql.url("nowhere"), wait=60.0).start()


class CuttingWire:
    """A TCP proxy that cuts a connection at its next COMMIT, before or after passing it on."""

    def __init__(self, port: int) -> None:
        self._far_port = port
        self.cut: str | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections, and return when those that there were are over."""
        self._server.shutdown(socket.SHUT_RDWR)
        for one in self._threads:
            one.join(5.0)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                serve = threading.Thread(target=self._serve, args=(near,))
                self._threads.append(serve)
                serve.start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._far_port)) as far:
            while ready := select.select([near, far], [], [])[0]:
                one = ready[0]
                data = one.recv(65536)
                if one is near and b"COMMIT" in data and self.cut is not None:
                    cut, self.cut = self.cut, None
                    if cut == "after":
                        far.sendall(data)
                        far.recv(1)  # it is done
                    return
                if not data:
                    return
                (far if one is near else near).sendall(data)


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_connection_cut_in_a_commit_leaves_no_doubt(
    postgresql: Postgresql, cut: str
) -> None:
    wire = CuttingWire(postgresql.port)
    url = postgresql.new_database()
    async with opened(url.replace(f":{postgresql.port}/", f":{wire.port}/")) as database:
        await database.write(insert("s0"))
        wire.cut = cut

        if cut == "after":
            await database.write(insert("s1"))
        else:
            with pytest.raises(StoreError):
                await database.write(insert("s1"))

        await database.write(insert("s2"))
        assert await ids(database) == {"s0", "s2"} | ({"s1"} if cut == "after" else set())
    wire.close()


async def test_who_reads_on_from_the_latest_event_misses_none_that_commits_late(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    async with opened(url) as one, opened(url) as other:
        loop, holding, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def slow(connection: Connection) -> None:
            outbox.append(connection, [event("early")], ["x"])
            loop.call_soon_threadsafe(holding.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

        early = asyncio.create_task(one.write(slow))
        await holding.wait()
        late = asyncio.create_task(
            other.write(partial(outbox.append, new_events=[event("late")], sinks=["x"]))
        )
        done, _ = await asyncio.wait([late], timeout=0.5)
        seen = await other.read(partial(outbox.since, seq=0, limit=9))
        go_on.set()
        await asyncio.gather(early, late)
        last = seen[-1].seq if seen else 0
        then = await other.read(partial(outbox.since, seq=last, limit=9))

    assert not done  # it may not commit before what has the lower number
    assert [one.id for one in [*seen, *then]] == ["early", "late"]


async def test_a_tail_under_concurrent_writers_sees_each_event_once(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    async with opened(url) as one, opened(url) as other, opened(url) as reader:

        async def write(database: Database, name: str) -> None:
            for number in range(150):
                await database.write(
                    partial(outbox.append, new_events=[event(f"{name}{number}")], sinks=["x"])
                )

        async def tail() -> list[Event]:
            seen: list[Event] = []
            while len(seen) < 600:
                last = seen[-1].seq if seen else 0
                seen += await reader.read(partial(outbox.since, seq=last, limit=50))
            return seen

        async with asyncio.timeout(30):
            seen, *_ = await asyncio.gather(
                tail(), write(one, "a"), write(one, "b"), write(other, "c"), write(other, "d")
            )

    assert len({one.id for one in seen}) == 600
    assert [one.seq for one in seen] == sorted({one.seq for one in seen})


async def test_a_node_that_dies_with_the_numbering_in_hand_holds_up_nobody(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    async with opened(url) as database:
        engine = sa.create_engine(url)
        dying = engine.connect()
        number_in_order(dying)
        writing = asyncio.create_task(
            database.write(partial(outbox.append, new_events=[event("a")], sinks=[]))
        )
        done, _ = await asyncio.wait([writing], timeout=0.3)
        assert not done

        raw = dying.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        raw.pgconn.finish()  # as its kernel does after kill -9
        async with asyncio.timeout(30):
            (stored,) = await writing
        dying.invalidate()
        engine.dispose()

    assert stored.id == "a"


async def test_a_message_with_nul_in_it_is_kept_all_the_same(postgresql: Postgresql) -> None:
    async with opened(postgresql.new_database()) as database:
        await database.write(insert("s1"))
        odd = SipMessage(NOW, False, "udp:h:1", "OPTIONS sip:\0 SIP/2.0")
        await database.write(partial(ladder.append, messages=[("s1", odd)]))
        (kept,) = await database.read(partial(ladder.of_session, session_id="s1"))

    assert kept.text == "OPTIONS sip:\N{REPLACEMENT CHARACTER} SIP/2.0"


async def test_an_error_tells_no_values(postgresql: Postgresql) -> None:
    async with opened(postgresql.new_database()) as database:
        await database.write(insert("secret-id"))
        with pytest.raises(StoreError) as error:
            await database.write(insert("secret-id"))

    assert "duplicate key" in str(error.value)
    assert "secret-id" not in str(error.value)


@pytest.mark.parametrize("url", ["postgresql://h:port/d", "postgresql+nothing://h/d"])
def test_a_url_of_a_server_that_cannot_be_used_is_the_operators_mistake(url: str) -> None:
    if "+" in url:
        assert Database(url).place == "postgresql://h/d"  # there is one driver
        return
    with pytest.raises(ConfigurationError):
        Database(url)
