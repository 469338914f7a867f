"""From the outbox to a real RabbitMQ: how fast a backlog drains, and how soon an event is there.

    benchmarks/outbox.py [--events 30000] [--sessions 500] [--write build/bench/outbox.json]

The backlog: segments of transcripts, with words, in SQLite; a durable queue takes them, persistent,
each confirmed. What counts is what the bridge's side spends, in seconds of CPU of this process
with all its threads; the broker is another process. At rest: one event at a time, from the moment
that its commit returned to the confirm of the broker, and to a consumer of another connection.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import structlog

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness.rabbitmq import RabbitMq
from siprec_bridge.delivery import AmqpSink, Brokers, Relay, envelope
from siprec_bridge.store import Database, Event, outbox
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Conversation, Participant, Utterance, Word

DRAIN_GOAL, LATENCY_GOAL_MS = 5000.0, 2.5
START = datetime(2026, 1, 1, tzinfo=UTC)
EXCHANGE = "bench"
LATENCY_EVENTS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--words", type=int, default=12, help="in a segment")
    parser.add_argument("--profile", type=Path, help="write a profile of the drain's event loop")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if not RabbitMq.installed():
        sys.exit("needs rabbitmq-server")
    with tempfile.TemporaryDirectory() as folder:
        broker = RabbitMq(Path(folder) / "rabbitmq")
        broker.start()
        try:
            results = asyncio.run(measure(Path(folder), broker, options))
        finally:
            broker.stop()
    for one in results:
        verdict = "" if one["goal"] is None else f"(goal {one['goal']:g})  "
        verdict += "" if one["ok"] is None else "ok" if one["ok"] else "MISSED"
        print(f"{one['name']:<52} {one['value']:10.2f} {one['unit']:<6} {verdict}")
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(results, indent=1) + "\n")


async def measure(folder: Path, broker: RabbitMq, options: argparse.Namespace) -> list[Any]:
    """Fill, drain, then event by event."""
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()
    metrics = Metrics()
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(
            EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True
        )
        queue = await channel.declare_queue("drained", durable=True)
        await queue.bind(exchange, "#")
        size = await fill(database, options)
        sink = AmqpSink(Brokers(broker.url), metrics, exchange=EXCHANGE)
        relay = Relay(database, sink, metrics)
        try:
            results = await drain(database, relay, options)
            results[0]["how"] += f"; {size:.0f} octets each"
            held = (await channel.declare_queue("drained", durable=True)).declaration_result
            if held.message_count != options.events:
                sys.exit(f"{options.events} events, {held.message_count} in the queue")
            await queue.unbind(exchange, "#")
            results += await at_rest(database, relay, sink, channel, exchange)
        finally:
            await sink.close()
            await database.stop()
    return results


async def fill(database: Database, options: argparse.Namespace) -> float:
    """Append the backlog; returns the mean size of an event's body."""
    a_session = -(-options.events // options.sessions)
    events = [
        one
        for number in range(options.sessions)
        for one in segments(f"session-{number:06}", a_session, options.words)
    ][: options.events]
    for first in range(0, len(events), 5000):
        some = events[first : first + 5000]

        await database.write(partial(outbox.append, new_events=some, sinks=["amqp"]))
    return statistics.mean(len(one.body) for one in events)


def segments(session: str, count: int, words: int) -> list[Event]:
    """The events of a transcript, but for the last."""
    speaker = Participant(id="p1", name="Ann Example", aor="sip:ann@example.com")
    utterances = tuple(
        Utterance(
            label="1",
            participant=speaker,
            start=5.0 * number,
            end=5.0 * number + 4,
            starts_at=START + timedelta(seconds=5 * number),
            ends_at=START + timedelta(seconds=5 * number + 4),
            text=" ".join(["something"] * words),
            words=tuple(
                Word(
                    text="something",
                    start=5 * number + word / 4,
                    end=5 * number + word / 4 + 0.2,
                    probability=0.93,
                )
                for word in range(words)
            ),
        )
        for number in range(count)
    )
    conversation = Conversation(
        session_id=session,
        sip_call_id=f"{session}@192.0.2.7",
        started_at=START,
        ended_at=START + timedelta(seconds=5 * count),
        duration=5.0 * count,
        participants=(speaker,),
        utterances=utterances,
        provider="whisper",
        model="base",
    )
    return envelope.transcript_events(conversation, 1)[:-1]


async def drain(database: Database, relay: Relay, options: argparse.Namespace) -> list[Any]:
    """How long the relay takes for the whole backlog, on the clock and in CPU."""
    profiler = None
    if options.profile is not None:
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
    begun, cpu = time.perf_counter(), time.process_time()
    running = asyncio.create_task(relay.run())
    left = options.events
    while left:
        await asyncio.sleep(0.25)
        left = (await database.read(lambda c: outbox.backlog(c, "amqp"))).pending
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(options.profile)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    how = f"{options.events} segments of {options.sessions} sessions"
    return [
        result("confirmed a second of one core", options.events / cpu, "/s", DRAIN_GOAL, how),
        result("confirmed a second on the clock, broker beside it", options.events / wall, "/s"),
    ]


async def at_rest(
    database: Database, relay: Relay, sink: AmqpSink, channel: Any, exchange: Any
) -> list[Any]:
    """One event at a time, with pauses in between."""
    queue = await channel.declare_queue("at-rest", durable=True)
    await queue.bind(exchange, "#")
    handed: dict[str, float] = {}
    confirmed: dict[str, float] = {}
    arrived: dict[str, float] = {}
    publish = sink.publish

    async def timed(event: Event) -> None:
        handed[event.id] = time.perf_counter()
        await publish(event)
        confirmed[event.id] = time.perf_counter()

    sink.publish = timed  # type: ignore[method-assign]

    def take(message: Any) -> None:
        arrived[message.message_id] = time.perf_counter()

    await queue.consume(take, no_ack=True)
    database.on_commit(relay.wake)
    committed_at = 0.0
    running = asyncio.create_task(relay.run())
    await asyncio.sleep(1.0)
    to_sink, to_confirm, to_consumer = [], [], []
    for number, event in enumerate(segments("at-rest", LATENCY_EVENTS, 12)):
        await asyncio.sleep(0.02 + number % 7 / 1000)
        await database.write(partial(outbox.append, new_events=[event], sinks=["amqp"]))
        committed_at = time.perf_counter()
        while event.id not in arrived or event.id not in confirmed:  # noqa: ASYNC110  nothing else may run
            await asyncio.sleep(0.0005)
        to_sink.append(1000 * (handed[event.id] - committed_at))
        to_confirm.append(1000 * (confirmed[event.id] - committed_at))
        to_consumer.append(1000 * (arrived[event.id] - committed_at))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    how = f"{LATENCY_EVENTS} events, durable queue, persistent"
    return [
        result("commit to the publish at rest, median", percentile(to_sink, 50), "ms"),
        result(
            "commit to confirm at rest, median",
            percentile(to_confirm, 50),
            "ms",
            LATENCY_GOAL_MS,
            how,
        ),
        result("commit to confirm at rest, 95 %", percentile(to_confirm, 95), "ms"),
        result("commit to a consumer at rest, median", percentile(to_consumer, 50), "ms"),
        result("commit to a consumer at rest, 95 %", percentile(to_consumer, 95), "ms"),
    ]


def percentile(values: Sequence[float], share: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * share // 100)]


def result(
    name: str, value: float, unit: str, goal: float | None = None, how: str = ""
) -> dict[str, Any]:
    ok = None if goal is None else value >= goal if unit == "/s" else value <= goal
    return {"name": name, "value": value, "unit": unit, "goal": goal, "ok": ok, "how": how}


if __name__ == "__main__":
    main()
