"""An outbox, its relay and a real broker, and what a consumer counts."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from harness.bridge import Bridge
from harness.rabbitmq import RabbitMq
from siprec_bridge.delivery import AmqpSink, Brokers, Relay, envelope
from siprec_bridge.delivery.amqp import Topology
from siprec_bridge.store import Database, Event, outbox
from siprec_bridge.telemetry import Metrics

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def event(session: str, number: int, filling: int = 0) -> Event:
    facts = envelope.SessionFacts(session, "c", NOW, call_ids={"x": "x" * filling})
    return envelope.session_updated(facts, number)


@dataclass
class Delivery:
    """A relay at work between an outbox and a broker."""

    database: Database
    sink: AmqpSink
    metrics: Metrics
    wake: Callable[[], None]

    async def publish(self, *events: Event) -> None:
        await self.database.write(lambda c: outbox.append(c, events, [self.sink.name]))

    async def backlog(self) -> outbox.SinkBacklog:
        return await self.database.read(lambda c: outbox.backlog(c, self.sink.name))

    async def parked(self) -> list[outbox.ParkedEvent]:
        return await self.database.read(lambda c: outbox.parked(c, self.sink.name, 100))

    def count(self, result: str) -> float:
        labels = {"sink": self.sink.name, "result": result}
        name = "siprec_deliveries_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class HasBacklog(Protocol):
    """Whatever tells what has yet to be delivered."""

    async def backlog(self) -> outbox.SinkBacklog: ...


async def outbox_of(bridge: Bridge) -> dict[str, dict[str, Any]]:
    """Each sink as the API shows it."""
    status, text = await bridge.get("/api/deliveries")
    assert status == 200
    return {one["name"]: one for one in json.loads(text)["sinks"]}


async def drained(delivery: HasBacklog, patience_s: float = 30.0) -> None:
    """Wait until everything is confirmed, and noted: the note comes after the confirm."""
    async with asyncio.timeout(patience_s):
        while (await delivery.backlog()).pending:  # noqa: ASYNC110  it is in the database
            await asyncio.sleep(0.02)


@asynccontextmanager
async def delivering(
    folder: Path,
    broker: RabbitMq | Brokers,
    exchange: str,
    *,
    topology: Topology = "declare",
    publish_timeout_s: float = 15.0,
) -> AsyncIterator[Delivery]:
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()
    metrics = Metrics()
    sink = AmqpSink(
        broker if isinstance(broker, Brokers) else Brokers(broker.url),
        metrics,
        exchange=exchange,
        topology=topology,
        publish_timeout_s=publish_timeout_s,
    )
    relay = Relay(database, sink, metrics)
    database.on_commit(relay.wake)
    running = asyncio.create_task(relay.run())
    try:
        yield Delivery(database, sink, metrics, relay.wake)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await sink.close()
        await database.stop()


@asynccontextmanager
async def bound_queue(
    broker: RabbitMq,
    name: str,
    key: str = "#",
    *,
    queue_name: str = "",
    arguments: dict[str, str | int] | None = None,
) -> AsyncIterator[AbstractQueue]:
    """A durable queue that gets what is published to the exchange `name`."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(
            queue_name or name, durable=True, arguments=dict(arguments or {})
        )
        await queue.bind(exchange, key)
        yield queue


async def take(queue: AbstractQueue, distinct: int) -> list[AbstractIncomingMessage]:
    """Messages until so many different ones are here."""
    messages: list[AbstractIncomingMessage] = []
    async with asyncio.timeout(30), queue.iterator() as incoming:
        async for message in incoming:
            await message.ack()
            messages.append(message)
            if len({one.message_id for one in messages}) == distinct:
                return messages
    raise AssertionError("unreachable")


def ids(messages: list[AbstractIncomingMessage]) -> list[str | None]:
    return [one.message_id for one in messages]


@dataclass(frozen=True)
class Tally:
    """What was sent and what a consumer got of it."""

    sent: int
    received: int
    distinct: int
    missing: int
    in_order: bool  # within each session, at its first time

    @classmethod
    def of(cls, sent: Sequence[Event], got: Sequence[AbstractIncomingMessage]) -> "Tally":
        """Compare."""
        counted = Counter(one.message_id for one in got)
        first = {id: place for place, id in reversed(list(enumerate(ids(list(got)))))}
        by_session: dict[str, list[int]] = {}
        for one in sent:
            by_session.setdefault(one.session_id, []).append(first.get(one.id, -1))
        return cls(
            len(sent),
            len(got),
            len(counted),
            sum(one.id not in counted for one in sent),
            all(places == sorted(places) for places in by_session.values()),
        )
