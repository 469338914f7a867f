"""The relay between a real outbox and a sink in the test's hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from harness.bridge import eventually
from harness.postgresql import Postgresql
from siprec_bridge.delivery import (
    Declined,
    Relay,
    Returned,
    Unacceptable,
    Unreachable,
    envelope,
)
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings
from siprec_bridge.telemetry import Metrics

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Sink:
    name = "sink"

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.away = False
        self.unwanted: set[int] = set()
        self.declined: set[int] = set()
        self.unacceptable: set[int] = set()
        self.slow: dict[int, asyncio.Event] = {}
        self.tries = 0

    async def connect(self) -> None:
        if self.away:
            raise Unreachable("away")

    async def publish(self, event: Event) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if self.away:
            raise Unreachable("away")
        if event.seq in self.unwanted:
            raise Returned("unroutable")
        if event.seq in self.declined:
            raise Declined("not now")
        if event.seq in self.slow:
            await self.slow[event.seq].wait()
        if event.seq in self.unacceptable:
            raise Unacceptable("too large")
        self.got.append((event.session_id, event.seq))


def event(session: str, number: int) -> Event:
    return envelope.session_updated(envelope.SessionFacts(session, "c", NOW), number)


@asynccontextmanager
async def relaying(folder: Path, sink: Sink) -> AsyncIterator[tuple[Database, Metrics]]:
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()

    def insert(connection: Any) -> None:
        for id in ("s1", "s2", "s3"):
            recordings.insert(connection, SessionRow(id, "c", "finished", NOW, "p", "f", "{}"))

    await database.write(insert)
    metrics = Metrics()
    relay = Relay(database, sink, metrics)
    database.on_commit(relay.wake)
    running = asyncio.create_task(relay.run())
    try:
        yield database, metrics
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.stop()


@asynccontextmanager
async def node(url: str, name: str, sink: Sink) -> AsyncIterator[Database]:
    """One of several that share a database and a sink."""
    database = Database(url, node=name)
    await database.start()
    relay = Relay(database, sink, Metrics())
    database.on_commit(relay.wake)
    running = asyncio.create_task(relay.run())
    try:
        yield database
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.stop()


async def publish(database: Database, *events: Event) -> None:
    await database.write(lambda connection: outbox.append(connection, events, ["sink"]))


async def test_order_holds_within_each_session_and_each_event_is_sent_once(tmp_path: Path) -> None:
    sink = Sink()
    async with relaying(tmp_path, sink) as (database, metrics):
        events = [event(f"s{1 + n % 3}", n) for n in range(700)]
        await publish(database, *events)
        await eventually(lambda: len(sink.got) == 700, "all events")
        await eventually(
            lambda: (
                metrics.registry.get_sample_value("siprec_outbox_backlog", {"sink": "sink"}) == 0
            ),
            "an empty outbox",
        )

    for session in ("s1", "s2", "s3"):
        own = [seq for id, seq in sink.got if id == session]
        assert own == sorted(own)
    assert len({seq for _, seq in sink.got}) == 700


async def test_a_sink_that_was_away_gets_everything_and_nothing_spins_meanwhile(
    tmp_path: Path,
) -> None:
    sink = Sink()
    sink.away = True
    async with relaying(tmp_path, sink) as (database, _):
        await publish(database, *(event("s1", n) for n in range(20)))
        await asyncio.sleep(0.3)
        assert sink.tries == 0
        sink.away = False

        await eventually(lambda: len(sink.got) == 20, "all events")


async def test_what_nobody_wants_is_parked_and_the_rest_goes_on(tmp_path: Path) -> None:
    sink = Sink()
    sink.unwanted = {2}
    async with relaying(tmp_path, sink) as (database, metrics):
        await publish(database, *(event("s1", n) for n in range(4)))
        await eventually(lambda: len(sink.got) == 3, "the wanted ones")
        labels = {"sink": "sink", "result": "parked"}
        await eventually(
            lambda: metrics.registry.get_sample_value("siprec_deliveries_total", labels) == 1,
            "the parking",
        )

        parked = await database.read(lambda connection: outbox.parked(connection, "sink", 9))
        sink.unwanted = set()
        await database.write(lambda connection: outbox.resend(connection, "sink"))
        await eventually(lambda: len(sink.got) == 4, "the one that was parked")

    assert [(one.event.seq, one.reason) for one in parked] == [(2, "unroutable")]


async def test_an_event_that_is_declined_holds_back_its_own_session_only(tmp_path: Path) -> None:
    sink = Sink()
    sink.declined = {1}
    async with relaying(tmp_path, sink) as (database, _):
        await publish(database, event("s1", 0), event("s2", 1), event("s1", 2), event("s2", 3))
        await eventually(lambda: len(sink.got) == 2, "the other session's events")
        assert sink.got == [("s2", 2), ("s2", 4)]
        sink.declined = set()

        await eventually(lambda: len(sink.got) == 4, "the rest")
    assert sink.got[2:] == [("s1", 1), ("s1", 3)]


async def test_an_event_that_takes_long_holds_back_its_own_session_only(tmp_path: Path) -> None:
    sink = Sink()
    sink.slow = {1: asyncio.Event()}
    async with relaying(tmp_path, sink) as (database, metrics):
        await publish(database, event("s1", 0), event("s1", 1), event("s2", 2))
        await eventually(lambda: sink.got == [("s2", 3)], "what came with it")

        await publish(database, event("s3", 3), event("s1", 4), event("s2", 5))
        await eventually(lambda: len(sink.got) == 3, "what came later")
        assert sink.got[1:] == [("s3", 4), ("s2", 6)]
        sink.slow.pop(1).set()

        await eventually(lambda: len(sink.got) == 6, "the rest")
        await eventually(
            lambda: (
                metrics.registry.get_sample_value("siprec_outbox_backlog", {"sink": "sink"}) == 0
            ),
            "an empty outbox",
        )
    assert [seq for session, seq in sink.got if session == "s1"] == [1, 2, 5]
    assert sink.tries == 6


async def test_a_sink_that_declines_everything_is_left_alone_for_a_while(tmp_path: Path) -> None:
    sink = Sink()
    sink.declined = set(range(1, 501))
    async with relaying(tmp_path, sink) as (database, _):
        await publish(database, *(event(f"t{n}", n) for n in range(500)))
        await eventually(lambda: sink.tries > 0, "a try")
        await asyncio.sleep(0.3)
        tried = sink.tries
        sink.declined = set()

        await eventually(lambda: len(sink.got) == 500, "all of them")
    assert tried < 300  # at most what was under way when it was noticed, and a few rounds of that


async def test_an_event_that_will_never_be_taken_is_parked_at_once(tmp_path: Path) -> None:
    sink = Sink()
    sink.unacceptable = {1}
    async with relaying(tmp_path, sink) as (database, metrics):
        await publish(database, event("s1", 0), event("s1", 1))

        await eventually(lambda: sink.got == [("s1", 2)], "the next one")
        labels = {"sink": "sink", "result": "parked"}
        await eventually(
            lambda: metrics.registry.get_sample_value("siprec_deliveries_total", labels) == 1,
            "the parking",
        )
        parked = await database.read(lambda connection: outbox.parked(connection, "sink", 9))
    assert [(one.event.seq, one.reason) for one in parked] == [(1, "too large")]


async def test_what_was_dropped_while_it_was_tried_stays_dropped(tmp_path: Path) -> None:
    sink = Sink()
    sink.unacceptable, sink.slow = {1}, {1: asyncio.Event()}
    async with relaying(tmp_path, sink) as (database, _):
        await publish(database, event("s1", 0), event("s1", 1))
        await eventually(lambda: sink.tries == 1, "a try")
        await database.write(partial(outbox.drop, sink="sink", note="retired", pending=True))
        sink.slow.pop(1).set()
        await publish(database, event("s1", 2))
        await eventually(lambda: len(sink.got) == 2, "what came after it")

        parked = await database.read(lambda connection: outbox.parked(connection, "sink", 9))
        sent_again = await database.write(partial(outbox.resend, sink="sink"))
    assert (parked, sent_again) == ([], 0)


async def test_a_database_that_takes_no_note_does_not_have_events_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Sink()
    noted = outbox.delivered
    full = True

    def note(*arguments: Any) -> None:
        if full:
            raise OperationalError("UPDATE", {}, Exception("database or disk is full"))
        noted(*arguments)

    monkeypatch.setattr(outbox, "delivered", note)
    async with relaying(tmp_path, sink) as (database, metrics):
        await publish(database, *(event("s1", n) for n in range(5)))
        await eventually(lambda: len(sink.got) == 5, "all events")
        await asyncio.sleep(0.8)  # longer than its first pause
        full = False

        labels = {"sink": "sink"}
        await eventually(
            lambda: metrics.registry.get_sample_value("siprec_outbox_backlog", labels) == 0,
            "an empty outbox",
        )
    assert sink.tries == 5


async def test_of_nodes_that_share_a_database_one_relays_and_another_follows_it(
    postgresql: Postgresql,
) -> None:
    url = postgresql.new_database()
    at_a, at_b = Sink(), Sink()
    async with node(url, "b", at_b) as b:
        async with node(url, "a", at_a) as a:
            await asyncio.gather(
                *(publish(one, event("s1", n)) for n, one in enumerate([a, b] * 50))
            )
            await eventually(lambda: len(at_a.got + at_b.got) == 100, "all events")
            assert [] in (at_a.got, at_b.got)
            got = at_a.got + at_b.got
            leader, other = (at_a, at_b) if at_a.got else (at_b, at_a)
            leader.away = True  # the sink is in reach of the other node only

            await publish(a, event("s1", 100))
            await eventually(lambda: len(other.got) == 1, "the other node")
        at_b.away = False
        await publish(b, event("s1", 101))
        await eventually(lambda: len(at_a.got + at_b.got) == 102, "the node that is left")

    seqs = [seq for _, seq in got]
    assert seqs == sorted(set(seqs))
