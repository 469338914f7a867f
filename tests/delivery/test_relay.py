"""The relay between a real outbox and a sink in the test's hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.bridge import eventually
from siprec_bridge.delivery import Relay, Returned, Unreachable, envelope
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings
from siprec_bridge.telemetry import Metrics

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Sink:
    name = "sink"

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.away = False
        self.unwanted: set[int] = set()
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
