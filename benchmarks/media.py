#!/usr/bin/env python3
"""What receiving costs: CPU of a media worker for each RTP packet, beside C that only stores it.

    benchmarks/media.py [--streams 200 1000 2000 4000] [--seconds 6] [--rounds 3] [--payload 160]
                        [--mux] [--rtpengine]

A real worker process receives 50 packets a second on each stream from rtp_load.c and does all that
it does in a call: checks, counts, jitter, loss, spool. A first second, in which it learns each
stream's source, is not counted. Then rtp_load.c sweeps and stores the same
load, and so on in turn; the median of the rounds counts. Packets sent and received are compared,
and each spool is read back and compared octet by octet. Where packets may be captured, a worker with a
ring takes its turn; with --rtpengine rtpengine does, which forwards and records the same load. On
loopback the kernel's part of receiving is paid by the sender: "sender us". Writes
build/bench/media.json.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import rtpengine

from siprec_bridge.media import MediaEngine, StreamSpec
from siprec_bridge.receiver import descriptors
from siprec_bridge.receiver.ring import Ring
from siprec_bridge.receiver.spool import Packets, SpoolReader
from siprec_bridge.sdp import Codec
from siprec_bridge.telemetry import Metrics

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
_TICK = os.sysconf("SC_CLK_TCK")
_FIRST_PORT = 20000
_WARM_UP = 50  # packets of each stream
_LAST_SWEEPS_S = 0.6
_GOAL_US, _GOAL_RATIO = 1.8, 1.6
_GOAL_RING_US, _GOAL_RING_RATIO = 0.9, 0.62
_GOAL_RTPENGINE = 0.5
_RING, _RING_OF_A_STREAM = 1 << 27, 1 << 15  # as the documentation has it
_CLOSED_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Cost:
    """One run. `drops`: by the kernel; `memory_kb`: resident, a stream."""

    sent: int
    received: int
    cpu_us: float  # a packet
    drops: int
    late_ms: int  # the sender, at worst
    sender_us: float  # of its CPU, a packet: on loopback the kernel's part of receiving is in it
    memory_kb: float = 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[200, 1000, 2000, 4000])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--payload", type=int, default=160, help="octets a packet")
    parser.add_argument("--mux", action="store_true", help="RTCP on RTP's port: fewer open files")
    parser.add_argument("--rtpengine", action="store_true", help="beside it, if it is installed")
    options = parser.parse_args()
    if options.rtpengine and not rtpengine.is_there():
        parser.error("rtpengine is not installed (Debian: rtpengine-daemon)")
    room = descriptors.allow(max(options.streams))
    if options.mux:
        room = descriptors.room(max(options.streams), descriptors.OF_A_MUXED)
    BUILD.mkdir(parents=True, exist_ok=True)
    load = BUILD / "rtp_load"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", load, HERE / "rtp_load.c"], check=True)
    packets = round(options.seconds * 50)
    ways = ["sockets"] + ["ring"] * _may_capture()
    print(
        "streams  way      worker us  C us  ratio  share of a core  KB a stream  lost  drops  sender us"
    )
    results: list[dict[str, object]] = []
    for streams in options.streams:
        if streams > room:
            print(f"{streams:7}  no: the limit of open files leaves room for {room}")
            continue
        costs: dict[str, list[Cost]] = {way: [] for way in (*ways, "C")}
        for _ in range(options.rounds):
            for way in ways:
                ring = max(_RING, streams * _RING_OF_A_STREAM) if way == "ring" else 0
                costs[way].append(
                    asyncio.run(_worker(load, streams, packets, options.payload, ring, options.mux))
                )
            costs["C"].append(_yardstick(load, streams, packets, options.payload))
            if options.rtpengine:
                costs.setdefault("rtpengine", []).append(
                    _rtpengine(load, streams, packets, options.payload)
                )
        least = statistics.median(one.cpu_us for one in costs["C"])
        sender = statistics.median(one.sender_us for one in costs["C"])
        for way in ways:
            ours = costs[way]
            cost = statistics.median(one.cpu_us for one in ours)
            lost = sum(one.sent - one.received for one in ours)
            drops = sum(one.drops for one in ours)
            memory = max(one.memory_kb for one in ours)
            share = cost * streams * 50 / 1e6
            print(
                f"{streams:7}  {way:7}  {cost:9.2f}  {least:4.2f}  {cost / least:5.2f}  {share:15.1%}"
                f"  {memory:11.1f}  {lost:4}  {drops:5}"
                f"  {statistics.median(one.sender_us for one in ours):.2f} (C {sender:.2f})"
            )
            how = f"benchmarks/media.py --streams {streams}, median of {options.rounds}"
            goals = {"sockets": (_GOAL_US, _GOAL_RATIO), "ring": (_GOAL_RING_US, _GOAL_RING_RATIO)}
            suffix = f".{way}" * (way != "sockets")
            for name, value, unit, goal in (
                ("cpu_per_packet", cost, "us", goals[way][0]),
                ("ratio_to_c", cost / least, "", goals[way][1]),
                ("lost", lost, "packets", 0),
            ):
                results.append(
                    {
                        "name": f"media.{name}.{streams}{suffix}", "value": round(value, 3),
                        "unit": unit, "goal": goal, "ok": value <= goal, "how": how,
                    }
                )  # fmt: skip
        if options.rtpengine:
            theirs = costs["rtpengine"]
            cost = statistics.median(one.cpu_us for one in theirs)
            lost = sum(one.sent - one.received for one in theirs)
            own = statistics.median(one.cpu_us for one in costs["sockets"])
            print(
                f"{streams:7}  rtpengine {cost:7.2f} us, not recorded {lost}; ours {own / cost:.2f}"
            )
            results.append(
                {
                    "name": f"media.ratio_to_rtpengine.{streams}", "value": round(own / cost, 3),
                    "unit": "", "goal": _GOAL_RTPENGINE, "ok": own / cost <= _GOAL_RTPENGINE,
                    "how": f"benchmarks/media.py --rtpengine --streams {streams}",
                }
            )  # fmt: skip
        if (late := max(one.late_ms for way in ways for one in costs[way])) > 100:
            print(f"         the sender was late by {late} ms: the machine has other work")
    (BUILD / "media.json").write_text(json.dumps(results, indent=1) + "\n")


def _may_capture() -> bool:
    try:
        Ring(_FIRST_PORT, _FIRST_PORT, (), 1 << 20).stop()
    except OSError as error:
        print(f"no ring: {error.strerror}")
        return False
    return True


async def _worker(
    load: Path, streams: int, packets: int, payload: int, ring: int, mux: bool
) -> Cost:
    """Have a media worker of ours receive the load."""
    with tempfile.TemporaryDirectory(dir=BUILD) as place:
        folder = Path(place)
        metrics = Metrics()
        engine = MediaEngine(
            port_min=_FIRST_PORT, port_max=_FIRST_PORT + 4 * streams + 100,
            metrics=metrics, on_event=lambda event: None, workers=1, ring=ring,
        )  # fmt: skip
        await engine.start()
        try:
            (pid,) = engine.pids
            bare = _memory_kb(pid)
            codecs = (Codec(0, "PCMU", 8000),)
            ports = []
            for index in range(streams):
                spec = StreamSpec(
                    f"s-{index}", f"s{index}", 0, "1", codecs, folder, "127.0.0.1", rtcp_mux=mux
                )  # fmt: skip
                ports.append((await engine.open(spec)).rtp_port)
            await asyncio.to_thread(_send, load, ports, 0, _WARM_UP, payload)
            await asyncio.sleep(_LAST_SWEEPS_S)
            before = _cpu_seconds(pid)
            sent, sender, late = await asyncio.to_thread(
                _send, load, ports, _WARM_UP, packets, payload
            )
            await asyncio.sleep(_LAST_SWEEPS_S)
            spent = _cpu_seconds(pid) - before
            memory = (_memory_kb(pid) - bare) / streams
            names = [f"s-{index}" for index in range(streams)]
            reports = []
            for start in range(0, streams, _CLOSED_AT_ONCE):  # each waits for the disk
                reports += await engine.close(names[start : start + _CLOSED_AT_ONCE])
        finally:
            await engine.stop()
        for index, port in enumerate(ports):
            _compare(folder / f"s-{index}.spool", port, index, _WARM_UP + packets, payload)
        received = sum(one.packets for one in reports) - _WARM_UP * streams
        # Those of a ring are no stream's.
        drops = metrics.registry.get_sample_value("siprec_rtp_kernel_drops_total") or 0
        return Cost(sent, received, spent / received * 1e6, int(drops), late, sender / sent, memory)


def _yardstick(load: Path, streams: int, packets: int, payload: int) -> Cost:
    """Have C receive and store the load, and do nothing else."""
    with (
        tempfile.TemporaryDirectory(dir=BUILD) as folder,
        subprocess.Popen(
            [load, "sweep", str(streams), folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as sweep,
    ):  # fmt: skip
        assert sweep.stdout is not None
        ports = [int(line) for line in iter(sweep.stdout.readline, "ready\n")]
        sent, sender, late = _send(load, ports, 0, packets, payload)
        last, _ = sweep.communicate()
        received, cpu, drops = map(int, re.findall(r"\d+", last))
        return Cost(sent, received, cpu / received, drops, late, sender / sent)


def _rtpengine(load: Path, streams: int, packets: int, payload: int) -> Cost:
    """Have rtpengine forward and record the load."""
    with tempfile.TemporaryDirectory(dir=BUILD) as place:
        folder = Path(place)
        with rtpengine.recorder(streams, folder) as other:
            _send(load, other.ports, 0, _WARM_UP, payload)
            time.sleep(_LAST_SWEEPS_S)
            before = _cpu_seconds(other.pid)
            sent, sender, late = _send(load, other.ports, _WARM_UP, packets, payload)
            time.sleep(_LAST_SWEEPS_S)
            spent = _cpu_seconds(other.pid) - before
        received = rtpengine.recorded(folder, 12 + payload) - _WARM_UP * streams
    return Cost(sent, received, spent / sent * 1e6, 0, late, sender / sent)


def _send(
    load: Path, ports: list[int], first: int, packets: int, payload: int
) -> tuple[int, int, int]:
    """Packets sent, the sender's CPU in us, and how late it was at worst, ms."""
    done = subprocess.run(
        [load, "send", str(first), str(packets), str(payload)],
        input="\n".join(map(str, ports)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    sent, cpu_us, late = map(int, re.findall(r"\d+", done.stdout))
    return sent, cpu_us, late


def _compare(spool: Path, port: int, index: int, packets: int, payload: int) -> None:
    """Every octet that was sent must be there, in order."""
    number = 0
    for run in SpoolReader(spool):
        assert isinstance(run, Packets), run
        for at, length in zip(run.offsets.tolist(), run.lengths.tolist(), strict=True):
            packet = run.data[at : at + length].tobytes()
            expected = (
                b"\x80\0" + number.to_bytes(2, "big") + (160 * number).to_bytes(4, "big")
                + port.to_bytes(4, "big") + bytes([(number + index) & 0xFF]) * payload
            )  # fmt: skip
            assert packet == expected, f"{spool.name}: packet {number} is another"
            number += 1
    assert number == packets, f"{spool.name}: {number} of {packets} packets"


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / _TICK


def _memory_kb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return float(found[1])


if __name__ == "__main__":
    main()
