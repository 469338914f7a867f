"""The live process: reads spools as they grow, decodes them, and talks to the recogniser.

`python -m siprec_bridge.live.process FD`, where FD is its end of a socket pair to the bridge. It ends
when the other end is gone. Whatever becomes of it, the recording knows nothing of it.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from functools import partial
from typing import Any

from siprec_bridge.live.control import (
    LINE_LIMIT,
    LiveCounters,
    LiveStream,
    line_to_json,
)
from siprec_bridge.live.decoder import LiveDecoder, Sound
from siprec_bridge.live.recogniser import Conversation, Line, NotHeard
from siprec_bridge.receiver.control import LIVE_SWEEP_S, decode, encode
from siprec_bridge.receiver.spool import MalformedSpool, Packets, SpoolTail

_COUNT_S = 1.0
_QUIET_S = 0.5  # without sound: then what was said is over
_BACKLOG = 1 << 22  # octets that the bridge may not have read; then growing lines are left out


class _Stream:
    """A stream's way from its spool to its recogniser."""

    def __init__(self, spec: LiveStream, conversation: Conversation) -> None:
        self.spec = spec
        self.conversation = conversation
        self.talking: asyncio.Task[None] | None = None
        self._tail: SpoolTail | None = None
        self._decoder: LiveDecoder | None = None
        self._old = 0  # octets of the spool whose sound is not to be heard
        self._quiet_since = 0.0
        self.closing = False
        self.over = False  # nothing more is read
        self.told = LiveCounters()

    def read(self, now: float) -> None:
        """Take what is new in the spool; `now` is monotonic. Raises OSError."""
        if self._tail is None or self._decoder is None:
            try:
                self._tail = SpoolTail(self.spec.spool)
            except MalformedSpool:  # nothing is in it yet, since the disk is full
                return
            self._decoder = LiveDecoder(self._tail.header.codecs)
            self._old = self._tail.size if self.spec.from_now else 0
        old = self._tail.at < self._old
        parts, more = self._tail.read()
        arrivals = [one.arrivals_ns for one in parts if isinstance(one, Packets)]
        if more or old:
            after_ns = 1 << 62  # we are far behind: of this only codecs and pauses matter
        else:
            newest = max((int(one[-1]) for one in arrivals), default=0)
            after_ns = newest - round(self.spec.wanted.max_lag * 1e9)
        sounds = self._decoder.take(parts, after_ns=after_ns)
        if sounds:
            self._quiet_since = now
        elif self._decoder.speaking and now - self._quiet_since >= _QUIET_S:
            sounds = self._decoder.rest()
        self._hear(sounds)
        if self.closing and not more:
            self._hear(self._decoder.rest())
            self.finish()

    def finish(self) -> None:
        """Read no more, and let the recogniser end."""
        self.over = True
        self.conversation.finish()

    def close(self) -> None:
        """Give the file back."""
        self.over = True
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    def counted(self) -> LiveCounters:
        """What was counted since this was asked before."""
        talk, before = self.conversation, self.told
        self.told = LiveCounters(talk.sent, talk.skipped)
        if self._decoder is not None:
            self.told.late, self.told.undecoded = self._decoder.late, self._decoder.undecoded
        return LiveCounters(
            self.told.sent - before.sent,
            self.told.skipped - before.skipped,
            self.told.late - before.late,
            self.told.undecoded - before.undecoded,
        )

    def _hear(self, sounds: list[Sound]) -> None:
        for one in sounds:
            self.conversation.hear(one)


class LiveProcess:
    """All streams of this process, swept by one timer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._streams: dict[str, _Stream] = {}
        self._rest = LiveCounters()  # of streams that are closed
        self._counted_at, self._worked = time.monotonic(), time.process_time()

    async def run(self) -> None:
        """Serve until the bridge is gone."""
        sweeping = asyncio.create_task(self._sweep(), name="live sweep")
        try:
            while line := await self._reader.readline():
                self._do(decode(line))
        except (ConnectionError, ValueError):
            pass  # the bridge died in the middle of a line
        finally:
            talks = [one.talking for one in self._streams.values() if one.talking is not None]
            for task in (sweeping, *talks):
                task.cancel()
            await asyncio.gather(sweeping, *talks, return_exceptions=True)

    def _do(self, command: dict[str, Any]) -> None:
        match command:
            case {"do": "open", "stream": dict(value)}:
                spec = LiveStream.from_json(value)
                if spec.stream_id in self._streams:
                    return
                talk = Conversation(
                    spec.wanted,
                    partial(self._tell_line, spec.stream_id),
                    partial(self._tell_trouble, spec.stream_id),
                )
                stream = self._streams[spec.stream_id] = _Stream(spec, talk)
                stream.talking = asyncio.create_task(talk.run(), name=f"live {spec.stream_id}")
                stream.talking.add_done_callback(partial(self._ended, stream))
            case {"do": "close", "streams": list(names)}:
                for name in names:
                    if (known := self._streams.get(name)) is not None:
                        known.closing = True
            case _:
                raise ValueError(f"unknown command {command.get('do')}")

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + LIVE_SWEEP_S, loop.time())
            await asyncio.sleep(due - loop.time())
            for stream in list(self._streams.values()):
                if not stream.over:
                    self._read(stream, loop.time())
                await asyncio.sleep(0)  # what comes from recognisers is not to wait for all streams
            if loop.time() - self._counted_at >= _COUNT_S:
                self._tell_counters(loop.time())

    def _read(self, stream: _Stream, now: float) -> None:
        try:
            stream.read(now)
        except Exception as error:  # noqa: BLE001  one stream's folder, or damage, is its own
            cause = f"{type(error).__name__}: {error}"
            self._tell({"event": "unreadable", "stream_id": stream.spec.stream_id, "cause": cause})
            stream.finish()

    def _ended(self, stream: _Stream, task: "asyncio.Task[None]") -> None:
        self._streams.pop(stream.spec.stream_id, None)
        _add(self._rest, stream.counted())
        stream.close()
        cause = None
        if not task.cancelled() and (error := task.exception()) is not None:
            cause = f"{type(error).__name__}: {error}"
        self._tell({"event": "closed", "stream_id": stream.spec.stream_id, "cause": cause})

    def _tell_line(self, stream_id: str, line: Line) -> None:
        if not line.settled and self._writer.transport.get_write_buffer_size() > _BACKLOG:
            return
        self._tell({"event": "line", "stream_id": stream_id, "line": line_to_json(line)})

    def _tell_trouble(self, stream_id: str, trouble: NotHeard | None) -> None:
        full = trouble is not None and trouble.full
        cause = str(trouble)[:500] if trouble is not None else None
        self._tell({"event": "recogniser", "stream_id": stream_id, "cause": cause, "full": full})

    def _tell_counters(self, now: float) -> None:
        counters, self._rest = self._rest, LiveCounters()
        for stream in self._streams.values():
            _add(counters, stream.counted())
            counters.connected += stream.conversation.connected
            behind, stream.conversation.behind = stream.conversation.behind, 0
            if behind:
                self._tell({"event": "behind", "stream_id": stream.spec.stream_id})
        counters.streams = len(self._streams)
        worked = time.process_time()
        counters.busy = round((worked - self._worked) / (now - self._counted_at), 4)
        self._counted_at, self._worked = now, worked
        fields = {name: getattr(counters, name) for name in LiveCounters.__slots__}
        self._tell({"event": "counters", "counters": fields})

    def _tell(self, message: dict[str, object]) -> None:
        self._writer.write(encode(message))


def _add(to: LiveCounters, more: LiveCounters) -> None:
    to.sent += more.sent
    to.skipped += more.skipped
    to.late += more.late
    to.undecoded += more.undecoded


async def _serve(control: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=control, limit=LINE_LIMIT)
    try:
        await LiveProcess(reader, writer).run()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def main() -> None:
    """Serve the socket whose number is the first argument."""
    # A terminal's Ctrl-C goes to the whole group; the bridge says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
