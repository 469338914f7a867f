"""What befalls a real RabbitMQ and the way to it: everything arrives, with the id that it had.

At least once: counted are messages sent, received, distinct and missing; missing is 0.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from harness.bridge import eventually
from harness.deliveries import Delivery, Tally, bound_queue, delivering, drained, event, take
from harness.proxy import Proxy, proxy_to
from harness.rabbitmq import RabbitMq
from siprec_bridge.delivery import Brokers
from siprec_bridge.store import Event, outbox

pytestmark = pytest.mark.peer


def events(count: int, sessions: int = 20) -> list[Event]:
    return [event(f"s{number % sessions}", number) for number in range(count)]


def through(broker: RabbitMq, port: int, heartbeat_s: int = 15) -> Brokers:
    return Brokers(broker.url.replace(str(broker.port), str(port)), heartbeat_s=heartbeat_s)


async def everything_in(broker: RabbitMq, name: str) -> list[AbstractIncomingMessage]:
    """All messages of a queue, in order."""
    async with channel_of(broker) as channel:
        queue = await channel.get_queue(name)
        found = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            found.append(message)
        return found


@asynccontextmanager
async def channel_of(broker: RabbitMq) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(broker.url) as connection:
        yield await connection.channel()


def more_than(delivery: Delivery, count: float) -> bool:
    return delivery.count("delivered") > count


def arrived(proxy: Proxy, octets: int) -> bool:
    return proxy.asked > octets


async def resend(delivery: Delivery) -> None:
    await delivery.database.write(lambda c: outbox.resend(c, delivery.sink.name))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_broker_killed_twice_under_load_and_then_away_for_long_gets_everything(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    name = "killed-twice"
    async with bound_queue(rabbitmq, name):
        pass
    sent: list[Event] = []
    async with delivering(tmp_path, rabbitmq, name) as delivery:

        async def load(count: int) -> None:
            for _ in range(count // 100):
                some = [event(f"s{n % 20}", len(sent) + n) for n in range(100)]
                sent.extend(some)
                await delivery.publish(*some)
                await asyncio.sleep(0.02)

        for down_s in (0.0, 20.0):
            before = delivery.count("delivered")
            loading = asyncio.create_task(load(4000))
            await eventually(partial(more_than, delivery, before + 500), "the load")
            await asyncio.to_thread(rabbitmq.kill9)
            await asyncio.sleep(down_s)
            await asyncio.to_thread(rabbitmq.start)
            await loading
        tries = delivery.count("retried")
        await drained(delivery, 90.0)

    tally = Tally.of(sent, await everything_in(rabbitmq, name))
    print(tally)  # noqa: T201  for those who run it with -s
    assert (tally.sent, tally.distinct, tally.missing) == (8000, 8000, 0)
    assert tally.in_order
    assert tries < 3000  # what was under way, and no storm while it was away


@pytest.mark.timeout(90)
async def test_a_broker_short_of_memory_is_waited_for_and_gets_nothing_twice(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    sent = events(600)
    async with (
        bound_queue(rabbitmq, "alarm") as queue,
        delivering(tmp_path, rabbitmq, "alarm", publish_timeout_s=2.0) as delivery,
    ):
        metric = delivery.metrics.registry.get_sample_value
        await delivery.publish(*sent[:100])
        await drained(delivery)
        await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.00001")
        try:
            await asyncio.sleep(0.5)
            await delivery.publish(*sent[100:])
            await eventually(lambda: metric("siprec_amqp_blocked") == 1, "the alarm")
            blocked = (delivery.sink.connected, delivery.sink.trouble)
            await asyncio.sleep(2.5)  # longer than it would wait for a confirm
            still = metric("siprec_amqp_blocked")
        finally:
            await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.4")
        await eventually(lambda: metric("siprec_amqp_blocked") == 0, "its end")
        await drained(delivery)
        got = await take(queue, distinct=600)

    assert blocked == (False, "the broker takes nothing now: its memory or disk alarm is on")
    assert still == 1
    assert Tally.of(sent, got) == Tally(600, 600, 600, 0, in_order=True)


async def test_a_connection_cut_before_the_confirms_arrive_has_them_sent_again(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    sent = events(500)
    async with (
        bound_queue(rabbitmq, "cut") as queue,
        proxy_to(rabbitmq.port) as proxy,
        delivering(tmp_path, through(rabbitmq, proxy.port), "cut") as delivery,
    ):
        await eventually(lambda: delivery.sink.connected, "a connection")
        for number in range(3):
            proxy.answers.clear()
            asked = proxy.asked
            await delivery.publish(*sent[number * 100 : number * 100 + 100])
            await eventually(partial(arrived, proxy, asked + 10_000), "the messages")
            proxy.cut()
            proxy.answers.set()
            await drained(delivery)
        await delivery.publish(*sent[300:])
        await drained(delivery)
        tally = Tally.of(sent, await everything_in(rabbitmq, queue.name))
        connections = proxy.connections

    assert (tally.sent, tally.distinct, tally.missing) == (500, 500, 0)
    assert tally.received > 500  # had arrived, and was sent again under the same id
    assert tally.in_order
    assert connections == 4


async def test_a_confirm_that_does_not_come_means_that_nobody_knows(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    sent = events(40)
    async with (
        bound_queue(rabbitmq, "mute") as queue,
        proxy_to(rabbitmq.port) as proxy,
        delivering(
            tmp_path, through(rabbitmq, proxy.port), "mute", publish_timeout_s=0.5
        ) as delivery,
    ):
        await eventually(lambda: delivery.sink.connected, "a connection")
        proxy.answers.clear()
        await delivery.publish(*sent)
        await eventually(lambda: delivery.count("retried") > 0, "the end of its patience")
        proxy.answers.set()
        await drained(delivery)
        tally = Tally.of(sent, await everything_in(rabbitmq, queue.name))

    assert (tally.distinct, tally.missing, tally.in_order) == (40, 0, True)
    assert tally.received > 40


@pytest.mark.slow
async def test_a_connection_that_has_gone_silent_is_found_out_by_its_heartbeat(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    async with (
        bound_queue(rabbitmq, "silent") as queue,
        proxy_to(rabbitmq.port) as proxy,
        delivering(tmp_path, through(rabbitmq, proxy.port, heartbeat_s=1), "silent") as delivery,
    ):
        await eventually(lambda: delivery.sink.connected, "a connection")
        proxy.answers.clear()
        proxy.asks.clear()
        await eventually(lambda: not delivery.sink.connected, "nobody there")
        proxy.answers.set()
        proxy.asks.set()
        sent = events(10)
        await delivery.publish(*sent)
        got = await take(queue, distinct=10)

    assert Tally.of(sent, got).missing == 0


async def test_messages_without_a_queue_are_parked_with_the_reason_and_arrive_when_sent_again(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    sent = events(30)
    async with delivering(tmp_path, rabbitmq, "no-queue") as delivery:
        await delivery.publish(*sent)
        await eventually(lambda: delivery.count("parked") == 30, "the parking")
        reasons = {one.reason for one in await delivery.parked()}
        async with bound_queue(rabbitmq, "no-queue") as queue:
            await resend(delivery)
            delivery.wake()
            got = await take(queue, distinct=30)

    assert reasons == {"unroutable: no queue is bound to its routing key"}
    assert Tally.of(sent, got) == Tally(30, 30, 30, 0, in_order=True)


async def test_an_exchange_deleted_in_flight_is_declared_again_and_nothing_is_lost(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    name, sent = "deleted", events(800)
    async with delivering(tmp_path, rabbitmq, name) as delivery:
        async with bound_queue(rabbitmq, name), channel_of(rabbitmq) as channel:
            await delivery.publish(*sent)
            await eventually(partial(more_than, delivery, 0), "the load")
            await channel.exchange_delete(name)
            await drained(delivery)
        parked = await delivery.parked()
        async with bound_queue(rabbitmq, name):
            await resend(delivery)
            delivery.wake()
            await drained(delivery)
    tally = Tally.of(sent, await everything_in(rabbitmq, name))

    assert parked  # with the exchange its bindings were gone
    assert (tally.distinct, tally.missing) == (800, 0)


async def test_an_exchange_that_must_be_there_is_waited_for(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    name, sent = "checked", events(20)
    async with delivering(tmp_path, rabbitmq, name, topology="check") as delivery:
        await delivery.publish(*sent)
        await eventually(lambda: "no exchange" in (delivery.sink.trouble or ""), "the check")
        trouble = delivery.sink.trouble or ""
        async with bound_queue(rabbitmq, name) as queue:
            got = await take(queue, distinct=20)

    assert "AMQP_TOPOLOGY=check: it must be there" in trouble
    assert Tally.of(sent, got) == Tally(20, 20, 20, 0, in_order=True)
