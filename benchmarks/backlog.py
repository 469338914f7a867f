"""What a long queue costs whoever adds to it, takes from it or looks at it: ms of time, medians.

    benchmarks/backlog.py [--jobs 100000] [--sources 4] [--write build/bench/backlog.json]

So many jobs wait in an SQLite file, of all lengths and of so many sources. One with a few waiting is
told beside it.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median

import structlog
from sqlalchemy import Connection

from siprec_bridge.store import Database, JobRow, SessionRow, jobs, recordings

_NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
_VENDORS = ("whisper",)
_GOAL_MS = 5.0


def job(number: int, sources: int) -> JobRow:
    """A job of 10 s to 10 min."""
    return JobRow(
        f"j{number}", "s", "whisper", 10.0 + number * 7919 % 590,
        _NOW + timedelta(seconds=number), source=f"source{number % sources}",
    )  # fmt: skip


def fill(count: int, sources: int, connection: Connection) -> None:
    """Queue them with places in the order of their coming: what `insert` computes takes long here."""
    recordings.insert(connection, SessionRow("s", "c", "finished", _NOW, "p", "f", "{}"))
    for number in range(count):
        row = job(number, sources)
        jobs.insert(connection, _placed(row))


def _placed(row: JobRow) -> JobRow:
    values = {name: getattr(row, name) for name in JobRow.__slots__}
    return JobRow(**(values | {"order_at": row.created_at + timedelta(seconds=row.audio_seconds)}))


async def measure(count: int, sources: int) -> dict[str, float]:
    """Median times in ms."""
    with tempfile.TemporaryDirectory(prefix="queue-") as folder:
        database = Database(f"sqlite:///{Path(folder) / 'jobs.db'}")
        await database.start()
        await database.write(partial(fill, count, sources))
        later = _NOW + timedelta(days=30)
        took: dict[str, list[float]] = {}
        numbers = iter(range(count, count + 1000))

        async def timed(name: str, work: Callable[[Connection], object], *, write: bool) -> None:
            begun = time.perf_counter()
            await (database.write(work) if write else database.read(work))
            took.setdefault(name, []).append((time.perf_counter() - begun) * 1e3)

        for _ in range(20):
            new = job(next(numbers), sources)
            await timed("add", partial(jobs.insert, row=new), write=True)
            await timed(
                "look for what waits", partial(jobs.ready, vendors=_VENDORS, most=64), write=False
            )
            await timed(
                "claim 4", partial(jobs.claim, limit=4, now=later, vendor="whisper"), write=True
            )
            await timed(
                "when the next is due", partial(jobs.next_due, vendors=_VENDORS), write=False
            )
            await timed("backlog", jobs.backlog, write=False)
        await database.stop()
    return {name: median(times) for name, times in took.items()}


def main() -> None:
    """Measure a short and a long queue, print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    short = asyncio.run(measure(20, options.sources))
    long = asyncio.run(measure(options.jobs, options.sources))
    print(f"{'ms, medians':<24}{'20 wait':>10}{f'{options.jobs} wait':>16}")
    results = []
    for name, value in long.items():
        print(f"{name:<24}{short[name]:>10.2f}{value:>16.2f}")
        results.append(
            {
                "name": f"queue of {options.jobs}: {name}", "value": round(value, 2), "unit": "ms",
                "goal": _GOAL_MS, "ok": value <= _GOAL_MS, "how": "benchmarks/backlog.py",
            }
        )  # fmt: skip
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
