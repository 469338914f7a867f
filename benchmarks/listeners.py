#!/usr/bin/env python3
"""Events per second of one core to many WebSocket listeners, one of whom does not read.

    benchmarks/listeners.py [--listeners 1000] [--rate 100] [--seconds 10] [--deflate]

CPU seconds are those of the process with the database and the socket; the listeners are a process
of their own, which counts frames and, at every 20th listener, takes the time from the event's
making to its arrival. `--deflate`: the listeners offer compression, as browsers do.
"""

import argparse
import asyncio
import json
import struct
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests")]

from siprec_bridge.access import Gate  # noqa: E402
from siprec_bridge.api import Front  # noqa: E402
from siprec_bridge.delivery import TranscriptSocket  # noqa: E402
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings  # noqa: E402
from siprec_bridge.telemetry import Metrics, configure_logs  # noqa: E402

_HANDSHAKE = (
    "GET /ws/transcripts HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
_DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
TEXT = "I would like to change the address of my account"
_MEASURED = 20  # each so-and-so-many-th listener takes times


class Ear(asyncio.Protocol):
    """One listener: counts frames, and takes the times of those that it can read."""

    def __init__(self, number: int, deflate: bool, delays: list[float]) -> None:
        self._request = (_HANDSHAKE + (_DEFLATE if deflate else "") + "\r\n").encode()
        self._measures = number % _MEASURED == 0 and not deflate
        self._delays = delays
        self._buffer = b""
        self.greeted = asyncio.Event()
        self._open = False
        self.frames = -1  # the first one is the greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        buffer = self._buffer + data
        if not self._open:
            head, end, buffer = buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert b" 101 " in head, head
            self._open = True
        at = 0
        while len(buffer) - at >= 2:
            length, start = buffer[at + 1], at + 2
            if length == 126:
                if len(buffer) - at < 4:
                    break
                length, start = struct.unpack_from("!H", buffer, at + 2)[0], at + 4
            if len(buffer) < start + length:
                break
            if self._measures and self.frames >= 0:
                sent = json.loads(buffer[start : start + length])["data"]["sent"]
                self._delays.append(now - sent)
            self.frames += 1
            at = start + length
        if self.frames == 0:
            self.greeted.set()
        self._buffer = buffer[at:]


def _same(ear: Ear) -> Ear:
    return ear


async def listen(port: int, count: int, deflate: bool) -> None:
    """The listeners' process: connects, says so, and tells what it heard when stdin ends."""
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    ears = [Ear(number, deflate, delays) for number in range(count)]
    for ear in ears:
        await loop.create_connection(partial(_same, ear), "127.0.0.1", port)
    await asyncio.gather(*(ear.greeted.wait() for ear in ears))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    heard = {"frames": [ear.frames for ear in ears], "delays": sorted(delays)}
    print(json.dumps(heard), flush=True)


def event(number: int) -> Event:
    """A segment of usual size."""
    data = {
        "session_id": "s", "sip_call_id": "call", "group_id": None, "call_ids": {}, "label": "1",
        "participant": {"id": "p", "name": "Alice", "aor": "sip:alice@example.com"},
        "start": 1.0, "end": 4.0, "text": TEXT,
        "words": [{"text": word, "start": 1.0, "end": 2.0, "probability": 0.9}
                  for word in TEXT.split()],
        "final": True, "number": number, "sent": time.monotonic(),
    }  # fmt: skip
    body = json.dumps(data)
    return Event(f"e{number}", "s", "transcript.segment", datetime.now(UTC), body)


async def measure(folder: Path, options: argparse.Namespace) -> None:
    database = Database(f"sqlite:///{folder}/bridge.db")
    await database.start()
    row = SessionRow("s", "call", "finished", datetime.now(UTC), "udp:192.0.2.1:5060", "/n", "{}")
    await database.write(lambda connection: recordings.insert(connection, row))
    metrics = Metrics()
    socket = TranscriptSocket(database, metrics, Gate((), metrics))
    front = Front(websocket=socket.connection, http=asyncio.Protocol)
    await socket.start(lambda: front.listen("127.0.0.1", 0))
    port = front.address[1]
    stalled, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write((_HANDSHAKE + "\r\n").encode())
    await stalled.readuntil(b"\r\n\r\n")
    cast(asyncio.Transport, writer.transport).pause_reading()
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--port", str(port), "--listeners", str(options.listeners),
        *(["--deflate"] if options.deflate else []),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 26,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdin is not None
    assert (await child.stdout.readline()).strip() == b"ready"

    count = round(options.rate * options.seconds)
    cpu, begun = time.process_time(), time.monotonic()
    for number in range(count):
        late = begun + number / options.rate - time.monotonic()
        if late > 0:
            await asyncio.sleep(late)
        made = event(number)
        await database.write(partial(outbox.append, new_events=[made], sinks=()))
    wanted, patience = count * options.listeners, time.monotonic() + 60
    while _sent(metrics) < wanted and time.monotonic() < patience:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    wall, cpu = time.monotonic() - begun, time.process_time() - cpu
    await asyncio.sleep(1.0)
    child.stdin.close()
    heard = json.loads(await child.stdout.readline())
    await child.wait()
    writer.close()
    await socket.stop()
    await database.stop()

    frames = heard["frames"]
    delays = heard["delays"] or [float("nan")]
    print(
        f"{options.listeners} listeners{', deflate' if options.deflate else ''}: {count} events at "
        f"{options.rate:g}/s, {sum(frames)} frames, {sum(n != count for n in frames)} listeners "
        f"that lack any"
    )
    print(
        f"  {cpu:.2f} s CPU in {wall:.1f} s: {cpu / sum(frames) * 1e6:.1f} us a frame, "
        f"{count / cpu:.0f} events/s a core"
    )
    print(
        f"  delay: median {delays[len(delays) // 2] * 1e3:.0f} ms, "
        f"p99 {delays[int(len(delays) * 0.99)] * 1e3:.0f} ms, longest {delays[-1] * 1e3:.0f} ms"
    )


def _sent(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("siprec_websocket_events_sent_total") or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port is not None:
        asyncio.run(listen(options.port, options.listeners, options.deflate))
        return
    configure_logs("error", "console")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options))


if __name__ == "__main__":
    main()
