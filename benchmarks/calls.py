#!/usr/bin/env python3
"""Calls per second of one core: INVITE, 200, ACK, BYE by SIPp, with media allocated.

    benchmarks/calls.py [--calls 2000] [--rate 100] [--hold 1000] [--watch 10] [--record-only]
        [--set NAME=VALUE]

CPU seconds are those of the bridge and all of its processes, from the first call to the moment
when the last session is archived and the last job is done; SIPp's are not counted. A core does
calls / CPU seconds. Some calls go ahead, after which all processes run and all is imported.
Signalling with media allocated is the bridge's own process and its media workers, with
`--record-only`: jobs are queued, and no recogniser is asked.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from sip_body import body  # noqa: E402

from harness.bridge import Bridge, running_bridge  # noqa: E402
from harness.recognisers import recogniser  # noqa: E402

_PATIENCE_S = 60.0
_AHEAD = 20  # calls
_TICK = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The process and all that it has started."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def cpu_seconds(pid: int) -> dict[str, float]:
    """User and system time by process, ended children of each included."""
    times = {}
    for one in descendants(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        times[f"{_role(one)} {one}"] = sum(map(int, fields[11:15])) / _TICK
    return times


def _role(pid: int) -> str:
    """What a process of the bridge does, by its command line."""
    line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    known = {"\0serve": "bridge", "receiver.worker": "media", "resource_tracker": "tracker"}
    return next((role for part, role in known.items() if part in line), "finisher")


def footprint(pid: int) -> tuple[float, int]:
    """Resident memory in MB and open file descriptors, of all its processes."""
    memory, files = 0.0, 0
    for one in descendants(pid):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{one}/status").read_text())
        memory += int(found.group(1)) / 1024 if found else 0.0
        files += len(os.listdir(f"/proc/{one}/fd"))
    return memory, files


async def load(bridge: Bridge, folder: Path, options: argparse.Namespace, calls: int) -> str:
    """Run SIPp; returns the end of what it printed."""
    scenario = folder / "call.xml"
    text = (HERE / "call.xml").read_text()
    scenario.write_text(text.replace("@BODY@", body()).replace("@HOLD@", str(options.hold)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    host, port = bridge.udp
    process = await asyncio.create_subprocess_exec(
        shutil.which("sipp") or "sipp", f"{host}:{port}", "-sf", str(scenario),
        "-m", str(calls), "-r", str(options.rate), "-l", "50000", "-i", "127.0.0.1",
        "-p", str(own), "-nostdin", "-timeout", "600", "-timeout_error",
        "-trace_stat", "-stf", str(folder / "stat.csv"), "-fd", "1",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    (folder / "sipp.txt").write_bytes(out)
    names, *_, last = (folder / "stat.csv").read_text().splitlines()
    row = dict(zip(names.split(";"), last.split(";"), strict=False))
    return (
        f"{row['SuccessfulCall(C)']} succeeded, {row['FailedCall(C)']} failed, "
        f"{row['Retransmissions(C)']} retransmissions, answer {row['ResponseTime1(C)']}"
    )


async def watch(pid: int, every: float) -> None:
    """Print the footprint while the calls go on."""
    begun = time.monotonic()
    while True:
        await asyncio.sleep(every)
        memory, files = footprint(pid)
        print(
            f"at {time.monotonic() - begun:5.0f} s  {memory:.0f} MB, {files} descriptors",
            flush=True,
        )


async def measure(folder: Path, options: argparse.Namespace) -> None:
    environment = {
        "WHISPER_BINARY_PATH": str(recogniser(folder, "is_silent")),
        "WHISPER_ENABLED": str(not options.record_only).lower(),
        **dict(one.split("=", 1) for one in options.set),
    }
    async with running_bridge(folder / "data", **environment) as bridge:
        pid = bridge.process.pid
        await load(bridge, folder, options, _AHEAD)
        await _all_done(folder, jobs=not options.record_only)
        before, start = cpu_seconds(pid), time.monotonic()
        memory, files = footprint(pid)
        stored = _database_octets(folder)
        watching = asyncio.create_task(watch(pid, options.watch)) if options.watch else None
        said = await load(bridge, folder, options, options.calls)
        if watching is not None:
            watching.cancel()
        loaded = time.monotonic() - start
        left = await _all_done(folder, jobs=not options.record_only)
        took = time.monotonic() - start
        after = cpu_seconds(pid)
        spent = sum(after.values()) - sum(before.values())
        print(f"SIPp        {said}")
        if left:
            print(f"ATTENTION   {left} sessions or jobs are not at their end")
        print(f"time        {loaded:.1f} s of calls, {took - loaded:.1f} s until all were archived")
        for name, value in after.items():
            each = 1000 * (value - before.get(name, 0)) / options.calls
            print(f"CPU         {name:16} {each:.2f} ms a call")
        each = 1000 * spent / options.calls
        print(f"CPU         {each:.2f} ms a call: {options.calls / spent:.0f} calls/s a core")
        if options.record_only:
            answering = sum(
                value - before.get(name, 0)
                for name, value in after.items()
                if name.startswith(("bridge", "media"))
            )
            print(
                f"signalling  {1000 * answering / options.calls:.2f} ms a call, media allocated: "
                f"{options.calls / answering:.0f} calls/s a core"
            )
        now_memory, now_files = footprint(pid)
        print(f"memory      {memory:.0f} MB before, {now_memory:.0f} MB after")
        print(f"descriptors {files} before, {now_files} after")
        grown = (_database_octets(folder) - stored) / 1000 / options.calls
        print(f"database    {grown:.1f} kB a call")


def _database_octets(folder: Path) -> int:
    """Of the pages that are in use; the file itself grows in steps."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "siprec-bridge.db")) as database:
        (octets,) = database.execute(
            "SELECT (page_count - freelist_count) * page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()
    return int(octets)


async def _all_done(folder: Path, *, jobs: bool) -> int:
    """Wait until nothing is unfinished, or for so long; returns what is."""
    begun, left = time.monotonic(), _unfinished(folder, jobs=jobs)
    while left and time.monotonic() - begun < _PATIENCE_S:
        await asyncio.sleep(0.1)
        left = _unfinished(folder, jobs=jobs)
    return left


def _unfinished(folder: Path, *, jobs: bool) -> int:
    """Sessions, and if wanted jobs, that are not at their end."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "siprec-bridge.db")) as database:
        (sessions,) = database.execute(
            "SELECT count(*) FROM sessions WHERE state != 'finished'"
        ).fetchone()
        (waiting,) = database.execute(
            "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"
        ).fetchone()
    return int(sessions + (waiting if jobs else 0))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rate", type=int, default=100, help="calls a second")
    parser.add_argument("--hold", type=int, default=1000, help="milliseconds from ACK to BYE")
    parser.add_argument(
        "--watch", type=float, default=0, help="print the footprint every N seconds"
    )
    parser.add_argument("--record-only", action="store_true", help="no job is run")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE of the bridge")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options))


if __name__ == "__main__":
    main()
