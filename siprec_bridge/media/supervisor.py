"""One media worker seen from the bridge: started, asked, and started again when it dies."""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog

from siprec_bridge.receiver.control import (
    LINE_LIMIT,
    LIVE_SWEEP_S,
    SWEEP_S,
    Configuration,
    Counters,
    StreamPort,
    StreamReport,
    StreamSpec,
    decode,
    encode,
    keys_from_json,
)
from siprec_bridge.receiver.ports import NoPortLeft
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

REPLY_TIMEOUT_S = 10.0  # in which a worker says nothing at all
_LONGEST_REPLY_S = 60.0
_CLOSED_AT_ONCE = (
    100  # streams: so a worker that closes thousands of them lets others be heard between
)
_LONGEST_PAUSE_S = 5.0
_LIVED_S = 10.0  # a worker that lived so long is started again at once
_STOP_TIMEOUT_S = 10.0
_SOCKET_HOLDS_S = 2.0  # of audio, at least


@dataclass(frozen=True, slots=True)
class MediaEvent:
    """What a worker noticed: started, silent, heard_again, not_authentic (SRTP that our
    keys do not open), keyed (by DTLS, with the suite in `cause`), handshake_failed (`cause` tells;
    the first of a stream), learned (the source is at the address in `cause`, which nobody signalled),
    stranger (packets from the address in `cause` are dropped), rtcp_lost (its port cannot be had
    again), write_failed or written_again (with a `cause` if not all was). Or
    what became of it: interrupted (it died; nothing was received for `seconds`), lost (and the
    port is another's now, which `cause` tells).
    """

    name: str
    stream_id: str
    session_id: str
    label: str
    seconds: float | None = None
    cause: str | None = None


class MediaUnavailable(OSError):
    """No media worker answers."""


class _WorkerDied(Exception):
    pass


@dataclass(slots=True)
class _Open:
    spec: StreamSpec
    port: StreamPort
    since: float  # loop time
    paused: bool = False
    rollovers: dict[int, int] = field(default_factory=dict)  # of SRTP, by SSRC


class WorkerSupervisor:
    """Receives and spools streams in a process of its own.

    A worker that dies is started again with the same streams at the same ports; their spools go
    on, and an event tells of each how long nothing was received.
    """

    def __init__(
        self,
        number: int,
        configuration: Configuration,
        metrics: Metrics,
        on_event: Callable[[MediaEvent], None],
    ) -> None:
        self.number = number
        self._configuration = configuration
        self._metrics = metrics
        self._on_event = on_event
        self._log = log.bind(worker=number)
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._open: dict[str, _Open] = {}
        self._live: set[str] = set()  # streams that somebody listens to
        self._sessions: Counter[str] = Counter()  # of streams that are open or being opened
        self._ready = asyncio.Event()
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._running: asyncio.Task[None] | None = None
        self._life = 0  # how many processes there have been
        self._heard_at = 0.0  # loop time: the worker's last word
        self._swept_at = 0.0  # loop time: what had come by then is on disk
        self._pressure = 0.0
        self.streams = 0  # open or being opened
        self.receiver = ""  # how packets are received
        self.room = self.room_muxed = 0  # for so many streams; if RTCP is on the port of their RTP
        self.no_ring: str | None = None  # why not by the ring, where that was wanted

    @property
    def alive(self) -> bool:
        """Whether the worker answers."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """Of the worker process."""
        return self._process.pid if self._process is not None else None

    @property
    def pressure(self) -> float:
        """How near it is to its limit: 0 idle, from 1 on it does not keep up.

        Measured with each sweep: the share of its time that it works, or how late it was in
        sweeps. One that has streams and says nothing is late by as much.
        """
        if not self._open:
            return 0.0
        unheard = asyncio.get_running_loop().time() - self._swept_at - 2 * SWEEP_S
        return max(self._pressure, unheard / self._sweep_s)

    @property
    def _sweep_s(self) -> float:
        return LIVE_SWEEP_S if self._live else SWEEP_S

    def has_session(self, session_id: str) -> bool:
        """Whether streams of a session are here."""
        return session_id in self._sessions

    async def start(self) -> None:
        """Start the worker. Raises MediaUnavailable when it does not come up."""
        self._running = asyncio.create_task(self._supervise(), name=f"media worker {self.number}")
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError:
            raise MediaUnavailable("the media worker does not start") from None

    async def stop(self) -> None:
        """Let the worker make a last sweep and end."""
        self._stopping = True
        if self._writer is not None:
            self._writer.close()
        if self._running is not None:
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await self._running
            except TimeoutError:
                self._log.error("media.worker_does_not_end")
                if self._process is not None and self._process.returncode is None:
                    self._process.kill()

    async def open(self, spec: StreamSpec) -> StreamPort:
        """Receive a stream; its folder is made. Raises NoPortLeft, MediaUnavailable, OSError."""
        self.streams += 1
        self._sessions[spec.session_id] += 1
        try:
            reply = await self._ask({**_opening(spec, {}), "port": None})
        except BaseException as error:
            self._leave(spec)
            if isinstance(error, asyncio.CancelledError | MediaUnavailable):
                self._disown(spec.stream_id)
            raise
        host, rtp, rtcp = reply["port"]
        port, now = StreamPort(host, rtp, rtcp), asyncio.get_running_loop().time()
        if not self._open:  # it has swept nothing, since there was nothing
            self._swept_at, self._pressure = now, 0.0
        self._open[spec.stream_id] = _Open(spec, port, now)
        return port

    async def update(self, spec: StreamSpec) -> None:
        """Note that a stream's payload types, keys or addresses are others from now on."""
        if (known := self._open.get(spec.stream_id)) is not None:
            if spec.dtls is not None and known.spec.dtls is not None:
                spec = replace(spec, keys=known.spec.keys, rtcp_keys=known.spec.rtcp_keys)
            known.spec = spec
            await self._ask({"do": "update", "spec": spec.to_json()})

    async def pause(self, stream_id: str, paused: bool, at: datetime) -> None:
        """Keep nothing of a stream, which is silence on its time line, or record it again."""
        if (known := self._open.get(stream_id)) is not None:
            known.paused = paused
            await self._ask(_pause(stream_id, paused, at.timestamp()))

    async def listen(self, stream_id: str) -> None:
        """Have what arrives on a stream on disk sooner, until it is closed."""
        if stream_id in self._open:
            await self._set_live(self._live | {stream_id})

    async def _set_live(self, live: set[str]) -> None:
        before, self._live = self._sweep_s, live
        if self._sweep_s != before:
            await self._ask({"do": "sweep", "every": self._sweep_s})

    async def close(self, stream_ids: Sequence[str]) -> list[StreamReport]:
        """Take what has arrived, make it durable, give the ports back."""
        # First of all: a worker that starts again must not reopen them.
        closed = [self._open.pop(name) for name in stream_ids if name in self._open]
        for one in closed:
            self._leave(one.spec)
        if not closed:
            return []
        now, life, swept_at = asyncio.get_running_loop().time(), self._life, self._swept_at
        names = [one.spec.stream_id for one in closed]
        parts = [names[at : at + _CLOSED_AT_ONCE] for at in range(0, len(names), _CLOSED_AT_ONCE)]
        try:
            replies = await asyncio.gather(
                *(self._ask({"do": "close", "streams": part}) for part in parts)
            )
        except MediaUnavailable as error:
            self._log.error("media.not_closed", cause=str(error))  # what was spooled is on disk
            self._live.difference_update(names)
            self._tell_interrupted(closed, swept_at, now)
            return []
        if self._life != life:
            self._tell_interrupted(closed, swept_at, now)
        with contextlib.suppress(MediaUnavailable):  # one that starts again is told, too
            await self._set_live(self._live.difference(names))
        return [StreamReport.from_json(one) for reply in replies for one in reply["reports"]]

    def _leave(self, spec: StreamSpec) -> None:
        self.streams -= 1
        self._sessions[spec.session_id] -= 1
        if not self._sessions[spec.session_id]:
            del self._sessions[spec.session_id]

    def _disown(self, stream_id: str) -> None:
        """Have a stream closed whose opening nobody waits for any more."""
        if self._writer is not None:
            close = {"id": next(self._numbers), "do": "close", "streams": [stream_id]}
            self._writer.write(encode(close))

    async def _ask(self, command: dict[str, object]) -> dict[str, Any]:
        """Send a command and wait for its reply; asks a new worker when this one dies.

        One that has much to do, thousands of files to make durable, is waited for as long as it talks.
        """
        asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_LONGEST_REPLY_S):
                while True:
                    async with asyncio.timeout_at(asked_at + REPLY_TIMEOUT_S):
                        await self._ready.wait()
                    with contextlib.suppress(_WorkerDied):
                        return await self._ask_once(command, asked_at)
        except TimeoutError:
            raise MediaUnavailable("the media worker does not answer") from None

    async def _ask_once(
        self, command: dict[str, object], asked_at: float | None = None
    ) -> dict[str, Any]:
        """`asked_at`: since when a worker that says nothing was waited for; None: it may be silent.

        Raises TimeoutError.
        """
        if self._writer is None:
            raise _WorkerDied
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            self._writer.write(encode({"id": number, **command}))
            while asked_at is not None and not reply.done():
                silent = asyncio.get_running_loop().time() - max(asked_at, self._heard_at)
                if silent >= REPLY_TIMEOUT_S:
                    raise TimeoutError
                await asyncio.wait({reply}, timeout=REPLY_TIMEOUT_S - silent)
            answer = await reply
        finally:
            self._replies.pop(number, None)
        match answer.get("error"):
            case None:
                return answer
            case "no_port_left":
                raise NoPortLeft(answer["cause"])
            case _:
                raise OSError(answer["cause"])

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            begun = loop.time()
            try:
                await self._run_worker()
            except OSError as error:
                self._log.error("media.worker_not_started", cause=str(error))
            if self._stopping:
                return
            if loop.time() - begun > _LIVED_S:
                pause = 0.0
            self._metrics.media_worker_restarts_total.inc()
            self._log.error("media.worker_died", streams=len(self._open), again_in_s=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause or 0.1, _LONGEST_PAUSE_S)

    async def _run_worker(self) -> None:
        """Start a worker, bring its streams back, and read what it says until it dies."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "siprec_bridge.receiver.worker", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        listening = asyncio.create_task(self._listen(reader), name="media listener")
        try:
            configured = await self._ask_once(
                {"do": "configure", "configuration": self._configuration.to_json()}
            )
            self.receiver, self.no_ring = configured["receiver"], configured["no_ring"]
            self.room, self.room_muxed = configured["room"], configured["room_muxed"]
            if self.no_ring is not None:
                self._log.error("media.no_ring", cause=self.no_ring, receiver=self.receiver)
            if self._live:
                await self._ask_once({"do": "sweep", "every": self._sweep_s})
            await self._reopen()
            self._life += 1
            self._swept_at, self._pressure = asyncio.get_running_loop().time(), 0.0
            self._metrics.media_workers_alive.inc()
            self._ready.set()
            await asyncio.wait({listening})
        except _WorkerDied:
            pass
        finally:
            if self._ready.is_set():
                self._metrics.media_workers_alive.dec()
                self._metrics.media_worker_busy_ratio.labels(worker=self.number).set(0)
            self._ready.clear()
            self._writer.close()
            self._writer = None
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(_WorkerDied())
            if self._process.returncode is None and not self._stopping:
                self._process.kill()
            await self._process.wait()

    async def _reopen(self) -> None:
        """Open the streams of the dead worker again.

        Their ports first, all at once: what comes while the spools are looked through can wait
        there.
        """
        streams = list(self._open.values())
        if not streams:
            return
        ports = [(one.spec.host, one.port.rtp_port, one.spec.rtcp_mux) for one in streams]
        await self._ask_once({"do": "bind", "ports": ports})
        bound_at = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            *(self._reopen_one(known) for known in streams), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        until = max(bound_at, asyncio.get_running_loop().time() - _SOCKET_HOLDS_S)
        for known, outcome in zip(streams, outcomes, strict=True):
            if isinstance(outcome, str):
                self._tell(_event("lost", known.spec, cause=outcome))
            elif known.spec.stream_id in self._open:  # else its closing tells
                self._tell_interrupted([known], self._swept_at, until)

    async def _reopen_one(self, known: _Open) -> str | None:
        """Returns why it cannot be opened again, or None."""
        opening = _opening(known.spec, known.rollovers, paused=known.paused)
        command = opening | {"port": known.port.rtp_port}
        try:
            await self._ask_once(command)
        except (NoPortLeft, OSError) as error:
            return str(error)
        return None

    def _tell_interrupted(self, streams: Iterable[_Open], swept_at: float, until: float) -> None:
        for one in streams:
            if not one.paused:
                seconds = max(0.1, round(until - max(swept_at, one.since), 1))
                self._tell(_event("interrupted", one.spec, seconds=seconds))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(decode(line))
        except (ValueError, TypeError, KeyError, OSError) as error:
            self._log.error("media.worker_not_understood", cause=str(error))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(_WorkerDied())

    def _take(self, message: dict[str, Any]) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if "id" in message:
            reply = self._replies.get(message["id"])
            if reply is not None and not reply.done():
                reply.set_result(message)
            return
        match message:
            case {"event": "counters", "counters": dict(counters)}:
                self._count(Counters(**counters))
            case {"event": "turned", "stream_id": str(stream), "ssrc": ssrc, "rollovers": count}:
                if (known := self._open.get(stream)) is not None:
                    known.rollovers[ssrc] = count
            case {"event": "keyed", "stream_id": str(stream), "keys": list(keys), "rtcp": rtcp}:
                if (known := self._open.get(stream)) is not None:
                    if rtcp:
                        known.spec = replace(known.spec, rtcp_keys=keys_from_json(keys))
                    else:
                        known.spec = replace(known.spec, keys=keys_from_json(keys))
                        self._tell(_event("keyed", known.spec, cause=message["cause"]))
            case {"event": str(name)}:
                fields = {key: message[key] for key in ("stream_id", "session_id", "label")}
                extra = {key: message[key] for key in ("seconds", "cause") if key in message}
                self._tell(MediaEvent(name, **fields, **extra))
            case _:
                self._log.error("media.worker_not_understood", message=str(message)[:200])

    def _count(self, counters: Counters) -> None:
        metrics = self._metrics
        metrics.rtp_packets_total.inc(counters.packets)
        metrics.rtp_octets_total.inc(counters.octets)
        metrics.rtp_packets_duplicate_total.inc(counters.duplicates)
        metrics.rtp_packets_malformed_total.inc(counters.malformed)
        metrics.rtp_packets_stranger_total.inc(counters.strangers)
        metrics.srtp_packets_unauthenticated_total.inc(counters.unauthenticated)
        metrics.rtp_kernel_drops_total.inc(counters.kernel_drops)
        metrics.dtls_handshakes_total.labels(outcome="done").inc(counters.handshakes)
        metrics.dtls_handshakes_total.labels(outcome="failed").inc(counters.handshakes_failed)
        if counters.late is not None:
            self._swept_at = asyncio.get_running_loop().time()
            self._pressure = max(counters.busy, counters.late / self._sweep_s)
            metrics.media_sweep_lateness_seconds.observe(counters.late)
            metrics.media_worker_busy_ratio.labels(worker=self.number).set(counters.busy)

    def _tell(self, event: MediaEvent) -> None:
        try:
            self._on_event(event)
        except Exception:  # a mistake of ours elsewhere must not end the recording
            log.exception("media.event_failed", event_name=event.name, stream=event.stream_id)


def _event(
    name: str, spec: StreamSpec, *, seconds: float | None = None, cause: str | None = None
) -> MediaEvent:
    return MediaEvent(name, spec.stream_id, spec.session_id, spec.label, seconds, cause)


def _opening(
    spec: StreamSpec, rollovers: dict[int, int], *, paused: bool = False
) -> dict[str, object]:
    return {
        "do": "open",
        "spec": spec.to_json(),
        "rollovers": list(rollovers.items()),
        "paused": paused,
    }


def _pause(stream_id: str, paused: bool, at: float) -> dict[str, object]:
    return {"do": "pause", "stream": stream_id, "paused": paused, "at_ns": round(at * 1e9)}
