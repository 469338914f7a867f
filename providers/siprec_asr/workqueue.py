"""Who runs when: a bounded queue before worker threads, live before batch.

A ticket whose waiter leaves is dropped; if it runs, its thread is told, and its slot is free when
the thread has come to an end, not before. Used from one event loop.
"""

import asyncio
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from siprec_asr.errors import Refused
from siprec_asr.metrics import Metrics

LIVE, BATCH = 0, 1

# What a run takes for each second of audio, until there is experience.
_FIRST_GUESS = 0.3

T = TypeVar("T")


@dataclass(eq=False)
class _Ticket:
    seconds: float
    work: Callable[[threading.Event], Any]
    result: "asyncio.Future[Any]"
    priority: int
    cancelled: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)


class WorkQueue:
    """`workers` threads; at most `limit` tickets and `limit_seconds` of audio wait.

    While there is a `live_stream`, one of several workers is kept free of batch work: a file is not
    interrupted, and what somebody listens to cannot wait until it is done.
    """

    def __init__(self, workers: int, limit: int, limit_seconds: float, metrics: Metrics) -> None:
        self.limit = limit
        self.limit_seconds = limit_seconds
        self._streams = 0
        self._workers = workers
        self._metrics = metrics
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, _Ticket]] = []  # a heap
        self._running: set[_Ticket] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._factor = _FIRST_GUESS
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="asr-worker")

    def check(self) -> None:
        """Raises Refused when nothing more is taken: 503 while stopping, 429 when it is full."""
        if self._stopping:
            raise _stopping()
        waiting = self._seconds_waiting()
        # The limit of seconds turns away what comes next, never a first piece for its length.
        if len(self._waiting) >= self.limit or (self._waiting and waiting >= self.limit_seconds):
            raise Refused(
                429, "queue_full",
                f"the queue is full: {len(self._waiting)} pieces of audio, {waiting:.0f} s",
                retry_after=max(1.0, waiting * self._factor / self._workers),
            )  # fmt: skip

    @contextlib.contextmanager
    def live_stream(self) -> Iterator[None]:
        """For the length of the block, there is one stream more that must be heard in time."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            self._start()

    async def run(
        self,
        work: Callable[[threading.Event], T],
        *,
        seconds: float,
        deadline: float,
        priority: int = BATCH,
        admitted: bool = False,
    ) -> T:
        """Have a worker thread do `work`, whose event is set when nobody waits any more.

        `seconds` of audio, `deadline` in seconds from now. Raises Refused: 429, 503, and 504 when
        the deadline is over; and what `work` raises. Live work is taken when the queue is full,
        too: there are as many streams as the settings allow, each with one piece at a time. So is
        what was `admitted` by `check` before: a request of several files as a whole, or it would
        never fit.
        """
        if priority == BATCH and not admitted:
            self.check()
        elif self._stopping:
            raise _stopping()
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ticket = _Ticket(seconds, work, result, priority)
        place = (priority, next(self._numbers), ticket)
        heapq.heappush(self._waiting, place)
        self._start()
        try:
            async with asyncio.timeout(deadline):
                return cast(T, await result)
        except TimeoutError as error:
            if not result.cancelled():  # the work's own
                raise
            raise Refused(504, "deadline", f"not done after {deadline:g} s") from error
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
                heapq.heapify(self._waiting)
            if result.cancelled():
                ticket.cancelled.set()
                self._metrics.runs_cancelled_total.inc()
            self._tell()

    async def stop(self, timeout_s: float) -> bool:
        """Refuse what waits, let what runs end, for `timeout_s` at most; then tell it to stop.

        False when a thread is still at work a second later: a window of audio cannot be interrupted.
        """
        self._stopping = True
        for _, _, ticket in self._waiting:
            if not ticket.result.done():
                ticket.result.set_exception(_stopping())
        self._waiting.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        for ticket in self._running:
            ticket.cancelled.set()
            if not ticket.result.done():
                ticket.result.set_exception(_stopping())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), 1.0)
        self._threads.shutdown(wait=False)
        return not self._running

    def _start(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]):
            _, _, ticket = heapq.heappop(self._waiting)
            if ticket.result.done():
                continue
            self._launch(ticket)
        self._tell()

    def _has_room(self, priority: int) -> bool:
        if priority == LIVE or not self._streams or self._workers == 1:
            return len(self._running) < self._workers
        batch = sum(ticket.priority == BATCH for ticket in self._running)
        return batch < self._workers - 1 and len(self._running) < self._workers

    def _launch(self, ticket: _Ticket) -> None:
        self._running.add(ticket)
        self._idle.clear()
        begun = time.monotonic()
        self._metrics.queue_wait_seconds.observe(begun - ticket.since)
        loop = asyncio.get_running_loop()

        def ended(done: "Future[Any]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is to be told
                loop.call_soon_threadsafe(self._ended, ticket, begun, done)

        self._threads.submit(ticket.work, ticket.cancelled).add_done_callback(ended)

    def _ended(self, ticket: _Ticket, begun: float, done: "Future[Any]") -> None:
        self._running.discard(ticket)
        error = done.exception()
        if ticket.result.done():
            pass  # cancelled, and nobody waits
        elif error is not None:
            ticket.result.set_exception(error)
        else:
            if ticket.seconds >= 1:
                factor = (time.monotonic() - begun) / ticket.seconds
                self._factor += 0.2 * (factor - self._factor)
            ticket.result.set_result(done.result())
        if not self._running:
            self._idle.set()
        self._start()

    def _seconds_waiting(self) -> float:
        return sum(ticket.seconds for _, _, ticket in self._waiting)

    def _tell(self) -> None:
        self._metrics.queue_depth.set(len(self._waiting))
        self._metrics.queue_audio_seconds.set(self._seconds_waiting())
        self._metrics.runs_active.set(len(self._running))


def _stopping() -> Refused:
    return Refused(503, "stopping", "the server is stopping", retry_after=10)
