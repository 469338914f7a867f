#!/usr/bin/env python3
"""What live lines cost the media worker and the live process, and how long sound is on its way.

    benchmarks/live.py [--streams 100] [--seconds 10] [--processes 1]

The same RTP at the pace of speech (G.711, 20 ms) to one media worker, first with nobody listening,
then with each stream heard live by a recogniser that says nothing. CPU of both processes; the delay is
from the sending of a stream's first loud packet until its sound has reached the recogniser. Writes
build/bench/live.json.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests")]

import numpy as np  # noqa: E402
from websockets.asyncio.server import ServerConnection, serve  # noqa: E402

from harness.media import spec  # noqa: E402
from harness.rtp import packets, tone  # noqa: E402
from siprec_bridge.live.control import LiveStream  # noqa: E402
from siprec_bridge.live.engine import LiveEngine  # noqa: E402
from siprec_bridge.live.recogniser import Wanted  # noqa: E402
from siprec_bridge.media import MediaEngine  # noqa: E402
from siprec_bridge.telemetry import Metrics  # noqa: E402

_TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Seconds of CPU of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / _TICK


def listen(pipe: Connection) -> None:
    """A recogniser in a process of its own: tells when each stream's first loud sound came."""
    heard: list[float] = []

    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send('{"type": "ready"}')
        waiting = True
        async for message in connection:
            if isinstance(message, str):
                await connection.send('{"type": "end"}')
                return
            if waiting and np.abs(np.frombuffer(message, "<i2").astype(int)).max() > 1000:
                heard.append(time.monotonic())
                waiting = False

    async def run() -> None:
        async with serve(talk, "127.0.0.1", 0, compression=None) as server:
            pipe.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.to_thread(pipe.recv)
            pipe.send(heard)

    asyncio.run(run())


async def measure(
    streams: int, seconds: float, url: str | None, processes: int = 1
) -> dict[str, float]:
    """CPU of both processes as shares of a core, and when the streams became loud."""
    metrics = Metrics()
    media = MediaEngine(
        port_min=20000, port_max=24999, metrics=metrics, on_event=lambda event: None
    )
    live = LiveEngine(metrics, lambda *told: None, lambda name: None, most=processes)
    await media.start()
    running = asyncio.create_task(live.run()) if url is not None else None
    quiet, loud = packets(np.zeros(8000 * 3, np.int16)), packets(tone(440, seconds + 5))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, socket.socket(type=socket.SOCK_DGRAM) as out:
        specs = [spec(Path(folder), index) for index in range(streams)]
        ports = [(await media.open(one)).rtp_port for one in specs]
        if url is not None:
            for one in specs:
                live.open(LiveStream(one.stream_id, one.spool, Wanted(url, 5.0)))
                await media.listen(one.stream_id)
            while metrics.registry.get_sample_value("siprec_live_streams") != streams:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        pids = {"media worker": media.pids[:1], "live process": live.pids}
        begun = time.monotonic()
        before: dict[str, float] = {}
        measured = begun
        for number in range(100 + round(seconds * 50)):
            if number == 100:  # connected and warm
                before = {name: sum(map(cpu, some)) for name, some in pids.items()}
                found["loud at"] = measured = time.monotonic()
            packet = quiet[number] if number < 100 else _after(loud[number - 100], number)
            for port in ports:
                out.sendto(packet, ("127.0.0.1", port))
            await asyncio.sleep(max(0.0, begun + 0.02 * (number + 1) - time.monotonic()))
        took = time.monotonic() - measured
        found |= {name: (sum(map(cpu, some)) - before[name]) / took for name, some in pids.items()}
        found["processes"] = len(live.pids)
        live.close([one.stream_id for one in specs])
        await media.close([one.stream_id for one in specs])
    if running is not None:
        await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await media.stop()
    return found


def _after(packet: bytes, number: int) -> bytes:
    """The packet with the number and time stamp that go on after the quiet ones."""
    sequence, timestamp = 100 + number, 1000 + 160 * number
    return packet[:2] + sequence.to_bytes(2, "big") + timestamp.to_bytes(4, "big") + packet[8:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=1, help="LIVE_PROCESSES")
    wanted = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    recogniser = multiprocessing.get_context("spawn").Process(target=listen, args=(theirs,))
    recogniser.start()
    url = f"ws://127.0.0.1:{ours.recv()}"
    plain = asyncio.run(measure(wanted.streams, wanted.seconds, None))
    live = asyncio.run(measure(wanted.streams, wanted.seconds, url, wanted.processes))
    ours.send("end")
    delays = sorted(at - live["loud at"] for at in ours.recv())
    recogniser.join()
    per = 1000 / wanted.streams
    print(f"{wanted.streams} streams, {wanted.seconds:g} s; cores for 1,000 streams")
    print(f"  media worker, nobody listens   {plain['media worker'] * per:6.2f}")
    print(f"  media worker, each heard live  {live['media worker'] * per:6.2f}")
    print(
        f"  live processes, {live['processes']:.0f}              {live['live process'] * per:6.2f}"
    )
    middle, last = delays[len(delays) // 2], delays[-1]
    print(
        f"  sound on its way, ms           {middle * 1000:6.0f} median, {last * 1000:.0f} longest"
    )
    how = f"{wanted.streams} streams of G.711 at the pace of speech, {wanted.seconds:g} s"
    figures = [
        ("live.worker.plain", plain["media worker"] * per, "cores for 1,000 streams"),
        ("live.worker.live", live["media worker"] * per, "cores for 1,000 streams"),
        ("live.process", live["live process"] * per, "cores for 1,000 streams"),
        ("live.delay.median", middle, "s"),
        ("live.delay.longest", last, "s"),
    ]
    results = [
        {"name": name, "value": round(value, 3), "unit": unit, "goal": None, "ok": True, "how": how}
        for name, value, unit in figures
    ]
    target = Path("build/bench/live.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
