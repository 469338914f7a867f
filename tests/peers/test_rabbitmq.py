"""Events at a real RabbitMQ, through its outages and ours."""

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from harness.bridge import Bridge, eventually, listening, running_bridge, start_bridge
from harness.calls import call, finals, tones
from harness.deliveries import bound_queue, outbox_of
from harness.rabbitmq import RabbitMq
from harness.recognisers import recogniser
from harness.tokens import given

pytestmark = pytest.mark.peer

CONSUMER = Path(__file__).parents[2] / "docs" / "examples" / "amqp_consumer.py"


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
        await bridge.wait_for_metric('siprec_deliveries_total{result="delivered",sink="amqp"} 5.0')

    assert status == 200
    for message, event in zip(messages, events, strict=True):
        assert message.message_id == event["id"]
        assert message.routing_key == f"{event['type']}.{event['subject']}"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.content_type == "application/json"
        assert json.loads(message.body) == event["data"]
        headers = {name.removeprefix("ce-"): value for name, value in message.headers.items()}
        for name in ("specversion", "id", "source", "type", "subject", "time", "sequence"):
            assert headers[name] == event[name]


async def test_a_large_transcript_comes_by_reference_and_the_example_consumer_fetches_it(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    speaks, database = str(recogniser(tmp_path, "speaks")), tmp_path / "consumer.db"
    token = given("consumer", "read")
    async with (
        bound_queue(rabbitmq, "large-ones") as queue,
        bound_queue(rabbitmq, "large-ones", "transcript.#", queue_name="by-example"),
        running_bridge(
            tmp_path / "data",
            WHISPER_BINARY_PATH=speaks,
            AMQP_URL=rabbitmq.url,
            AMQP_EXCHANGE="large-ones",
            AMQP_INLINE_LIMIT="1000",
            HTTP_PUBLIC_URL="https://bridge.example.com/",
            HTTP_TOKENS=token.line,
        ) as bridge,
    ):
        await call(bridge, legs=tones(0.5))
        message = (await take(queue, "transcript.final"))[-1]
        path = f"/api/events/{message.message_id}/data"
        consumer = await asyncio.create_subprocess_exec(
            sys.executable, str(CONSUMER), stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {
                "AMQP_URL": rabbitmq.url, "QUEUE": "by-example", "DATABASE": str(database),
                "BRIDGE_URL": bridge.http, "BRIDGE_TOKEN": token.secret,
            },
        )  # fmt: skip
        try:
            await eventually(lambda: len(consumed(database)) == 1, "what the consumer does", bridge)
        finally:
            consumer.kill()
            await consumer.wait()
        refused, _ = await bridge.get(path)
        async with (
            aiohttp.ClientSession(bridge.http, headers=token.headers) as session,
            session.get(path) as answer,
        ):
            whole = await answer.read()

    sent, fetched = json.loads(message.body), json.loads(whole)
    assert refused == 401
    assert sent.pop("reference") == {
        "url": f"https://bridge.example.com{path}",
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
        "media_type": "application/json",
    }
    assert len(message.body) < len(whole)
    assert fetched["utterances"]
    assert consumed(database) == [fetched]
    assert fetched.pop("reference") is None
    assert sent == fetched | {"utterances": [], "text": sent["text"]}


def consumed(database: Path) -> list[object]:
    """The transcripts that the example has stored."""
    with contextlib.closing(sqlite3.connect(database, timeout=5)) as connection:
        try:
            found = connection.execute("SELECT data FROM events WHERE type = 'transcript.final'")
            return [json.loads(data) for (data,) in found]
        except sqlite3.OperationalError:  # it has not made its tables yet
            return []


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

    # A call was taken, and nothing is lost: no reason to send others elsewhere.
    assert status == 200
    told = json.loads(ready)
    assert (told["ready"], told["degraded"]) == (True, True)
    assert told["facts"]["amqp"] != "ok"
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


@contextlib.asynccontextmanager
async def called(
    folder: Path, rabbitmq: RabbitMq, exchange: str, **options: str
) -> AsyncIterator[tuple[Bridge, list[AbstractIncomingMessage]]]:
    """A bridge after a call, and what came of it to a queue that wants final transcripts only."""
    async with (
        bound_queue(rabbitmq, exchange, "transcript.final.#") as queue,
        running_bridge(
            folder / "data",
            WHISPER_BINARY_PATH=str(recogniser(folder, "speaks")),
            AMQP_URL=rabbitmq.url,
            AMQP_EXCHANGE=exchange,
            **options,
        ) as bridge,
    ):
        await call(bridge, legs=tones(0.5))
        yield bridge, await take(queue, "transcript.final")


async def drained(bridge: Bridge) -> dict[str, Any]:
    """The bridge's one sink, when nothing waits for it: that is noted after the broker's confirm."""
    async with asyncio.timeout(30):
        while True:
            (sink,) = (await outbox_of(bridge)).values()
            if not sink["pending"]:
                return sink
            await asyncio.sleep(0.05)


async def test_types_that_are_not_asked_for_are_not_sent_and_never_parked(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    types = "transcript.final, transcript.failed"
    async with called(tmp_path, rabbitmq, "choosy", AMQP_TYPES=types) as (bridge, messages):
        sink = await drained(bridge)
        parked = bridge.logged("delivery.parked")

    assert [one.type for one in messages] == ["transcript.final"]
    assert (sink["name"], sink["pending"], sink["parked"], parked) == ("amqp", 0, 0, [])


async def test_what_nobody_wants_is_parked_and_holds_up_nothing(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    async with called(tmp_path, rabbitmq, "picky") as (bridge, messages):
        await bridge.wait_for_log("delivery.parked", 4)

    assert [one.type for one in messages] == ["transcript.final"]
    parked = {str(line["reason"]) for line in bridge.logged("delivery.parked")}
    assert parked == {"unroutable: no queue is bound to its routing key"}
