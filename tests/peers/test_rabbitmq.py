"""Events at a real RabbitMQ, through its outages and ours."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from harness.bridge import eventually, listening, running_bridge, start_bridge
from harness.calls import call, finals, tones
from harness.rabbitmq import RabbitMq
from harness.recognisers import recogniser

pytestmark = pytest.mark.peer


@asynccontextmanager
async def bound_queue(broker: RabbitMq, name: str, key: str = "#") -> AsyncIterator[AbstractQueue]:
    """A durable queue that gets what is published to the exchange of the same name."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind(exchange, key)
        yield queue


async def take(queue: AbstractQueue, kind: str) -> list[AbstractIncomingMessage]:
    """Messages up to the first one of this type."""
    messages: list[AbstractIncomingMessage] = []
    async with asyncio.timeout(30), queue.iterator() as incoming:
        async for message in incoming:
            await message.ack()
            messages.append(message)
            if message.type == kind:
                return messages
    raise AssertionError("unreachable")


async def test_a_queue_gets_every_event_as_a_cloud_event(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        bound_queue(rabbitmq, "plain") as queue,
        running_bridge(
            tmp_path / "data",
            WHISPER_BINARY_PATH=speaks,
            AMQP_URL=rabbitmq.url,
            AMQP_EXCHANGE="plain",
        ) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge, legs=tones(0.5))
        messages = await take(queue, "transcript.final")
        await finals(bridge, events)
        status, _ = await bridge.get("/health/ready")
        _, metrics = await bridge.get("/metrics")

    assert status == 200
    assert 'siprec_deliveries_total{result="delivered",sink="amqp"} 5.0' in metrics
    for message, event in zip(messages, events, strict=True):
        assert message.message_id == event["id"]
        assert message.routing_key == f"{event['type']}.{event['subject']}"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.content_type == "application/json"
        assert json.loads(message.body) == event["data"]
        headers = {name.removeprefix("ce-"): value for name, value in message.headers.items()}
        for name in ("specversion", "id", "source", "type", "subject", "time", "sequence"):
            assert headers[name] == event[name]


async def test_a_broker_that_is_away_gets_everything_when_it_comes_back(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with bound_queue(rabbitmq, "away"):
        pass
    await asyncio.to_thread(rabbitmq.kill9)
    async with (
        running_bridge(
            tmp_path / "data",
            WHISPER_BINARY_PATH=speaks,
            AMQP_URL=rabbitmq.url,
            AMQP_EXCHANGE="away",
        ) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge, legs=tones(0.5))
        await finals(bridge, events)
        status, ready = await bridge.get("/health/ready")

        await asyncio.to_thread(rabbitmq.start)
        async with bound_queue(rabbitmq, "away") as queue:
            messages = await take(queue, "transcript.final")

    assert status == 503
    assert json.loads(ready)["facts"]["amqp"] != "ok"
    assert [one.message_id for one in messages] == [one["id"] for one in events]


async def test_a_bridge_killed_before_the_publish_publishes_after_its_restart(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    data, speaks = tmp_path / "data", str(recogniser(tmp_path, "speaks"))
    options = {
        "WHISPER_BINARY_PATH": speaks, "AMQP_URL": rabbitmq.url, "AMQP_EXCHANGE": "killed",
    }  # fmt: skip
    async with bound_queue(rabbitmq, "killed"):
        pass
    await asyncio.to_thread(rabbitmq.kill9)
    bridge = await start_bridge(data, **options)
    async with listening(bridge) as events:
        await call(bridge, legs=tones(0.5))
        await finals(bridge, events)
    await bridge.kill()
    await asyncio.to_thread(rabbitmq.start)

    async with (
        running_bridge(data, **options) as again,
        bound_queue(rabbitmq, "killed") as queue,
    ):
        messages = await take(queue, "transcript.final")
        await eventually(lambda: bool(again.logged("amqp.connected")), "a connection", again)

    assert [one.message_id for one in messages] == [one["id"] for one in events]


async def test_what_nobody_wants_is_parked_and_holds_up_nothing(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        bound_queue(rabbitmq, "picky", "transcript.final.#") as queue,
        running_bridge(
            tmp_path / "data",
            WHISPER_BINARY_PATH=speaks,
            AMQP_URL=rabbitmq.url,
            AMQP_EXCHANGE="picky",
        ) as bridge,
    ):
        await call(bridge, legs=tones(0.5))
        messages = await take(queue, "transcript.final")
        await bridge.wait_for_log("delivery.parked", 4)

    assert [one.type for one in messages] == ["transcript.final"]
    parked = {str(line["reason"]) for line in bridge.logged("delivery.parked")}
    assert parked == {"unroutable: no queue is bound to its routing key"}
