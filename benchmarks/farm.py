"""What the farm costs a job, and whether it loses any: `benchmarks/farm.py [--jobs 1000]`.

A RabbitMQ and workers of its own; the recogniser is a shell script, so that what remains is the
farm. Prints a table and writes build/bench/farm.json. About two minutes on two cores.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness.farm import PROGRAM, Farm, audio, farm, until
from harness.rabbitmq import RabbitMq
from siprec_wrappers.farm import client

_SCRIPT = """#!/bin/sh
echo "$1" >> {runs}
name=${{1##*/}}
while [ "$1" != --output_dir ]; do shift; done
sleep {seconds}
echo '{{"text": "hello", "language": "en", "segments": []}}' > "$2/${{name%.*}}.json"
"""
Row = dict[str, object]


def script(folder: Path, seconds: float) -> Path:
    """A recogniser that takes so long and notes each run."""
    path = folder / f"recogniser-{seconds:g}"
    path.write_text(_SCRIPT.format(runs=path.with_suffix(".runs"), seconds=seconds))
    path.chmod(0o755)
    return path


def timed(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a program that must succeed."""
    begun, before = time.perf_counter(), _children_cpu()
    subprocess.run(arguments, env=environment, check=True, cwd=tempfile.gettempdir())
    return time.perf_counter() - begun, _children_cpu() - before


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def overhead(one: Farm, command: Path, size: int, repeat: int) -> list[Row]:
    """The client's work against the command itself, by turns. `size` in octets.

    The client's work is timed in this process, its modules loaded; what they and Python's start
    cost is a row of its own. The best is what it costs; the median tells of a busy machine too.
    """
    os.environ |= {n: v for n, v in one.environment.items() if n.startswith("WHISPER_FARM_")}
    direct, inside, whole, cpus = [], [], [], []
    for turn in range(repeat):
        name = one.folder / f"{size}-{turn}.wav"
        arguments = one.call(audio(name, size / 32000, 2 * turn + 1))
        direct.append(timed([str(command), *arguments], one.environment)[0])
        begun = time.perf_counter()
        if client.main(arguments) != 0:
            raise SystemExit("the farm failed")
        inside.append(time.perf_counter() - begun)
        audio(name, size / 32000, 2 * turn + 2)
        wall, cpu = timed([PROGRAM, *arguments], one.environment)
        whole.append(wall)
        cpus.append(cpu)
    goal = 20 if size < 5_000_000 else 40
    label = f"{size // 1_000_000} MB"
    rows: list[Row] = []
    for how, take in ((f"best of {repeat}", min), (f"median of {repeat}", statistics.median)):
        alone, farmed = 1000 * take(direct), 1000 * take(inside)
        rows += [
            row(f"command itself, {label}", alone, "ms", None, how),
            row(f"overhead of the farm, {label}", farmed - alone, "ms", goal, how),
            row(f"whole program, {label}", 1000 * take(whole), "ms", None, how),
            row(f"its CPU, {label}", 1000 * take(cpus), "ms", None, how),
        ]
    return rows


def row(name: str, value: float, unit: str, goal: float | None, how: str) -> Row:
    """One line of the table; goals are upper limits."""
    ok = None if goal is None else value <= goal
    return {
        "name": name, "value": round(value, 1), "unit": unit, "goal": goal, "ok": ok, "how": how,
    }  # fmt: skip


def survive(one: Farm, command: Path, jobs: int) -> list[Row]:
    """So many queued jobs, three workers, two of them killed (-9) on the way."""
    clients = 10
    sources = one.folder / "jobs"
    sources.mkdir()
    files = [audio(sources / f"{n}.wav", 0.05, n) for n in range(jobs)]
    running = [one.client(*files[part::clients], out="jobs-out") for part in range(clients)]
    until(lambda: one.depth()[0] == jobs, "all jobs in the queue", 120)
    begun = time.perf_counter()
    workers = [one.worker(command) for _ in range(3)]
    for number, victim in enumerate(workers[:2], 1):
        enough = number * jobs // 4
        until(partial(_has, one, enough), "progress", 300)
        victim.kill9()
    codes = [client.process.wait(600) for client in running]
    took = time.perf_counter() - begun
    written = len(list((one.folder / "jobs-out").glob("*.json")))
    runs = command.with_suffix(".runs").read_text().split()
    # A part that a killed worker had begun to write is no result; it goes when the store is tidied.
    results = [name for name in one.kept("results") if not name.startswith(".")]
    how = f"{jobs} jobs, 3 workers, 2 killed -9, {took:.0f} s"
    return [
        row("clients that failed", sum(code != 0 for code in codes), "", 0, how),
        row("jobs without a transcript", jobs - written, "", 0, how),
        row("results more than jobs", len(results) - jobs, "", 0, how),
        row("runs begun more than once", len(runs) - len(set(runs)), "", 2, how),
        row("left in queue and dead letters", one.depth()[0] + one.depth(dead=True)[0], "", 0, how),
    ]


def _has(one: Farm, results: int) -> bool:
    return len(one.kept("results")) >= results


def main() -> int:
    """Run both; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = RabbitMq(folder / "rabbitmq")
        broker.start()
        try:
            with farm(folder / "overhead", broker) as one:
                command = script(folder, 0)
                one.worker(command)
                for size in (1_000_000, 30_000_000):
                    rows += overhead(one, command, size, options.repeat)
            with farm(folder / "survive", broker, TIMEOUT="10m") as one:
                rows += survive(one, script(folder, 0.01), options.jobs)
        finally:
            broker.stop()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for one_row in rows:
        goal = "" if one_row["goal"] is None else f"goal {one_row['goal']}"
        verdict = {None: "", True: "ok", False: "MISSED"}[one_row["ok"]]  # type: ignore[index]
        print(
            f"{one_row['name']:<42}{one_row['value']:>10} {one_row['unit']:<3}"
            f"{goal:<9}{verdict:<7}{one_row['how']}"
        )
    target = Path("build/bench/farm.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1))
    return int(any(one_row["ok"] is False for one_row in rows))


if __name__ == "__main__":
    sys.exit(main())
