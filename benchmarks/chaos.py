#!/usr/bin/env python3
"""Everything fails at random while calls come in: is anything lost, or delivered as something new?

    benchmarks/chaos.py [--minutes 10] [--rate 1.5] [--seed N] [--kills N] [--postgresql]
                        [--keep FOLDER] [--set NAME=VALUE]

Real peers: our caller, RabbitMQ, a webhook's endpoint, three WebSocket listeners, SQLite or PostgreSQL. Faults follow one
another: the bridge is killed (kill -9), the broker is killed or blocked by its memory alarm, the
database is locked or restarted, the endpoint answers 500 and 429 or not at all, the recogniser fails at everything, hangs or is cut short, several
of these at once; the listeners' connections are cut all the time. Then all is healed, and counted. Exit code 1 when
anything is missing. `--kills` ends it after so many kills of the bridge.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

import aio_pika
from aiohttp import web
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests")]

from harness.bridge import Bridge, start_bridge  # noqa: E402
from harness.postgresql import Postgresql  # noqa: E402
from harness.rabbitmq import RabbitMq  # noqa: E402
from harness.recognisers import BEHAVIOURS, recogniser  # noqa: E402
from harness.rtp import tone  # noqa: E402
from harness.webhooks import SECRET, Endpoint, Posted, taken  # noqa: E402
from siprec_bridge.caller import CallError, CallPlan, Leg, parse_target, place_call  # noqa: E402

_EXCHANGE = "chaos"
_LISTENERS = 3
_HEALED_WITHIN_S = 300.0
_TALK_S = 3.0
_LOST_IN_A_KILL_S = 0.4  # of audio: what the kernel held for a sweep of 200 ms, and some

# Works, or does what the file beside it says.
BEHAVIOURS["as_told"] = (
    "fault = here.with_suffix('.fault')\n"
    "fault = fault.read_text() if fault.exists() else ''\n"
    "if fault == 'fails': sys.exit(3)\n"
    "if fault == 'hangs': time.sleep(30)\n"
    "if fault == 'cut': [write(f, '{\"text\": ') for f in audio]\n"
    "else: say('hello there')"
)


@dataclass
class Call:
    """One call: who spoke, and what came of it as the caller saw it."""

    name: str
    answered: bool = False
    ended: bool = False  # the BYE was answered 200


@dataclass
class Heard:
    """What one listener got."""

    ids: Counter[str] = field(default_factory=Counter)
    cursor: int = 0
    cuts: int = 0


@dataclass
class World:
    """All that runs, and all that was done to it."""

    folder: Path
    chance: random.Random
    broker: RabbitMq
    server: Postgresql | None
    endpoint: Endpoint
    settings: dict[str, str]
    bridge: Bridge | None = None
    up: asyncio.Event = field(default_factory=asyncio.Event)
    faults: Counter[str] = field(default_factory=Counter)
    calls: list[Call] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=lambda: [Heard() for _ in range(_LISTENERS)])
    calm: bool = False  # no more faults

    @property
    def data(self) -> Path:
        """The bridge's folder."""
        return self.folder / "data"

    async def start(self) -> None:
        """Start the bridge, as an init system would: until it stays."""
        while True:
            try:
                self.bridge = await start_bridge(self.data, **self.settings)
            except AssertionError:  # it ended, or is not ready in time
                await asyncio.sleep(1.0)
                continue
            self.up.set()
            return


async def calls_come_in(world: World, rate: float) -> None:
    """New calls at this rate, each with voices and names of its own, until it is calm."""
    running: set[asyncio.Task[None]] = set()
    while not world.calm:
        await asyncio.sleep(world.chance.expovariate(rate))
        one = Call(f"caller {len(world.calls)}")
        world.calls.append(one)
        task = asyncio.create_task(_call(world, one))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def _call(world: World, one: Call) -> None:
    transport = world.chance.choice(("udp", "tcp"))
    legs = [
        Leg(one.name, f"sip:{one.name.replace(' ', '')}@example.com", tone(440, _TALK_S)),
        Leg("Agent", "sip:agent@example.com", tone(1000, _TALK_S)),
    ]

    def note(status: str) -> None:
        one.answered |= status.startswith("answered 200")

    plan = CallPlan(parse_target(f"127.0.0.1:{world.settings['PORTS']}", transport), legs)
    with contextlib.suppress(CallError, OSError):
        report = await place_call(plan, on_status=note)
        one.ended = report.ok and report.hung_up_by == "us" and report.bye_status == 200


async def listener(world: World, heard: Heard) -> None:
    """Listen from the beginning, be cut at random, and go on where it was."""
    url = f"ws://127.0.0.1:{world.settings['HTTP_PORT']}/ws/transcripts?since="
    while True:
        try:
            async with connect(f"{url}{heard.cursor}", max_size=None) as socket_:
                patience = None if world.calm else world.chance.uniform(0.5, 15.0)
                async with asyncio.timeout(patience):
                    async for frame in socket_:
                        event = json.loads(frame)
                        if event["type"] == "listener.lagged":
                            heard.cursor = event["sequence"]
                        elif not event["type"].startswith("listener."):
                            heard.ids[event["id"]] += 1
                            heard.cursor = event["sequence"]
        except TimeoutError:
            heard.cuts += 1
        except (OSError, WebSocketException, EOFError):
            await asyncio.sleep(0.2)


# Faults: each begins, lasts a while, and is over.


async def bridge_killed(world: World) -> None:
    """kill -9 with all of its workers and runs left to themselves."""
    assert world.bridge is not None
    world.up.clear()
    await world.bridge.kill()
    await asyncio.sleep(world.chance.choice((0.0, 0.5, 3.0)))
    await world.start()


async def broker_killed(world: World) -> None:
    """kill -9, and away for some seconds."""
    world.broker.kill9()
    await asyncio.sleep(world.chance.uniform(0.0, 6.0))
    await asyncio.to_thread(world.broker.start)


async def broker_blocked(world: World) -> None:
    """Its memory alarm: connections of publishers are blocked."""
    for watermark in ("0", "0.6"):
        await asyncio.to_thread(world.broker.ctl, "set_vm_memory_high_watermark", watermark)
        if watermark == "0":
            await asyncio.sleep(world.chance.uniform(1.0, 6.0))


async def database_away(world: World) -> None:
    """PostgreSQL is restarted; SQLite's file is locked by somebody else."""
    seconds = world.chance.uniform(0.5, 8.0)
    if world.server is not None:
        await asyncio.to_thread(world.server.kill9)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(world.server.start)
        return

    def lock() -> None:
        with contextlib.closing(
            sqlite3.connect(world.data / "siprec-bridge.db", timeout=30, isolation_level=None)
        ) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            other.execute("ROLLBACK")

    await asyncio.to_thread(lock)


async def endpoint_broken(world: World) -> None:
    """It answers that it is broken or busy, or does not answer."""
    fault = world.chance.choice((500, 429, None))

    async def answer(_: Posted) -> web.Response:
        if fault is None:
            await asyncio.sleep(60)
        return web.Response(status=fault or 500, headers={"Retry-After": "1"})

    world.endpoint.answer = answer
    await asyncio.sleep(world.chance.uniform(1.0, 8.0))
    world.endpoint.answer = taken


async def recogniser_broken(world: World) -> None:
    """It fails at everything, hangs beyond its deadline, or is cut short."""
    fault = world.folder / "as_told.fault"
    fault.write_text(world.chance.choice(("fails", "hangs", "cut")))
    await asyncio.sleep(world.chance.uniform(2.0, 10.0))
    fault.unlink()


FAULTS: dict[Callable[[World], Coroutine[None, None, None]], int] = {
    bridge_killed: 5,
    broker_killed: 2,
    broker_blocked: 1,
    database_away: 2,
    endpoint_broken: 1,
    recogniser_broken: 2,
}


async def faults_happen(world: World, until: float, kills: int | None) -> None:
    """At random moments, also several at once, but none twice at once."""
    running: dict[str, asyncio.Task[None]] = {}
    while time.monotonic() < until and (kills is None or world.faults["bridge_killed"] < kills):
        await asyncio.sleep(world.chance.uniform(0.5, 6.0))
        (fault,) = world.chance.choices(list(FAULTS), list(FAULTS.values()))
        name = fault.__name__
        if name in running and not running[name].done():
            continue
        if running.get("broker_killed") and name == "broker_blocked":
            await running["broker_killed"]
        if running.get("broker_blocked") and name == "broker_killed":
            await running["broker_blocked"]
        world.faults[name] += 1
        print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)
        running[name] = asyncio.ensure_future(fault(world))
    await asyncio.gather(*running.values())


async def healed(world: World) -> float:
    """Wait until nothing is left to do; returns the seconds that it took."""
    begun = time.monotonic()
    assert world.bridge is not None
    quiet = 0
    while quiet < 3 and time.monotonic() - begun < _HEALED_WITHIN_S:
        await asyncio.sleep(0.5)
        with contextlib.suppress(OSError):
            _, metrics = await world.bridge.get("/metrics")
            waiting = re.findall(r"^siprec_outbox_backlog\{.*\} (\S+)$", metrics, re.M)
            active = re.findall(r"^siprec_sessions_active (\S+)$", metrics, re.M)
            _, jobs = await world.bridge.get("/api/backlog")
            _, running = await world.bridge.get("/api/jobs?state=running")
            left = sum(map(float, waiting + active)) + json.loads(jobs)["jobs"]
            left += len(json.loads(running)["jobs"])
            unfinished = 0
            for state in ("recording", "finishing"):
                _, found = await world.bridge.get(f"/api/sessions?state={state}")
                unfinished += len(json.loads(found)["sessions"])
            quiet = quiet + 1 if not left and not unfinished else 0
    return time.monotonic() - begun


async def sessions_of(bridge: Bridge) -> AsyncIterator[dict[str, object]]:
    """All sessions that are stored."""
    before = ""
    while True:
        _, text = await bridge.get(f"/api/sessions?limit=500{before}")
        page = json.loads(text)
        for one in page["sessions"]:
            yield one
        if page["next"] is None:
            return
        before = f"&before={page['next'].replace('+', '%2B')}"


async def queue_content(broker: RabbitMq) -> Counter[str]:
    """The ids of all messages of the queue."""
    ids: Counter[str] = Counter()
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        await channel.set_qos(500)
        queue = await channel.get_queue(_EXCHANGE)
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            ids[str(message.message_id)] += 1
    return ids


async def stored_events(world: World) -> list[dict[str, object]]:
    """What a listener gets that comes when all is over."""
    events: list[dict[str, object]] = []
    url = f"ws://127.0.0.1:{world.settings['HTTP_PORT']}/ws/transcripts?since=0"
    async with connect(url, max_size=None) as socket_:
        last = json.loads(await socket_.recv())["sequence"]
        while not events or int(str(events[-1]["sequence"])) < last:
            async with asyncio.timeout(30):
                events.append(json.loads(await socket_.recv()))
    return events


async def count(world: World) -> bool:
    """Print the table; returns whether nothing is missing."""
    assert world.bridge is not None
    events = await stored_events(world)
    stored = {str(one["id"]) for one in events}
    finished: dict[str, Counter[str]] = {}
    for one in events:
        finished.setdefault(str(one["subject"]), Counter())[str(one["type"])] += 1
    sessions: dict[str, list[dict[str, object]]] = {}
    async for session in sessions_of(world.bridge):
        people = session["participants"]
        assert isinstance(people, list)
        sessions.setdefault(str(people[0]["name"]), []).append(session)

    answered = [one for one in world.calls if one.answered]
    without_session = [one.name for one in answered if one.name not in sessions]
    twice = [name for name, found in sessions.items() if len(found) > 1]
    unfinished = [
        name for name, found in sessions.items() if any(one["state"] != "finished" for one in found)
    ]
    ends = ("transcript.final", "transcript.failed")
    untold = [
        str(one["id"])
        for found in sessions.values()
        for one in found
        if any(finished.get(str(one["id"]), Counter())[kind] != 1
               for kind in ("session.started", "session.ended"))
        or sum(finished.get(str(one["id"]), Counter())[kind] for kind in ends) != 1
    ]  # fmt: skip
    failed = sum(one["transcript.failed"] for one in finished.values())
    short, said, recorded = [], 0.0, 0.0
    for call in world.calls:
        if not call.ended:
            continue
        for session in sessions.get(call.name, ()):
            _, text = await world.bridge.get(f"/api/sessions/{session['id']}")
            audio = json.loads(text)["audio"] or {"legs": []}
            for leg in audio["legs"]:
                said += _TALK_S
                recorded += leg["duration"]
                if leg["duration"] < _TALK_S - _LOST_IN_A_KILL_S:
                    short.append(f"{call.name}: {leg['duration']:.2f} s")
            if len(audio["legs"]) != 2:
                short.append(f"{call.name}: {len(audio['legs'])} legs")

    logs = [path.read_text() for path in world.data.glob("bridge-*.log")]
    tracebacks = sum(log.count("Traceback") for log in logs)
    print(f"\nfaults        {', '.join(f'{n} {name}' for name, n in sorted(world.faults.items()))}")
    print(
        f"calls         {len(world.calls)} placed, {len(answered)} answered 200, "
        f"{sum(one.ended for one in world.calls)} ended by BYE and 200"
    )
    print(
        f"sessions      {sum(map(len, sessions.values()))}; answered calls without one "
        f"{len(without_session)}, with two {len(twice)}, not finished {len(unfinished)}"
    )
    print(
        f"audio         of calls that ended well: {said:.0f} s said, {recorded:.0f} s recorded, "
        f"legs too short {len(short)}"
    )
    print(
        f"events        {len(events)} stored, {len(stored)} distinct; sessions that lack one "
        f"or have one twice {len(untold)}; given up by the recogniser {failed}"
    )
    ok = not (without_session or twice or unfinished or untold or short or tracebacks)
    ok &= len(events) == len(stored)
    got = {
        "amqp": (await queue_content(world.broker), ""),
        "webhook": (Counter(world.endpoint.took), ""),
    }
    for number, heard in enumerate(world.heard, 1):
        got[f"listener {number}"] = heard.ids, f", cut {heard.cuts} times"
    for name, (ids, more) in got.items():
        missing = len(stored - set(ids))
        unknown = len(set(ids) - stored)
        print(
            f"{name:<13} {ids.total()} received, {len(ids)} distinct, {missing} missing, "
            f"{unknown} unknown, {ids.total() - len(ids)} again with the same id{more}"
        )
        ok &= not missing and not unknown
    print(f"logs          {len(logs)} starts, {tracebacks} tracebacks")
    for what, examples in (
        ("no session", without_session), ("two sessions", twice), ("unfinished", unfinished),
        ("events", untold), ("short", short),
    ):  # fmt: skip
        if examples:
            print(f"  {what}: {', '.join(examples[:5])}")
    return ok


def free_port() -> str:
    """One that is free for UDP and TCP now."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                return str(tcp.getsockname()[1])


async def fail_and_count(world: World, options: argparse.Namespace) -> bool:
    """Let it all happen, heal it, and count; returns whether nothing is missing."""
    await world.start()
    calling = asyncio.create_task(calls_come_in(world, options.rate))
    listeners = [asyncio.create_task(listener(world, one)) for one in world.heard]
    try:
        until = time.monotonic() + options.minutes * 60
        await faults_happen(world, until, options.kills)
        world.calm = True
        await calling
        took = await healed(world)
        print(f"healed within {took:.0f} s", flush=True)
        await asyncio.sleep(2.0)
        return await count(world)
    finally:
        for task in (calling, *listeners):
            task.cancel()
        await asyncio.gather(calling, *listeners, return_exceptions=True)


async def run(folder: Path, options: argparse.Namespace) -> bool:
    """All of it; returns whether nothing is missing."""
    chance = random.Random(options.seed)
    (folder / "rabbitmq").mkdir()
    broker = RabbitMq(folder / "rabbitmq")
    server = Postgresql() if options.postgresql else None
    world = World(folder, chance, broker, server, Endpoint(), {})
    try:
        await asyncio.to_thread(broker.start)
        async with await aio_pika.connect(broker.url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange(
                _EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True
            )
            queue = await channel.declare_queue(_EXCHANGE, durable=True)
            await queue.bind(exchange, "#")
        world.settings = {
            "PORTS": free_port(),
            "HTTP_PORT": free_port(),
            "AMQP_URL": broker.url,
            "AMQP_EXCHANGE": _EXCHANGE,
            "WEBHOOKS": str(folder / "webhooks.toml"),
            "WHISPER_BINARY_PATH": str(recogniser(folder, "as_told")),
            "WHISPER_TIMEOUT": "5s",
            "MEDIA_WORKERS": "2",
            **dict(one.split("=", 1) for one in options.set),
        }
        if server is not None:
            await asyncio.to_thread(server.start)
            world.settings["DATABASE_URL"] = await asyncio.to_thread(server.new_database)
        async with world.endpoint.serving():
            (folder / "webhooks.toml").write_text(
                f'[chaos]\nurl = "{world.endpoint.url}"\nsecrets = ["{SECRET}"]\ntimeout = "3s"\n'
            )
            return await fail_and_count(world, options)
    finally:
        if world.bridge is not None and world.bridge.process.returncode is None:
            world.bridge.process.send_signal(signal.SIGTERM)
            await world.bridge.process.wait()
        await asyncio.to_thread(broker.stop)
        if server is not None:
            await asyncio.to_thread(server.stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1.5, help="calls a second")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kills", type=int, default=None, help="end after so many")
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--keep", type=Path, default=None, help="a new folder, not removed")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10_000)
    print(f"seed {options.seed}", flush=True)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="siprec-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ok = asyncio.run(run(folder, options))
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
