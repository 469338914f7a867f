"""Our own provider passes the kit that authors get, and the kit catches those that should not."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from harness.provider import ScriptedProvider
from siprec_bridge.provider import Job, Provider, ProviderError, Run
from siprec_bridge.testing import ProviderContract
from siprec_bridge.transcript import RunFacts, Segment, Transcript
from siprec_bridge.trial import sample_words

STANDIN = str(Path(sys.executable).with_name("whisper-standin"))


@pytest.mark.peer
class TestWhisper(ProviderContract):
    vendor = "whisper"
    patience_s = 100.0

    def options(self, folder: Path) -> Mapping[str, str]:
        return {"WHISPER_BINARY_PATH": STANDIN, "WHISPER_TIMEOUT": "90s"}

    def wrong_options(self) -> Iterable[tuple[str, str]]:
        return [("WHISPER_TIMEOUT", "soon"), ("WHISPER_TASK", "sing"), ("TMPDIR", "/nowhere")]

    def away_options(self, folder: Path) -> Mapping[str, str] | None:
        return {"WHISPER_BINARY_PATH": str(folder / "no-such-program")}


Transcribe = Callable[["Faulty", Sequence[Job]], Run]


class Faulty(ScriptedProvider):
    """Right in all but what a test changes: it knows what the sample says."""

    name = "faulty"

    def __init__(self, temp: Path, change: Transcribe | None = None) -> None:
        super().__init__()
        self.temp = temp
        self.change = change

    async def transcribe(self, jobs: Sequence[Job]) -> Run:
        await asyncio.sleep(0)
        return self.change(self, jobs) if self.change is not None else self.good(jobs)

    def good(self, jobs: Sequence[Job]) -> Run:
        outcomes: dict[str, Mapping[str, Transcript] | ProviderError] = {}
        for job in jobs:
            heard = {}
            for audio in job.audio:
                if not audio.path.exists():
                    outcomes[job.id] = ProviderError("no_audio")
                    break
                text = sample_words().get(audio.path.stem, "")
                segments = (Segment(text=text, start=0.0, end=audio.duration),) if text else ()
                heard[audio.key] = Transcript(segments=segments)
            else:
                outcomes[job.id] = heard
        facts = RunFacts(provider=self.name, model=self.model, status="success")
        return Run(facts, outcomes)


class Kit(ProviderContract):
    vendor = "faulty"
    patience_s = 5.0

    def __init__(self, change: Transcribe | None = None) -> None:
        self.change = change

    def options(self, folder: Path) -> Mapping[str, str]:
        return {}

    def load(self, options: Mapping[str, str]) -> Provider:
        return Faulty(Path(options["TMPDIR"]), self.change)


def checks(kit: ProviderContract, folder: Path) -> list[str]:
    """Names of the checks that fail."""
    failed = []
    for name in dir(kit):
        if not name.startswith("test_"):
            continue
        place = folder / name
        place.mkdir()
        try:
            getattr(kit, name)(place)
        except AssertionError:
            failed.append(name)
        except Exception as error:  # noqa: BLE001  whatever a faulty provider lets out
            failed.append(f"{name}: {type(error).__name__}")
    return [name for name in failed if not name.endswith("SkipTest")]


def test_a_provider_without_a_fault_passes(tmp_path: Path) -> None:
    assert checks(Kit(), tmp_path) == []


def leaves_a_file(provider: Faulty, jobs: Sequence[Job]) -> Run:
    Path(tempfile.mkstemp(dir=provider.temp)[1])
    return provider.good(jobs)


def deletes_the_audio(provider: Faulty, jobs: Sequence[Job]) -> Run:
    run = provider.good(jobs)
    for job in jobs:
        for audio in job.audio:
            audio.path.unlink(missing_ok=True)
    return run


def forgets_a_job(provider: Faulty, jobs: Sequence[Job]) -> Run:
    return provider.good(jobs[:-1])


def hears_late(provider: Faulty, jobs: Sequence[Job]) -> Run:
    late = Transcript(segments=(Segment(text="late", start=500.0, end=501.0),))
    run = provider.good(jobs)
    return Run(run.facts, {job.id: {one.key: late for one in job.audio} for job in jobs})


def hears_everybody_alike(provider: Faulty, jobs: Sequence[Job]) -> Run:
    text = Transcript(segments=(Segment(text=sample_words()["alice"], start=0.0, end=1.0),))
    run = provider.good(jobs)
    return Run(run.facts, {job.id: {one.key: text for one in job.audio} for job in jobs})


def minds_silence(provider: Faulty, jobs: Sequence[Job]) -> Run:
    run = provider.good(jobs)
    silent = [job.id for job in jobs if job.audio[0].path.stem == "quiet"]
    return Run(run.facts, dict(run.outcomes) | dict.fromkeys(silent, ProviderError("no_speech")))


@pytest.mark.parametrize(
    ("change", "caught_by"),
    [
        (leaves_a_file, "test_a_run_leaves_the_audio_as_it_was_and_no_file"),
        (deletes_the_audio, "test_a_run_leaves_the_audio_as_it_was_and_no_file"),
        (forgets_a_job, "test_each_job_of_a_run_gets_its_own_words"),
        (hears_late, "test_each_job_of_a_run_gets_its_own_words"),
        (hears_everybody_alike, "test_runs_side_by_side_do_not_mix_up_their_words"),
        (minds_silence, "test_silence_is_a_transcript"),
    ],
)
def test_the_kit_catches(tmp_path: Path, change: Transcribe, caught_by: str) -> None:
    assert caught_by in checks(Kit(change), tmp_path)


def test_the_kit_catches_a_provider_that_raises(tmp_path: Path) -> None:
    def raises(provider: Faulty, jobs: Sequence[Job]) -> Run:
        raise OSError("disk")

    assert "test_audio_that_cannot_be_read_is_an_outcome: OSError" in checks(Kit(raises), tmp_path)


def test_the_kit_catches_a_process_that_outlives_its_run(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Leaves(Faulty):
        async def transcribe(self, jobs: Sequence[Job]) -> Run:
            started.append(subprocess.Popen(["sleep", "60"]))  # noqa: ASYNC220  it shall be wrong
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    class LeavesKit(Kit):
        def load(self, options: Mapping[str, str]) -> Provider:
            return Leaves(Path(options["TMPDIR"]))

    try:
        with pytest.raises(AssertionError, match="it leaves processes"):
            LeavesKit().test_cancelled_it_leaves_no_process_and_no_file(tmp_path)
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_what_another_process_starts_is_not_taken_for_the_providers(tmp_path: Path) -> None:
    class Slow(Faulty):
        async def transcribe(self, jobs: Sequence[Job]) -> Run:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    class SlowKit(Kit):
        def load(self, options: Mapping[str, str]) -> Provider:
            return Slow(Path(options["TMPDIR"]))

    # A database server beside the tests starts helpers of its own whenever it likes.
    server = subprocess.Popen(["sh", "-c", "while :; do sleep 0.02; done"])
    time.sleep(0.05)  # so that it is older than the provider
    try:
        SlowKit().test_cancelled_it_leaves_no_process_and_no_file(tmp_path)
    finally:
        server.kill()
        server.wait()
