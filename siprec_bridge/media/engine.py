"""The bridge's side of the media workers: starts them, asks them, starts them again."""

import asyncio
import contextlib
import itertools
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from siprec_bridge.media.control import (
    LINE_LIMIT,
    VERSION,
    StreamPort,
    StreamReport,
    StreamSpec,
    decode,
    encode,
)
from siprec_bridge.media.ports import NoPortLeft
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_REPLY_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 5.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class MediaEvent:
    """What a worker noticed: started, silent, heard_again, not_authentic (SRTP that our
    keys do not open), write_failed or written_again.
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
    paused: bool = False
    rollovers: dict[int, int] = field(default_factory=dict)  # of SRTP, by SSRC


class MediaEngine:
    """Receives and spools streams in a process of its own.

    A worker that dies is started again with the same streams at the same ports; their spools go
    on. Raises NoPortLeft and MediaUnavailable where said.
    """

    def __init__(
        self,
        *,
        port_min: int,
        port_max: int,
        metrics: Metrics,
        on_event: Callable[[MediaEvent], None],
        rtp_timeout: float = 30.0,
        fast_path: bool = True,
    ) -> None:
        self._configuration: dict[str, object] = {
            "do": "configure",
            "version": VERSION,
            "first": port_min,
            "last": port_max,
            "fast": fast_path,
            "rtp_timeout": float(rtp_timeout),
        }
        self._metrics = metrics
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._open: dict[str, _Open] = {}
        self._ready = asyncio.Event()
        self._stopping = False
        self._worker: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.receiver = ""  # how packets are received

    @property
    def alive(self) -> bool:
        """Whether the worker answers."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """Of the worker process."""
        return self._worker.pid if self._worker is not None else None

    async def start(self) -> None:
        """Start the worker. Raises MediaUnavailable when it does not come up."""
        self._supervisor = asyncio.create_task(self._supervise(), name="media supervisor")
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError:
            raise MediaUnavailable("the media worker does not start") from None

    async def stop(self) -> None:
        """Let the worker make a last sweep and end."""
        self._stopping = True
        if self._writer is not None:
            self._writer.close()
        if self._supervisor is not None:
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await self._supervisor
            except TimeoutError:
                log.error("media.worker_does_not_end")
                if self._worker is not None and self._worker.returncode is None:
                    self._worker.kill()

    async def open(self, spec: StreamSpec) -> StreamPort:
        """Receive a stream; its folder is made. Raises NoPortLeft, MediaUnavailable."""
        try:
            port = await self._open_at(spec, None)
        except (asyncio.CancelledError, MediaUnavailable):
            self._disown(spec.stream_id)
            raise
        self._open[spec.stream_id] = _Open(spec, port)
        self._metrics.streams_active.set(len(self._open))
        return port

    async def update(self, spec: StreamSpec) -> None:
        """Note that a stream's payload types or keys are others from now on."""
        if (known := self._open.get(spec.stream_id)) is not None:
            known.spec = spec
            await self._ask({"do": "update", "spec": spec.to_json()})

    async def pause(self, stream_id: str, paused: bool, at: datetime) -> None:
        """Keep nothing of a stream, which is silence on its time line, or record it again."""
        if (known := self._open.get(stream_id)) is not None:
            known.paused = paused
            await self._ask(_pause(stream_id, paused, at.timestamp()))

    async def close(self, stream_ids: Sequence[str]) -> list[StreamReport]:
        """Take what has arrived, make it durable, give the ports back; unknown ids are skipped."""
        names = [name for name in stream_ids if name in self._open]
        if not names:
            return []
        for name in names:  # first of all: a worker that starts again must not reopen them
            del self._open[name]
        self._metrics.streams_active.set(len(self._open))
        try:
            reply = await self._ask({"do": "close", "streams": names})
        except MediaUnavailable as error:
            log.error("media.not_closed", cause=str(error))  # what was spooled is on disk
            return []
        reports = [StreamReport.from_json(one) for one in reply["reports"]]
        for report in reports:
            self._metrics.streams_total.inc()
            self._metrics.rtp_packets_lost_total.inc(report.lost)
            if report.loss_ratio is not None:
                self._metrics.stream_loss_ratio.observe(report.loss_ratio)
            if report.mos is not None:
                self._metrics.stream_mos.observe(report.mos)
            if report.lost:
                self._metrics.streams_with_loss_total.inc()
        return reports

    async def _open_at(self, spec: StreamSpec, port: int | None) -> StreamPort:
        reply = await self._ask({**_opening(spec, {}), "port": port})
        host, rtp, rtcp = reply["port"]
        return StreamPort(host, rtp, rtcp)

    def _disown(self, stream_id: str) -> None:
        """Have a stream closed whose opening nobody waits for any more."""
        if self._writer is not None:
            close = {"id": next(self._numbers), "do": "close", "streams": [stream_id]}
            self._writer.write(encode(close))

    async def _ask(self, command: dict[str, object]) -> dict[str, Any]:
        """Send a command and wait for its reply; asks a new worker when this one dies."""
        try:
            async with asyncio.timeout(_REPLY_TIMEOUT_S):
                while True:
                    await self._ready.wait()
                    try:
                        return await self._ask_once(command)
                    except _WorkerDied:
                        continue
        except TimeoutError:
            raise MediaUnavailable("the media worker does not answer") from None

    async def _ask_once(self, command: dict[str, object]) -> dict[str, Any]:
        if self._writer is None:
            raise _WorkerDied
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            self._writer.write(encode({"id": number, **command}))
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
        pause = 0.1
        while not self._stopping:
            try:
                await self._run_worker()
                pause = 0.1
            except OSError as error:
                log.error("media.worker_not_started", cause=str(error))
            self._metrics.media_workers_alive.set(0)
            if self._ended():
                return
            self._metrics.media_worker_restarts_total.inc()
            log.error("media.worker_died", streams=len(self._open), again_in_s=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _ended(self) -> bool:
        return self._stopping

    async def _run_worker(self) -> None:
        """Start a worker, bring its streams back, and read what it says until it dies."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "siprec_bridge.media.worker", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        listening = asyncio.create_task(self._listen(reader), name="media listener")
        try:
            configured = await self._ask_once(self._configuration)
            self.receiver = configured["receiver"]
            await self._reopen()
            self._metrics.media_workers_alive.set(1)
            self._ready.set()
            await asyncio.wait({listening})
        except _WorkerDied:
            pass
        finally:
            self._ready.clear()
            self._writer.close()
            self._writer = None
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(_WorkerDied())
            if self._worker.returncode is None and not self._stopping:
                self._worker.kill()
            await self._worker.wait()

    async def _reopen(self) -> None:
        for known in list(self._open.values()):
            command = _opening(known.spec, known.rollovers) | {"port": known.port.rtp_port}
            try:
                await self._ask_once(command)
                if known.paused:
                    now = datetime.now().astimezone().timestamp()
                    await self._ask_once(_pause(known.spec.stream_id, True, now))
            except (NoPortLeft, OSError) as error:
                log.error("media.stream_lost", stream=known.spec.stream_id, cause=str(error))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(decode(line))
        except (ValueError, OSError) as error:
            log.error("media.worker_not_understood", cause=str(error))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(_WorkerDied())

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            reply = self._replies.get(message["id"])
            if reply is not None and not reply.done():
                reply.set_result(message)
            return
        metrics = self._metrics
        match message:
            case {"event": "counters"}:
                metrics.rtp_packets_total.inc(message.get("packets", 0))
                metrics.rtp_octets_total.inc(message.get("octets", 0))
                metrics.rtp_packets_duplicate_total.inc(message.get("duplicates", 0))
                metrics.rtp_packets_malformed_total.inc(message.get("malformed", 0))
                metrics.srtp_packets_unauthenticated_total.inc(message.get("unauthenticated", 0))
                metrics.rtp_kernel_drops_total.inc(message.get("kernel_drops", 0))
            case {"event": "turned", "stream_id": str(stream), "ssrc": ssrc, "rollovers": count}:
                if (known := self._open.get(stream)) is not None:
                    known.rollovers[ssrc] = count
            case {"event": str(name)}:
                fields = {key: message[key] for key in ("stream_id", "session_id", "label")}
                extra = {key: message[key] for key in ("seconds", "cause") if key in message}
                self._tell(MediaEvent(name, **fields, **extra))
            case _:
                log.error("media.worker_not_understood", message=str(message)[:200])

    def _tell(self, event: MediaEvent) -> None:
        try:
            self._on_event(event)
        except Exception:  # a mistake of ours elsewhere must not end the recording
            log.exception("media.event_failed", event_name=event.name, stream=event.stream_id)


def _opening(spec: StreamSpec, rollovers: dict[int, int]) -> dict[str, object]:
    return {"do": "open", "spec": spec.to_json(), "rollovers": list(rollovers.items())}


def _pause(stream_id: str, paused: bool, at: float) -> dict[str, object]:
    return {"do": "pause", "stream": stream_id, "paused": paused, "at_ns": round(at * 1e9)}
