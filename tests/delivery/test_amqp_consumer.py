"""What operators are given for their side of the broker: its definitions, and a consumer."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from harness.bridge import eventually
from harness.deliveries import delivering, event
from harness.rabbitmq import RabbitMq
from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import EVENT_MODELS
from siprec_bridge.parts import recipients_of
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import load

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
CONSUMER = ROOT / "docs" / "examples" / "amqp_consumer.py"


@pytest.fixture(scope="module")
def defined(rabbitmq: RabbitMq) -> RabbitMq:
    """The broker with config/rabbitmq/definitions.json in it."""
    rabbitmq.ctl("import_definitions", str(ROOT / "config" / "rabbitmq" / "definitions.json"))
    return rabbitmq


@contextmanager
def consuming(broker: RabbitMq, database: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"AMQP_URL": broker.url, "DATABASE": str(database)}
    with subprocess.Popen(
        [sys.executable, str(CONSUMER)], env=environment, stderr=subprocess.PIPE, text=True
    ) as consumer:
        try:
            yield consumer
        finally:
            consumer.kill()


def stored(database: Path) -> list[str]:
    """Sequence numbers, so to speak, of what the consumer has done, in order."""
    if not database.exists():
        return []
    connection = sqlite3.connect(database, timeout=5)
    try:
        return [str(one) for (one,) in connection.execute("SELECT session_id FROM events")]
    except sqlite3.OperationalError:  # it has not made its tables yet
        return []
    finally:
        connection.close()


async def one_of(queue: AbstractQueue) -> AbstractIncomingMessage:
    async with asyncio.timeout(10):
        while (message := await queue.get(fail=False)) is None:  # noqa: ASYNC110  basic.get
            await asyncio.sleep(0.02)
    return message


async def test_the_queues_are_quorum_queues_that_keep_what_nobody_can_read(
    tmp_path: Path, defined: RabbitMq
) -> None:
    async with await aio_pika.connect(defined.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            "siprec.transcripts", durable=True, arguments={"x-queue-type": "quorum"}
        )
        dead = await channel.get_queue("siprec.dead-letters")
        async with delivering(tmp_path, defined, "siprec", topology="check") as delivery:
            await delivery.publish(envelope.transcript_failed(
                "s1", "c", group_id=None, job_id="j", attempts=5, reason="r", at=event("s", 1).at
            ))  # fmt: skip
            await eventually(lambda: delivery.count("delivered") == 1, "the confirm")
            for _ in range(6):  # the delivery-limit of the policy, and once more
                await (await one_of(queue)).nack(requeue=True)
            letter = await one_of(dead)
            await letter.ack()

    assert letter.type == "transcript.failed"
    assert letter.headers["x-first-death-reason"] == "delivery_limit"
    assert letter.message_id == letter.headers["ce-id"]


def test_its_queue_gets_every_type_so_that_none_is_parked() -> None:
    file = ROOT / "config" / "rabbitmq" / "definitions.json"
    bindings = [
        one["routing_key"].removesuffix("#")
        for one in json.loads(file.read_text())["bindings"]
        if one["source"] == "siprec"
    ]

    assert [kind for kind in EVENT_MODELS if not kind.startswith(tuple(bindings))] == []


def test_a_type_that_is_none_is_told() -> None:
    settings = load({"AMQP_URL": "amqp://broker/", "AMQP_TYPES": "transcript.finals"})

    with pytest.raises(
        ConfigurationError, match=r"AMQP_TYPES=transcript\.finals.*transcript\.final,"
    ):
        recipients_of(settings, [])


async def test_the_example_does_everything_once_though_it_is_killed_and_gets_things_twice(
    tmp_path: Path, defined: RabbitMq
) -> None:
    database = tmp_path / "transcripts.db"
    sent = [
        envelope.transcript_failed(
            f"s{number}", "c", group_id=None, job_id="j", attempts=5, reason="r",
            at=event("s", 1).at,
        )
        for number in range(400)
    ]  # fmt: skip
    async with delivering(tmp_path, defined, "siprec", topology="check") as delivery:
        with consuming(defined, database) as consumer:
            await delivery.publish(*sent[:200])
            await eventually(lambda: len(stored(database)) > 20, "some of it")
            consumer.send_signal(signal.SIGKILL)
        await delivery.publish(*sent[200:])
        await eventually(lambda: delivery.count("delivered") == 400, "the confirms")
    again = tmp_path / "again"  # an outbox that does not know that it has sent them
    again.mkdir()
    async with delivering(again, defined, "siprec", topology="check") as delivery:
        await delivery.publish(*sent[150:250])
        await eventually(lambda: delivery.count("delivered") == 100, "the confirms")
    async with await aio_pika.connect(defined.url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("siprec")
        for body in (b"{", b'{"session_id": 7}'):
            message = aio_pika.Message(body, message_id=body.decode(), type="transcript.final")
            await exchange.publish(message, "transcript.final.x")
        dead = await channel.get_queue("siprec.dead-letters")
        with consuming(defined, database) as consumer:
            await eventually(lambda: len(stored(database)) == 400, "all of it")
            letters = []
            async with asyncio.timeout(10), dead.iterator(no_ack=True) as incoming:
                async for letter in incoming:
                    letters.append(letter.message_id)
                    if len(letters) == 2:
                        break
            consumer.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(consumer.wait, 10)

    assert sorted(stored(database)) == sorted(f"s{number}" for number in range(400))
    assert letters == ["{", '{"session_id": 7}']
    assert status == 0
