"""All live processes: a stream goes to the one that is least busy, and a further one starts in time."""

import asyncio
from collections.abc import Callable, Iterable

from siprec_bridge.live.control import LiveStream
from siprec_bridge.live.supervisor import LiveSupervisor, OnLine, Recogniser
from siprec_bridge.telemetry import Metrics


class LiveEngine:
    """Hears streams in up to `most` processes, of which there is one while that is enough.

    `on_closed` tells when nothing more comes of a stream.
    """

    def __init__(
        self,
        metrics: Metrics,
        on_line: OnLine,
        on_closed: Callable[[str], None],
        *,
        most: int = 1,
    ) -> None:
        self._metrics = metrics
        self._on_line = on_line
        self._told_closed = on_closed
        self._most = most
        # Share of a core; what is left is for calls that become louder, and for those that come at once.
        self.full = 0.6
        self._recogniser = Recogniser(metrics)
        self._processes: list[LiveSupervisor] = []
        self._at: dict[str, LiveSupervisor] = {}  # streams, until nothing more comes of them
        self._group: asyncio.TaskGroup | None = None
        self._add()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that run."""
        return tuple(one.pid for one in self._processes if one.pid is not None)

    @property
    def processes(self) -> int:
        """How many there are to be by now."""
        return len(self._processes)

    @property
    def loads(self) -> tuple[float, ...]:
        """The share of a core that each uses, or will soon."""
        return tuple(one.load for one in self._processes)

    def open(self, stream: LiveStream) -> None:
        """Listen to a stream from now on."""
        process = min(self._processes, key=lambda one: one.load)
        if process.load >= self.full and len(self._processes) < self._most:
            process = self._add()
        self._at[stream.stream_id] = process
        process.open(stream)

    def close(self, stream_ids: Iterable[str]) -> None:
        """Hear streams to the end of their spools."""
        by_process: dict[LiveSupervisor, list[str]] = {}
        for name in stream_ids:
            if (process := self._at.get(name)) is not None:
                by_process.setdefault(process, []).append(name)
        for process, names in by_process.items():
            process.close(names)

    async def run(self) -> None:
        """Keep the processes running until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for process in self._processes:
                self._start(process)

    def _add(self) -> LiveSupervisor:
        number = len(self._processes) + 1
        process = LiveSupervisor(
            number, self._metrics, self._recogniser, self._on_line, self._closed
        )
        self._processes.append(process)
        self._start(process)
        return process

    def _start(self, process: LiveSupervisor) -> None:
        if self._group is not None:  # else `run` does
            work = process.run()
            try:
                self._group.create_task(work, name=f"live process {process.number}")
            except RuntimeError:  # it has ended: who opens a stream must not fail by it, and `run`
                work.close()  # starts all of them anew

    def _closed(self, name: str) -> None:
        self._at.pop(name, None)
        self._told_closed(name)
