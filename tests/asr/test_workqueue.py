"""Order, limits, deadline, cancellation and the end of the work queue."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from siprec_asr.errors import Cancelled, Refused
from siprec_asr.metrics import Metrics
from siprec_asr.workqueue import BATCH, LIVE, WorkQueue


class Bench:
    """A queue, and work that waits for a sign."""

    def __init__(self, workers: int = 1, limit: int = 10, limit_seconds: float = 1000) -> None:
        self.metrics = Metrics()
        self.queue = WorkQueue(workers, limit, limit_seconds, self.metrics)
        self.go = threading.Event()
        self.order: list[str] = []
        self.ended = threading.Event()

    def work(self, name: str) -> Callable[[threading.Event], str]:
        def run(cancelled: threading.Event) -> str:
            self.order.append(name)
            while not self.go.wait(0.005):
                if cancelled.is_set():
                    self.ended.set()
                    raise Cancelled
            return name

        return run

    def submit(
        self, name: str, *, seconds: float = 1, deadline: float = 20, priority: int = BATCH
    ) -> "asyncio.Task[str]":
        return asyncio.ensure_future(
            self.queue.run(self.work(name), seconds=seconds, deadline=deadline, priority=priority)
        )

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"siprec_asr_{name}")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what threads do has no event of the loop's
            await asyncio.sleep(0.005)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.go.set()
    assert await bench.queue.stop(5)


async def test_live_work_goes_ahead_of_what_waits(bench: Bench) -> None:
    first = bench.submit("first")
    await until(lambda: bench.order == ["first"])
    rest = [bench.submit("batch"), bench.submit("batch too"), bench.submit("live", priority=LIVE)]
    await until(lambda: bench.value("queue_depth") == 3)

    bench.go.set()

    assert await asyncio.gather(first, *rest) == ["first", "batch", "batch too", "live"]
    assert bench.order == ["first", "live", "batch", "batch too"]
    assert bench.value("queue_wait_seconds_count") == 4


async def test_files_leave_a_worker_to_live_streams_while_there_are_any() -> None:
    bench = Bench(workers=2)
    with bench.queue.live_stream():
        files = [bench.submit("file"), bench.submit("file too")]
        await until(lambda: bench.value("queue_depth") == 1)
        live = bench.submit("live", priority=LIVE)
        await until(lambda: bench.order == ["file", "live"])
        live.cancel()
        await until(bench.ended.is_set)
        assert bench.value("queue_depth") == 1

    await until(lambda: bench.order == ["file", "live", "file too"])
    bench.go.set()
    assert await asyncio.gather(*files) == ["file", "file too"]
    assert await bench.queue.stop(5)


async def test_a_full_queue_says_when_to_come_again() -> None:
    bench = Bench(limit=2)
    tasks = [bench.submit(str(number), seconds=100) for number in range(3)]
    await until(lambda: bench.value("queue_depth") == 2)

    with pytest.raises(Refused) as told:
        await bench.submit("one too many")

    assert (told.value.status, told.value.code) == (429, "queue_full")
    assert told.value.retry_after is not None
    assert told.value.retry_after > 1
    assert bench.value("queue_audio_seconds") == 200
    bench.go.set()
    assert await asyncio.gather(*tasks) == ["0", "1", "2"]
    await bench.queue.stop(5)


async def test_the_queue_is_full_by_play_time_too_but_not_for_a_first_long_piece() -> None:
    bench = Bench(limit_seconds=100)
    running = bench.submit("runs")
    long = bench.submit("long", seconds=5000)
    await until(lambda: bench.value("queue_depth") == 1)

    with pytest.raises(Refused, match="5000 s"):
        await bench.submit("short")

    bench.go.set()
    assert [await running, await long] == ["runs", "long"]
    await bench.queue.stop(5)


async def test_when_nobody_waits_any_more_the_work_ends_and_the_slot_is_free(bench: Bench) -> None:
    running, waiting, next_one = bench.submit("runs"), bench.submit("waits"), bench.submit("next")
    await until(lambda: bench.order == ["runs"])

    waiting.cancel()
    running.cancel()
    await until(bench.ended.is_set)
    bench.go.set()

    assert await next_one == "next"
    assert bench.order == ["runs", "next"]
    assert bench.value("runs_cancelled_total") == 2
    assert bench.value("queue_depth") == 0


async def test_the_deadline_counts_from_the_request_and_ends_the_work(bench: Bench) -> None:
    with pytest.raises(Refused) as told:
        await bench.submit("slow", deadline=0.1)

    assert (told.value.status, told.value.code) == (504, "deadline")
    await until(bench.ended.is_set)
    await until(lambda: bench.value("runs_active") == 0)


async def test_an_error_of_the_work_is_the_waiters(bench: Bench) -> None:
    def fail(cancelled: threading.Event) -> None:
        raise TimeoutError("the work's own")

    with pytest.raises(TimeoutError, match="own"):
        await bench.queue.run(fail, seconds=1, deadline=5)
    bench.go.set()
    assert await bench.submit("goes on") == "goes on"


async def test_stopping_refuses_what_waits_and_lets_what_runs_end() -> None:
    bench = Bench()
    running, waiting = bench.submit("runs"), bench.submit("waits")
    await until(lambda: bench.order == ["runs"])

    stopping = asyncio.ensure_future(bench.queue.stop(10))
    with pytest.raises(Refused, match="stopping"):
        await waiting
    with pytest.raises(Refused, match="stopping"):
        await bench.submit("late", priority=LIVE)
    bench.go.set()

    assert await running == "runs"
    assert await stopping


async def test_stopping_is_bounded() -> None:
    bench = Bench()
    running = bench.submit("runs")
    await until(lambda: bench.order == ["runs"])

    assert await bench.queue.stop(0.05)

    assert bench.ended.is_set()
    with pytest.raises(Refused, match="stopping"):
        await running
