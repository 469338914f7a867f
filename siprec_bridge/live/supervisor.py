"""A live process seen from the bridge: started, told what to listen to, started again when it dies."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import structlog

from siprec_bridge.live.control import (
    LINE_LIMIT,
    LiveCounters,
    LiveStream,
    line_from_json,
)
from siprec_bridge.live.recogniser import Line
from siprec_bridge.receiver.control import decode, encode
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_LIVED_S = 10.0  # a process that lived so long is started again at once
_LONGEST_PAUSE_S = 10.0
_STOP_TIMEOUT_S = 5.0
_LOAD_OF_STREAM = 0.0035  # of a core, see benchmarks/live.py


class OnLine(Protocol):
    """Takes a line of a stream; `life` tells processes apart, whose utterances begin at 0."""

    def __call__(self, stream_id: str, life: int, line: Line) -> None: ...


class Recogniser:
    """What is known of the one that all live processes talk to."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._away: str | None = None  # why, as it was told
        # Streams that it had no room for, and of which that was told.
        self._refused: set[str] = set()

    def note(self, name: str, cause: str | None, *, full: bool) -> None:
        """Say once that it is away, and once that it is back."""
        result = "ready" if cause is None else "full" if full else "failed"
        self._metrics.live_connections_total.labels(result=result).inc()
        if full:  # it is there, and busy with others
            if name not in self._refused:
                self._refused.add(name)
                log.warning("live.no_room", stream=name, cause=cause)
            return
        self._metrics.live_recogniser_available.set(cause is None)
        if cause is None and self._away is not None:
            log.info("live.recogniser_back")
        elif cause is not None and self._away is None:
            log.error(
                "live.recogniser_away",
                cause=cause,
                effect="no live lines; calls are recorded and transcribed as always",
            )
        self._away = cause

    def forget(self, name: str) -> None:
        """The stream is over."""
        self._refused.discard(name)


class LiveSupervisor:
    """Keeps a live process running and its streams open. `run` until cancelled."""

    def __init__(
        self,
        number: int,
        metrics: Metrics,
        recogniser: Recogniser,
        on_line: OnLine,
        on_closed: Callable[[str], None],
    ) -> None:
        self.number = number  # from 1
        self._metrics = metrics
        self._recogniser = recogniser
        self._on_line = on_line
        self._on_closed = on_closed
        self._open: dict[str, LiveStream] = {}
        self._closing: set[str] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._life = 0
        self._connected = 0
        self._busy = 0.0
        metrics.live_process_busy_ratio.labels(process=number)

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid if self._process is not None else None

    @property
    def load(self) -> float:
        """The share of a core that it uses, or will with the streams that it was given just now."""
        return max(self._busy, _LOAD_OF_STREAM * len(self._open))

    def open(self, stream: LiveStream) -> None:
        """Listen to a stream from now on."""
        self._open[stream.stream_id] = stream
        self._send({"do": "open", "stream": stream.to_json()})

    def close(self, stream_ids: Iterable[str]) -> None:
        """Hear streams to the end of their spools; `on_closed` tells when nothing more comes."""
        known = [name for name in stream_ids if name in self._open]
        for name in known:
            del self._open[name]
            self._closing.add(name)
        if known:
            self._send({"do": "close", "streams": known})

    async def run(self) -> None:
        """Keep a process running."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            begun = loop.time()
            try:
                await self._run_process()
            except OSError as error:
                log.error("live.process_not_started", cause=str(error))
            if loop.time() - begun > _LIVED_S:
                pause = 0.0
            self._metrics.live_process_restarts_total.inc()
            log.error(
                "live.process_died",
                process=self.number, streams=len(self._open), again_in_s=pause,
            )  # fmt: skip
            closing, self._closing = self._closing, set()
            for name in closing:
                self._on_closed(name)
            # What was said meanwhile is over; the recording has it.
            self._open = {name: replace(one, from_now=True) for name, one in self._open.items()}
            await asyncio.sleep(pause)
            pause = min(2 * pause or 0.2, _LONGEST_PAUSE_S)

    def _send(self, command: dict[str, object]) -> None:
        if self._writer is not None:
            self._writer.write(encode(command))

    async def _run_process(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "siprec_bridge.live.process", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        self._life += 1
        self._writer = writer
        try:
            for one in self._open.values():
                self._send({"do": "open", "stream": one.to_json()})
            while line := await reader.readline():
                self._take(decode(line))
        except (ValueError, TypeError, KeyError, ConnectionError) as error:
            log.error("live.process_not_understood", cause=str(error))
        finally:
            self._writer = None
            writer.close()
            self._note_load(0, 0.0)
            await asyncio.shield(_end(process))

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"event": "line", "stream_id": str(name), "line": dict(line)}:
                self._on_line(name, self._life, line_from_json(line))
            case {"event": "counters", "counters": dict(counters)}:
                self._count(LiveCounters(**counters))
            case {
                "event": "recogniser",
                "stream_id": str(name),
                "cause": cause,
                "full": bool(full),
            }:
                self._recogniser.note(name, cause, full=full)
            case {"event": "behind", "stream_id": str(name)}:
                self._metrics.live_behind_total.inc()
                log.warning("live.behind", stream=name, effect="it skips what was said meanwhile")
            case {"event": "unreadable", "stream_id": str(name), "cause": str(cause)}:
                log.error("live.not_read", stream=name, cause=cause)
            case {"event": "closed", "stream_id": str(name), "cause": cause}:
                if cause is not None:
                    log.error("live.stream_failed", stream=name, cause=cause)
                self._open.pop(name, None)
                self._closing.discard(name)
                self._recogniser.forget(name)
                self._on_closed(name)
            case _:
                log.error("live.process_not_understood", message=str(message)[:200])

    def _count(self, counters: LiveCounters) -> None:
        metrics = self._metrics
        metrics.live_audio_seconds_total.labels(outcome="sent").inc(counters.sent)
        metrics.live_audio_seconds_total.labels(outcome="skipped").inc(counters.skipped)
        metrics.live_packets_late_total.inc(counters.late)
        metrics.live_packets_undecoded_total.inc(counters.undecoded)
        self._note_load(counters.connected, counters.busy)

    def _note_load(self, connected: int, busy: float) -> None:
        self._metrics.live_streams.inc(connected - self._connected)
        self._metrics.live_process_busy_ratio.labels(process=self.number).set(busy)
        self._connected, self._busy = connected, busy


async def _end(process: asyncio.subprocess.Process) -> None:
    """It ends by itself when nobody is at the other end of its socket."""
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
