"""All media workers: new streams go to the one that has the most room."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from siprec_bridge.media.supervisor import MediaEvent, MediaUnavailable, WorkerSupervisor
from siprec_bridge.receiver.control import (
    Configuration,
    SourcePolicy,
    StreamPort,
    StreamReport,
    StreamSpec,
)
from siprec_bridge.receiver.ports import NoPortLeft, shares
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()


class MediaEngine:
    """Receives and spools streams in worker processes, each with its share of the ports.

    Streams of a session stay together, so that a worker that dies hits few sessions. Raises
    NoPortLeft and MediaUnavailable where said.
    """

    def __init__(
        self,
        *,
        port_min: int,
        port_max: int,
        metrics: Metrics,
        on_event: Callable[[MediaEvent], None],
        workers: int = 1,
        rtp_timeout: float = 30.0,
        rtp_source: SourcePolicy = "learned",
        fast_path: bool = True,
        ring: int = 0,
        interfaces: Sequence[str] = (),
    ) -> None:
        self._metrics = metrics
        ranges = shares(port_min, port_max, workers)
        if len(ranges) < workers:
            log.warning(
                "media.fewer_workers", workers=len(ranges), wanted=workers,
                cause=f"RTP ports {port_min} to {port_max} are no share for each",
            )  # fmt: skip
        self._workers = [
            WorkerSupervisor(
                number,
                Configuration(
                    first, last, fast_path, float(rtp_timeout), rtp_source, ring, interfaces
                ),
                metrics,
                on_event,
            )
            for number, (first, last) in enumerate(ranges, 1)
        ]
        self._at: dict[str, WorkerSupervisor] = {}  # streams by their ids
        metrics.media_workers.set(len(self._workers))
        for worker in self._workers:
            metrics.media_worker_busy_ratio.labels(worker=worker.number)

    @property
    def alive(self) -> int:
        """How many workers answer."""
        return sum(worker.alive for worker in self._workers)

    @property
    def workers(self) -> int:
        """How many workers there are to be."""
        return len(self._workers)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the worker processes, in the order of their ports."""
        return tuple(worker.pid for worker in self._workers if worker.pid is not None)

    @property
    def room(self) -> int:
        """For how many streams there are ports and descriptors."""
        return sum(worker.room for worker in self._workers)

    @property
    def room_muxed(self) -> int:
        """For how many, if the RTCP of all comes to the port of their RTP."""
        return sum(worker.room_muxed for worker in self._workers)

    @property
    def receiver(self) -> str:
        """How packets are received."""
        return self._workers[0].receiver

    async def start(self) -> None:
        """Start the workers.

        Raises MediaUnavailable when one does not come up, or cannot have the ring that is wanted.
        """
        await asyncio.gather(*(worker.start() for worker in self._workers))
        for worker in self._workers:
            if worker.no_ring is not None:
                await self.stop()
                raise MediaUnavailable(f"MEDIA_CAPTURE=ring: {worker.no_ring}")

    async def stop(self) -> None:
        """Let the workers make a last sweep and end."""
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def open(self, spec: StreamSpec) -> StreamPort:
        """Receive a stream; its folder is made. Raises NoPortLeft, MediaUnavailable, OSError."""
        refusal: Exception = MediaUnavailable("no media worker answers")
        for worker in self._by_room(spec.session_id):
            try:
                port = await worker.open(spec)
            except (NoPortLeft, MediaUnavailable) as error:
                refusal = error
                continue
            self._at[spec.stream_id] = worker
            self._metrics.streams_active.set(len(self._at))
            return port
        raise refusal

    async def update(self, spec: StreamSpec) -> None:
        """Note that a stream's payload types, keys or addresses are others from now on."""
        if (worker := self._at.get(spec.stream_id)) is not None:
            await worker.update(spec)

    async def pause(self, stream_id: str, paused: bool, at: datetime) -> None:
        """Keep nothing of a stream, which is silence on its time line, or record it again."""
        if (worker := self._at.get(stream_id)) is not None:
            await worker.pause(stream_id, paused, at)

    async def listen(self, stream_id: str) -> None:
        """Have what arrives on a stream on disk within LIVE_SWEEP_S. Raises MediaUnavailable."""
        if (worker := self._at.get(stream_id)) is not None:
            await worker.listen(stream_id)

    async def close(self, stream_ids: Sequence[str]) -> list[StreamReport]:
        """Take what has arrived, make it durable, give the ports back; unknown ids are skipped."""
        by_worker: dict[WorkerSupervisor, list[str]] = {}
        for name in stream_ids:
            if (worker := self._at.pop(name, None)) is not None:
                by_worker.setdefault(worker, []).append(name)
        self._metrics.streams_active.set(len(self._at))
        replies = await asyncio.gather(
            *(worker.close(names) for worker, names in by_worker.items())
        )
        found = {one.stream_id: one for reply in replies for one in reply}
        reports = [found[name] for name in stream_ids if name in found]
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

    def _by_room(self, session_id: str) -> list[WorkerSupervisor]:
        """Workers for a new stream, best first. While none is alive: the one to wait for.

        Measured pressure counts in tenths, so that noise does not; then the number of streams,
        which also knows of those that were opened since the last sweep.
        """
        alive = [worker for worker in self._workers if worker.alive]
        order = sorted(
            alive or self._workers,
            key=lambda one: (
                not one.has_session(session_id),
                int(10 * one.pressure),
                one.streams,
            ),
        )
        return order if alive else order[:1]
