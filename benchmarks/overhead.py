"""What the bridge costs a job outside of the recogniser, and how long a caller waits for it.

A real database, the real scheduler and completion, the whisper provider, and as recogniser a shell
script that writes "hello" for each file: CPU of this process alone is counted, as it
is a job's share of the bridge; the recogniser's own start is told beside it. One row without and one
with voice detection (calls of 20 s, half of them silence). Prints a table, writes
build/bench/overhead.json.
"""

import argparse
import asyncio
import json
import resource
import tempfile
import time
import wave
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import structlog

from siprec_bridge.media import FinishedAudio, FinishedLeg
from siprec_bridge.provider import ProviderError
from siprec_bridge.recording import Completion, Orders
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import Database, JobRow, SessionRow, jobs, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts, Transcript
from siprec_bridge.transcription import Guard, Scheduler, SpeechOptions
from siprec_providers.whisper import WhisperCli

_SECONDS = 20
_RATE = 16000
_SAMPLE = Path(__file__).parents[1] / "siprec_bridge" / "caller" / "sample"

_RECOGNISER = """#!/bin/sh
date +%s%N > "$0.started"
while [ "$1" != --model ]; do files="$files $1"; shift; done
shift 2; out=$2
for file in $files; do
  name=${file##*/}
  echo '{"text":"hello","segments":[{"start":0.5,"end":1,"text":"hello"}]}' > "$out/${name%.*}.json"
done
date +%s%N > "$0.ended"
"""


def leg(path: Path, speaker: str) -> None:
    """Speech for half of the time, twice, at the recogniser's rate."""
    with wave.open(str(_SAMPLE / f"{speaker}.wav")) as given:
        pcm = np.frombuffer(given.readframes(5 * given.getframerate()), "<i2")
        pcm = np.repeat(pcm, _RATE // given.getframerate())
    whole = np.concatenate([pcm, np.zeros(5 * _RATE, np.int16)] * 2)[: _SECONDS * _RATE]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, _RATE, 0, "NONE", ""))
        file.writeframes(whole.astype("<i2").tobytes())


def cpu() -> float:
    """Seconds of this process, its threads included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(count: int, *, speech: bool) -> dict[str, float]:
    """CPU, and both latencies, of so many jobs that come one at a time; medians, in ms."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        binary = folder / "recogniser"
        binary.write_text(_RECOGNISER)
        binary.chmod(0o755)
        (folder / "tmp").mkdir()
        provider = WhisperCli.from_options(
            {"WHISPER_BINARY_PATH": str(binary), "TMPDIR": str(folder / "tmp")}
        )
        legs = []
        for number, speaker in enumerate(("alice", "bob")):
            leg(folder / f"{speaker}.wav", speaker)
            legs.append(
                FinishedLeg(
                    stream_id=speaker,
                    index=number,
                    label=str(number),
                    file=f"{speaker}.wav",
                    started_at=datetime.now(UTC),
                    duration=_SECONDS,
                    sample_rate=_RATE,
                    packets=50 * _SECONDS,
                )
            )
        audio = FinishedAudio(tuple(legs))
        database = Database(f"sqlite:///{folder / 'bench.db'}")
        await database.start()
        metrics, told = Metrics(), asyncio.Event()
        heard_at = [0]

        def deliver() -> None:
            heard_at[0] = time.time_ns()
            told.set()

        completion = Completion(
            database, metrics, sinks=["amqp"], clock=lambda: datetime.now(UTC), deliver=deliver
        )

        async def failed(job: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
            raise SystemExit(f"{job.id}: {error}")

        async def done(job: JobRow, heard: Mapping[str, Transcript], facts: RunFacts) -> None:
            await completion.done(job, heard, facts)

        scheduler = Scheduler(
            database, [provider], metrics,
            load=completion.load, on_done=done, on_failed=failed,
            clock=lambda: datetime.now(UTC), speech=SpeechOptions() if speech else None,
            guard=Guard(),
        )  # fmt: skip
        running = asyncio.create_task(scheduler.run())
        orders = Orders("whisper", ("whisper",))
        starts, ends, work = [], [], []
        for number in range(count + 3):
            now = datetime.now(UTC)
            row = SessionRow(
                f"s{number}", "call", "finished", now - timedelta(seconds=_SECONDS),
                "udp:192.0.2.1:5060", str(folder),
                SessionDocument(session_id=f"s{number}").model_dump_json(), ended_at=now,
                audio=AUDIO.dump_json(audio).decode(),
            )  # fmt: skip
            document = SessionDocument.model_validate_json(row.document)
            job = orders.first(row, document, 2.0 * _SECONDS, now)
            await database.write(partial(recordings.insert, row=row))
            told.clear()
            before, begun = cpu(), time.time_ns()
            await database.write(partial(jobs.insert, row=job))
            scheduler.wake()
            async with asyncio.timeout(30):
                await told.wait()
            work.append((cpu() - before) * 1e3)
            starts.append((int((folder / "recogniser.started").read_text()) - begun) / 1e6)
            ends.append((heard_at[0] - int((folder / "recogniser.ended").read_text())) / 1e6)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.stop()
        await provider.close()
    return {"cpu": median(work[3:]), "start": median(starts[3:]), "end": median(ends[3:])}


def main() -> None:
    """Measure both rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50, help="jobs of each row")
    count = parser.parse_args().jobs
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    results = []
    print(f"{'':<24}{'CPU a job':>12}{'job to start':>14}{'exit to event':>15}   (ms, medians)")
    for label, speech in (("whole legs (VAD=false)", False), ("speech alone", True)):
        found = asyncio.run(measure(count, speech=speech))
        print(f"{label:<24}{found['cpu']:>12.1f}{found['start']:>14.1f}{found['end']:>15.1f}")
        for name, goal in (("cpu", 15), ("start", 50), ("end", 20)):
            results.append(
                {
                    "name": f"overhead.{name}.{'vad' if speech else 'whole'}",
                    "value": round(found[name], 2), "unit": "ms", "goal": goal,
                    "ok": found[name] <= goal, "how": f"median of {count} jobs",
                }
            )  # fmt: skip
    target = Path("build/bench/overhead.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
