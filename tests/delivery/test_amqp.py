"""The AMQP sink and its relay at a real RabbitMQ: what arrives, and what the broker can refuse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from harness.bridge import eventually
from harness.rabbitmq import RabbitMq
from siprec_bridge.delivery import AmqpSink, Relay, Unreachable, envelope
from siprec_bridge.store import Database, Event, outbox
from siprec_bridge.telemetry import Metrics

pytestmark = pytest.mark.peer

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


@asynccontextmanager
async def delivering(
    folder: Path, broker: RabbitMq, exchange: str, *, publish_timeout_s: float = 15.0
) -> AsyncIterator[Delivery]:
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()
    metrics = Metrics()
    sink = AmqpSink(broker.url, metrics, exchange=exchange, publish_timeout_s=publish_timeout_s)
    relay = Relay(database, sink, metrics)
    database.on_commit(relay.wake)
    running = asyncio.create_task(relay.run())
    try:
        yield Delivery(database, sink, metrics)
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


async def test_a_full_queue_holds_back_its_session_in_order_and_no_other(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    name = "full"
    ours = [event("s1", number) for number in range(3)]
    others = [event(f"t{number}", number) for number in range(100)]
    full: dict[str, str | int] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with (
        bound_queue(rabbitmq, name, "#.s1", arguments=full) as queue,
        bound_queue(rabbitmq, name, "#", queue_name="others") as everything,
        delivering(tmp_path, rabbitmq, name) as delivery,
    ):
        await delivery.publish(*ours, *others)
        await take(everything, distinct=102)  # 1 and 2 of s1 too: a nack speaks for all queues
        await eventually(lambda: delivery.count("retried") >= 1, "a nack")
        assert delivery.count("delivered") == 101

        heard = await take(queue, distinct=3)

        await eventually(lambda: delivery.count("delivered") == 103, "all of them")
    assert list(dict.fromkeys(ids(heard))) == [one.id for one in ours]


async def test_an_event_that_is_too_large_is_parked_and_its_neighbours_arrive(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    large = event("s1", 0, filling=1_500_000)
    small = [event(f"s{number % 7}", number) for number in range(1, 40)]
    async with (
        bound_queue(rabbitmq, "large") as queue,
        delivering(tmp_path, rabbitmq, "large") as delivery,
    ):
        await delivery.publish(large, *small)

        heard = await take(queue, distinct=39)

        await eventually(lambda: delivery.count("parked") == 1, "the parking")
        await eventually(lambda: delivery.count("delivered") == 39, "the others' confirms")
        async with asyncio.timeout(10):
            while (await delivery.backlog()).pending:  # noqa: ASYNC110  the notes come later
                await asyncio.sleep(0.02)
        (parked,) = await delivery.parked()
    assert set(ids(heard)) == {one.id for one in small}
    assert parked.event.id == large.id
    assert "larger than" in parked.reason


async def test_a_broker_that_does_not_let_us_in_is_named_with_its_reason(
    rabbitmq: RabbitMq,
) -> None:
    wrong = {
        rabbitmq.url.replace("guest:guest", "guest:wrong"): "ACCESS_REFUSED",
        f"{rabbitmq.url}nowhere": "virtual host nowhere",
        "amqp://127.0.0.1:1/": "Connect call failed",
    }
    for url, reason in wrong.items():
        sink = AmqpSink(url, Metrics())

        with pytest.raises(Unreachable, match=reason):
            await sink.connect()
