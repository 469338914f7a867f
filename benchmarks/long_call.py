#!/usr/bin/env python3
"""Memory of a call of ten hours: of the worker that receives it and of the process that finishes it.

    benchmarks/long_call.py [--hours 10] [--seconds-a-sweep 0.005]

A real worker gets one G.711 stream, its packets as fast as it sweeps them (so sweeps are made more
often than in a call); its resident memory is read each hour of the call. Then both legs of calls of
one hour and of all hours, whose clocks run 50 ppm apart, are finished in a process each; the most
memory that this had for itself (files that it maps are not counted) is told, with its CPU time.
"""

import argparse
import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siprec_bridge.media import finish_session
from siprec_bridge.receiver.control import Configuration, StreamSpec, decode, encode
from siprec_bridge.receiver.spool import RTP, SpoolHeader, SpoolWriter, _record
from siprec_bridge.rtp import build_packet
from siprec_bridge.sdp import Codec

_HOUR = 3600 * 50  # packets
_AHEAD = 150  # packets that a socket holds for sure
_CODEC = Codec(0, "PCMU", 8000)
_NOISE = np.random.default_rng(7).integers(0, 256, (50, 160), np.uint8)


def main() -> None:
    """Print both tables, or finish one folder as the child that is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=int, default=10)
    parser.add_argument("--seconds-a-sweep", type=float, default=0.005)
    parser.add_argument("--finish", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.finish is not None:
        _finish(options.finish)
        return
    _receive(options.hours, options.seconds_a_sweep)
    print("\nhours  finished in, CPU s  a leg and hour  largest MB")
    for hours in sorted({1, options.hours}):
        with tempfile.TemporaryDirectory() as place:
            for index in (0, 1):
                _spool(Path(place), index, hours)
            child = subprocess.run(
                [sys.executable, __file__, "--finish", place],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            told = json.loads(child.stdout)
            spent = told["cpu"]
            assert abs(told["duration"] - 3600 * hours) < 1, told
            print(f"{hours:5}  {spent:18.1f}  {spent / hours / 2:14.2f}  {told['mb']:10.0f}")


def _receive(hours: int, sweep_s: float) -> None:
    """One stream of so many hours through a worker of its own."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as place, ours, theirs:
        worker = subprocess.Popen(
            [sys.executable, "-m", "siprec_bridge.receiver.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
        )
        lines = ours.makefile("rb")

        def ask(command: Mapping[str, object]) -> dict[str, Any]:
            ours.sendall(encode({"id": 1, **command}))
            while "id" not in (told := decode(lines.readline())):
                pass
            assert "error" not in told, told
            return told

        configuration = Configuration(20000, 20100, fast=True, rtp_timeout=1e9, sources="any")
        ask({"do": "configure", "configuration": configuration.to_json()})
        spec = StreamSpec("s-0", "s", 0, "1", (_CODEC,), Path(place), "127.0.0.1")
        opening: dict[str, object] = {
            "do": "open",
            "spec": spec.to_json(),
            "port": None,
            "rollovers": [],
        }
        host, port, _ = ask(opening)["port"]
        ask({"do": "sweep", "every": sweep_s})
        print("hour  worker MB")
        print(f"{0:4}  {_memory_mb(worker.pid):9.1f}")
        sent = seen = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.connect((host, port))
            for hour in range(1, hours + 1):
                while seen < hour * _HOUR:
                    while sent < min(seen + _AHEAD, hours * _HOUR):
                        source.send(_packet(sent))
                        sent += 1
                    told = decode(lines.readline())
                    seen += told.get("counters", {}).get("packets", 0)
                print(f"{hour:4}  {_memory_mb(worker.pid):9.1f}", flush=True)
        (report,) = ask({"do": "close", "streams": ["s-0"]})["reports"]
        assert (report["packets"], report["lost"]) == (sent, 0), report
        ours.shutdown(socket.SHUT_RDWR)
        worker.wait(10)


def _packet(number: int, index: int = 0) -> bytes:
    """Noise and silence by turns of 5 s, one leg's in the other's pauses."""
    heard = number // 250 % 2 == index
    payload = _NOISE[number % 50].tobytes() if heard else b"\xff" * 160
    return build_packet(0, number & 0xFFFF, 160 * number & 0xFFFFFFFF, 7 + index, payload)


def _spool(folder: Path, index: int, hours: int) -> None:
    """A leg as a worker would have written it; that of index 1 comes 50 ppm too fast."""
    header = SpoolHeader(f"s-{index}", "s", index, str(index + 1), (_CODEC,), 5_000_000_000)
    writer = SpoolWriter(folder / f"s-{index}.spool", header)
    step = 20_000_000 - 1000 * index  # ns
    for first in range(0, hours * _HOUR, 1000):
        writer.write(
            [
                _record(RTP, 10_000_000_000 + n * step, _packet(n, index))
                for n in range(first, first + 1000)
            ]
        )
    writer.close()


def _finish(folder: Path) -> None:
    most, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, _memory_mb(os.getpid(), "RssAnon"))

    watching = threading.Thread(target=watch)
    watching.start()
    audio = finish_session(folder, "s", 16000)
    done.set()
    watching.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {"duration": audio.duration, "cpu": used.ru_utime + used.ru_stime, "mb": most}
    print(json.dumps(told))


def _memory_mb(pid: int, kind: str = "VmRSS") -> float:
    found = re.search(rf"{kind}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
