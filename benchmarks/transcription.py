#!/usr/bin/env python3
"""The same calls through (a) one process a leg and (b) the scheduler: audio hours per CPU hour, WER.

    benchmarks/transcription.py [--binary PATH] [--model M] [--load SECONDS] [--lengths 20,60,300]
                                [--window SECONDS] [--extra ARGUMENTS] [--batch 8] [--rounds 1]
                                [--write build/bench/transcription.json]

The parties of a call take turns, so that each leg is about half silence: the bundled sample's lines,
through G.711, over the noise of a line. (a) runs the recogniser once for each leg, as it was
recorded. (b) has a `Scheduler` on a database of its own, with the voice detector, up to
WHISPER_BATCH files a run, and the guard, with each TRANSCRIPTION_PACKING in turn. CPU is that of this process and of all its children, user
and system; (a) and (b) take turns, and the least of each counts.

Without --binary the recogniser is the bundled stand-in. It skips silence itself and starts within
half a second, so that there is little to save. --load burns so much CPU at each start of the
recogniser, as a model takes to load, --window for each begun 30 s of a file, as Whisper computes them
full or not: they show what that does and measure no model. On a machine that others use, too, set
OMP_NUM_THREADS=1: threads that spin, not the work, would be what is measured.
"""

import argparse
import asyncio
import json
import math
import resource
import shlex
import subprocess
import sys
import tempfile
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soxr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.calls import SAMPLE
from harness.rtp import read_wav
from siprec_bridge.doctor import word_error_rate
from siprec_bridge.provider import AudioFile, Job, ProviderError
from siprec_bridge.rtp import decode_g711, encode_g711
from siprec_bridge.store import Database, JobRow, SessionRow, jobs, recordings
from siprec_bridge.telemetry import Metrics, configure_logs
from siprec_bridge.transcript import RunFacts, Transcript
from siprec_bridge.transcription import Guard, PackingPolicy, Scheduler, SpeechOptions
from siprec_providers.whisper import WhisperCli
from siprec_providers.whisper_json import read_output

Pcm = npt.NDArray[np.int16]

_RATE = 8000
_WANTED = 16000  # as the finisher writes legs
_PAUSE_S = 0.6
_NOISE = 20.0  # RMS of 32768: a line at -64 dBFS
_CALLS_S = 80.0  # in one measurement, at least
_PATIENCE_S = 240.0
PACKINGS: Final[tuple[PackingPolicy, ...]] = ("off", "call", "calls")


@dataclass(frozen=True)
class Call:
    """The legs of a call, and what is said on each."""

    id: str
    legs: tuple[AudioFile, ...]
    said: Mapping[str, str]


def make_calls(folder: Path, seconds: float, batch: int) -> list[Call]:
    """Calls of this length; short ones are so many that their legs fill a batch."""
    lines = json.loads((SAMPLE / "transcript.json").read_text())
    voices = {name: read_wav(SAMPLE / f"{name}.wav")[1] for name in ("alice", "bob")}
    calls = []
    for number in range(math.ceil(max(_CALLS_S, 20 * batch / 2) / seconds)):
        rng = np.random.default_rng(number)
        size = round(seconds * _RATE)
        pcm = {name: rng.standard_normal(size) * _NOISE for name in voices}
        said: dict[str, list[str]] = {name: [] for name in voices}
        at, turn = 0.3 + 0.1 * number, number
        while True:
            line = lines[turn % len(lines)]
            start, end = round(line["start"] * _RATE), round(line["end"] * _RATE)
            place = round(at * _RATE)
            if place + end - start > size:
                break
            name = line["speaker"]
            pcm[name][place : place + end - start] += voices[name][start:end]
            said[name].append(line["text"])
            at += (end - start) / _RATE + _PAUSE_S
            turn += 1
        legs = tuple(
            AudioFile(name, _write(folder / f"{number}-{name}.wav", audio), seconds)
            for name, audio in pcm.items()
        )
        calls.append(Call(f"call{number}.1", legs, {k: " ".join(v) for k, v in said.items()}))
    return calls


def _write(path: Path, audio: npt.NDArray[np.float64]) -> Path:
    narrow = np.clip(audio, -32768, 32767).astype(np.int16)
    pcm = soxr.resample(decode_g711("PCMU", encode_g711("PCMU", narrow)), _RATE, _WANTED)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_WANTED)
        file.writeframes(pcm.astype("<i2").tobytes())
    return path


def one_process_a_leg(
    binary: str, options: Mapping[str, str], calls: Sequence[Call], folder: Path
) -> dict[tuple[str, str], str]:
    """What is heard, by call and leg."""
    heard = {}
    for call in calls:
        for leg in call.legs:
            subprocess.run(
                [binary, str(leg.path), "--model", options.get("WHISPER_MODEL", "base"),
                 "--output_dir", str(folder), "--output_format", "json", "--language", "en",
                 *shlex.split(options.get("WHISPER_EXTRA_ARGS", ""))],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            data = (folder / leg.path.with_suffix(".json").name).read_bytes()
            heard[call.id, leg.key] = read_output(data, "json", leg.duration).text
    return heard


class Desk:
    """The owner of the jobs: what the bridge's completion is, without its events."""

    def __init__(self, database: Database, calls: Sequence[Call]) -> None:
        self._database = database
        self._calls = {call.id: call for call in calls}
        self.heard: dict[tuple[str, str], str] = {}
        self.all_done = asyncio.Event()

    async def load(self, row: JobRow) -> Job:
        return Job(row.id, self._calls[row.id].legs)

    async def done(self, row: JobRow, heard: Mapping[str, Transcript], facts: RunFacts) -> None:
        await self._database.write(partial(_finish, row.id, facts))
        self.heard |= {(row.id, key): one.text for key, one in heard.items()}
        if len(self.heard) == sum(len(call.legs) for call in self._calls.values()):
            self.all_done.set()

    async def failed(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        raise RuntimeError(f"{row.id}: {error}")


def _finish(job_id: str, facts: RunFacts, connection: object) -> None:
    jobs.finish(connection, job_id, facts, datetime.now(UTC))  # type: ignore[arg-type]


async def through_the_scheduler(
    provider: WhisperCli, calls: Sequence[Call], folder: Path, packing: PackingPolicy = "off"
) -> dict[tuple[str, str], str]:
    """What is heard, by call and leg; all calls wait when it starts."""
    database = Database(f"sqlite:///{folder / 'bench.db'}")
    await database.start()
    desk = Desk(database, calls)

    def insert(connection: object) -> None:
        now = datetime.now(UTC)
        for call in calls:
            session = SessionRow(call.id, "c", "finished", now, "p", "f", "{}")
            recordings.insert(connection, session)  # type: ignore[arg-type]
            seconds = sum(leg.duration for leg in call.legs)
            row = JobRow(call.id, call.id, provider.name, seconds, now)
            jobs.insert(connection, row)  # type: ignore[arg-type]

    await database.write(insert)
    scheduler = Scheduler(
        database, [provider], Metrics(),
        load=desk.load, on_done=desk.done, on_failed=desk.failed,
        clock=lambda: datetime.now(UTC),
        speech=SpeechOptions(), guard=Guard(), packing=packing,
    )  # fmt: skip
    running = asyncio.create_task(scheduler.run())
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await desk.all_done.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.stop()
    return desk.heard


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    own, theirs = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime


def errors(calls: Sequence[Call], heard: Mapping[tuple[str, str], str]) -> float:
    """Word error rate over all legs, a share."""
    wrong = words = 0.0
    for call in calls:
        for key, said in call.said.items():
            count = len(said.split())
            wrong += word_error_rate(said, heard[call.id, key]) * max(1, count)
            words += count
    return wrong / words


def slow_to_load(folder: Path, binary: str, seconds: float, window: float) -> str:
    """The recogniser with so much CPU burnt ahead of it, and for each begun 30 s of each file."""
    path = folder / "slow-to-load"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        "files = sys.argv[1:sys.argv.index('--model')]\n"
        "windows = sum(-(-(os.path.getsize(one) - 44) // (30 * 32000)) for one in files)\n"
        f"while time.process_time() < {seconds} + windows * {window}: pass\n"
        f"os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])\n"
    )
    path.chmod(0o755)
    return str(path)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Run all, print the table, return the results."""
    binary = options.binary or str(Path(sys.executable).with_name("whisper-standin"))
    if options.load or options.window:
        binary = slow_to_load(folder, binary, options.load, options.window)
    settings = {
        "WHISPER_BINARY_PATH": binary, "WHISPER_MODEL": options.model,
        "WHISPER_EXTRA_ARGS": options.extra, "WHISPER_MAX_CONCURRENT": "1",
        "WHISPER_BATCH": str(options.batch), "WHISPER_LANGUAGE": "en",
        "TMPDIR": str(folder),
    }  # fmt: skip
    provider = WhisperCli.from_options({name: text for name, text in settings.items() if text})
    print(
        f"{provider.describe()}, {options.load:g} s of CPU burnt ahead of each run, "
        f"{options.window:g} s for each window"
    )
    print("call     legs   (a) audio h/CPU h    WER   (b) packing   audio h/CPU h    WER   ratio")
    results: list[dict[str, object]] = []
    for seconds in options.lengths:
        place = folder / f"{seconds:g}"
        place.mkdir()
        calls = make_calls(place, seconds, options.batch)
        audio = sum(leg.duration for call in calls for leg in call.legs)
        spent: dict[PackingPolicy | None, float] = {}
        wrong: dict[PackingPolicy | None, float] = {}
        for number in range(options.rounds):
            for way in (None, *PACKINGS):
                room = place / f"{way}{number}"
                room.mkdir()
                before = cpu_seconds()
                if way is None:
                    heard = one_process_a_leg(binary, settings, calls, room)
                else:
                    heard = asyncio.run(through_the_scheduler(provider, calls, room, way))
                spent[way] = min(spent.get(way, 1e9), cpu_seconds() - before)
                wrong[way] = errors(calls, heard)
        short = f"{seconds:g} s calls"
        results.append(
            _result(f"{short}: (a) one process a leg", audio / spent[None], "audio h/CPU h")
        )
        results.append(_result(f"{short}: (a) WER", wrong[None], "share"))
        for way in PACKINGS:
            ratio = spent[None] / spent[way]
            print(
                f"{seconds:4.0f} s  {2 * len(calls):5}   {audio / spent[None]:18.1f}"
                f"  {wrong[None]:5.1%}   {way:11}   {audio / spent[way]:13.1f}"
                f"  {wrong[way]:5.1%}   {ratio:.2f}"
            )
            name = f"{short}: (b) scheduler, packing {way}"
            results += [
                _result(name, audio / spent[way], "audio h/CPU h"),
                _result(f"{name}, WER", wrong[way], "share", wrong[None], at_most=True),
                _result(f"{name}, ratio", ratio, "times", 3.0 if seconds <= 20 else None),
            ]
    return results


def _result(
    name: str, value: float, unit: str, goal: float | None = None, *, at_most: bool = False
) -> dict[str, object]:
    ok = None if goal is None else value <= goal if at_most else value >= goal
    how = " ".join(["benchmarks/transcription.py", *sys.argv[1:]])
    return {
        "name": name, "value": round(value, 3), "unit": unit, "goal": goal, "ok": ok, "how": how,
    }  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", help="recogniser; else the bundled stand-in")
    parser.add_argument("--model", default="base")
    parser.add_argument("--extra", default="", help="its further arguments, quoted as in a shell")
    parser.add_argument("--load", type=float, default=0, help="CPU seconds to burn at each start")
    parser.add_argument(
        "--window", type=float, default=0, help="CPU seconds to burn for each begun 30 s of a file"
    )
    parser.add_argument("--batch", type=int, default=8, help="WHISPER_BATCH")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--lengths", default=[20.0, 60.0, 300.0],
        type=lambda text: [float(one) for one in text.split(",")],
    )  # fmt: skip
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    configure_logs("error", "console", sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
