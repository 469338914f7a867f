"""Which of the live processes a stream is heard in. None of them hears anything here."""

import asyncio
from pathlib import Path

from harness.live_recogniser import until
from siprec_bridge.live.control import LiveStream
from siprec_bridge.live.engine import LiveEngine
from siprec_bridge.live.recogniser import Wanted
from siprec_bridge.telemetry import Metrics


def engine(most: int, streams: int) -> tuple[LiveEngine, Metrics]:
    metrics = Metrics()
    made = LiveEngine(metrics, lambda *told: None, lambda name: None, most=most)
    for number in range(streams):
        spool = Path(f"{number}.spool")
        made.open(LiveStream(f"s{number}", spool, Wanted("ws://127.0.0.1:1", 5.0)))
    return made, metrics


def known(metrics: Metrics) -> int:
    """How many processes the metrics tell of."""
    (family,) = (
        one for one in metrics.registry.collect() if one.name == "siprec_live_process_busy_ratio"
    )
    return len(family.samples)


def test_a_further_process_starts_when_the_others_are_busy_and_no_sooner() -> None:
    few, few_metrics = engine(8, 100)
    many, many_metrics = engine(8, 500)

    assert (few.processes, known(few_metrics)) == (1, 1)
    assert (many.processes, known(many_metrics)) == (3, 3)


def test_there_are_no_more_than_allowed_and_they_share_what_comes() -> None:
    made, _ = engine(2, 1000)

    assert made.processes == 2
    assert max(made.loads) - min(made.loads) < 0.01


async def test_a_call_that_comes_while_they_are_started_anew_is_not_turned_away() -> None:
    made, _ = engine(2, 100)
    running = asyncio.create_task(made.run())
    await until(lambda: bool(made.pids))
    running.cancel()  # as by a failure
    await asyncio.wait([running])
    made.full = 0.0

    made.open(LiveStream("one more", Path("more.spool"), Wanted("ws://127.0.0.1:1", 5.0)))

    assert made.processes == 2
