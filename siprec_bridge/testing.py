"""The checks that every provider must pass: for an author's own test suite.

    from siprec_bridge.testing import ProviderContract

    class TestAcme(ProviderContract):
        vendor = "acme"

        def options(self, folder):
            return {"ACME_URL": "http://127.0.0.1:8000"}

pytest collects the class (any runner that hands in `tmp_path` will do); nothing of pytest is needed
here. English is spoken in the sample, so the options should choose it. What an author leaves out
(`wrong_options`, `away_options`) is skipped.
"""

import asyncio
import hashlib
import os
import time
import wave
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar
from unittest import SkipTest

from siprec_bridge.provider import (
    AudioFile,
    ConfigurationError,
    Job,
    Provider,
    ProviderError,
    ProviderUnavailable,
    Run,
)
from siprec_bridge.transcript import Transcript
from siprec_bridge.transcription import load_provider
from siprec_bridge.trial import MOST_WRONG_WORDS, sample_job, sample_words, word_error_rate

T = TypeVar("T")

_SLACK_S = 1.0  # recognisers round times up beyond the end of the audio
_MOST_CHEAP_S = 1.0
_MOMENTS_S = (0.0, 0.05, 0.3)  # after which a run is cancelled


class ProviderContract:
    """Subclass it, name the `vendor`, and say with which `options` it works."""

    vendor: str  # the entry point's name
    most_wrong_words = (
        MOST_WRONG_WORDS  # 0..1 of the sample's; 1 for a recogniser that is no real one
    )
    patience_s = 60.0  # for one run

    def options(self, folder: Path) -> Mapping[str, str]:
        """The settings with which the provider works; `folder` is for its files."""
        raise NotImplementedError

    def wrong_options(self) -> Iterable[tuple[str, str]]:
        """Settings and values, each of which must stop the start."""
        return ()

    def away_options(self, folder: Path) -> Mapping[str, str] | None:
        """The settings with which its service or program is not there."""
        return None

    def load(self, options: Mapping[str, str]) -> Provider:
        """As the bridge does it, by entry point."""
        return load_provider(self.vendor, options)

    def test_the_bridge_finds_it_and_can_use_its_figures(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            assert provider.name == self.vendor, "name must be that of the entry point"
            assert provider.model, "model: the one that is used when a job names none"
            assert 8000 <= provider.sample_rate <= 48000, "sample_rate: Hz"
            assert provider.max_concurrent is None or provider.max_concurrent >= 1
            assert provider.max_batch >= 1
            assert _one_line(provider.describe()), "describe(): one line"

        self._with(tmp_path, check)

    def test_a_wrong_setting_stops_the_start_and_is_named(self, tmp_path: Path) -> None:
        wrong = list(self.wrong_options())
        if not wrong:
            raise SkipTest("wrong_options() names none")
        for name, value in wrong:
            named = None
            try:
                self.load(dict(self._options(tmp_path)) | {name: value})
            except ConfigurationError as error:
                named = error.setting
            assert named is not None, f"{name}={value} was accepted"
            assert name in named, f"{name}={value}: the error names {named}"

    def test_it_says_cheaply_that_it_is_ready(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            begun = time.monotonic()
            cause = await provider.unavailable()
            assert time.monotonic() - begun < _MOST_CHEAP_S, "unavailable() is polled"
            assert cause is None, f"unavailable(): {cause}"

        self._with(tmp_path, check)

    def test_without_its_service_jobs_wait_and_do_not_fail(self, tmp_path: Path) -> None:
        options = self.away_options(tmp_path)
        if options is None:
            raise SkipTest("away_options() are none")

        async def check(provider: Provider) -> None:
            cause = await provider.unavailable()
            assert cause is None or _one_line(cause), "unavailable(): one line, or None"
            async with sample_job(provider.sample_rate) as job:
                outcome = self._outcomes(await self._run(provider, job), job)[job.id]
            assert isinstance(outcome, ProviderUnavailable), f"the job waits, not: {outcome!r}"

        self._with(tmp_path, check, options)

    def test_each_job_of_a_run_gets_its_own_words(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            async with AsyncExitStack() as stack:
                both = await stack.enter_async_context(sample_job(provider.sample_rate, "both"))
                alice, bob = both.audio
                # The same key in two jobs, for another voice.
                other = Job("other", (AudioFile(alice.key, bob.path, bob.duration),))
                run = await self._run(provider, both, other)
            outcomes = self._outcomes(run, both, other)
            for id, spoken in (
                ("both", {"alice": "alice", "bob": "bob"}),
                ("other", {"alice": "bob"}),
            ):
                heard = outcomes[id]
                assert not isinstance(heard, ProviderError), f"{id}: {heard!r}: {_stderr(run)}"
                for one, speaker in spoken.items():
                    wrong = word_error_rate(sample_words()[speaker], heard[one].text)
                    assert wrong <= self.most_wrong_words, f"{id}, {one}: heard {heard[one].text!r}"
                    self._check_times(heard[one], alice.duration)
            assert run.facts.status == "success", run.facts
            assert run.facts.provider == self.vendor

        self._with(tmp_path, check)

    def test_silence_is_a_transcript(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            job = Job("quiet", (_quiet(tmp_path, provider.sample_rate),))
            run = await self._run(provider, job)
            heard = self._outcomes(run, job)["quiet"]
            assert not isinstance(heard, ProviderError), f"{heard!r}: {_stderr(run)}"
            self._check_times(heard[job.audio[0].key], job.audio[0].duration)

        self._with(tmp_path, check)

    def test_audio_that_cannot_be_read_is_an_outcome(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            text = tmp_path / "text.wav"
            text.write_text("no audio at all")
            gone = Job("gone", (AudioFile("1", tmp_path / "gone.wav", 1.0),))
            other = Job("text", (AudioFile("1", text, 1.0),))
            for job in (gone, other):
                outcome = self._outcomes(await self._run(provider, job), job)[job.id]
                assert isinstance(outcome, ProviderError) or job is other, f"{job.id}: {outcome}"

        self._with(tmp_path, check)

    def test_a_jobs_own_model_and_language_are_no_trouble(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            audio = (_quiet(tmp_path, provider.sample_rate),)
            first = Job("1", audio, model=provider.model, language="en")
            second = Job("2", audio, language="de", log_fields={"session_id": "s"})
            self._outcomes(await self._run(provider, first, second), first, second)

        self._with(tmp_path, check)

    def test_runs_side_by_side_do_not_mix_up_their_words(self, tmp_path: Path) -> None:
        async def check(provider: Provider) -> None:
            async with sample_job(provider.sample_rate) as both:
                jobs = [Job(one.key, (one,)) for one in both.audio]
                runs = await asyncio.gather(*(self._run(provider, job) for job in jobs))
            for job, run in zip(jobs, runs, strict=True):
                heard = self._outcomes(run, job)[job.id]
                assert not isinstance(heard, ProviderError), f"{job.id}: {heard!r}: {_stderr(run)}"
                wrong = word_error_rate(sample_words()[job.id], heard[job.id].text)
                assert wrong <= self.most_wrong_words, f"{job.id}: heard {heard[job.id].text!r}"

        self._with(tmp_path, check)

    def test_cancelled_it_leaves_no_process_and_no_file(self, tmp_path: Path) -> None:
        options = self._options(tmp_path)
        temp = Path(options["TMPDIR"])
        loaded = _tick()  # servers of other tests were there before

        async def check(provider: Provider) -> None:
            async with sample_job(provider.sample_rate) as both:
                job = Job("cancelled", both.audio[:1])
                before = _children(loaded)
                for moment in _MOMENTS_S:
                    run = asyncio.create_task(provider.transcribe([job]))
                    await asyncio.wait({run}, timeout=moment)
                    run.cancel()
                    done, _ = await asyncio.wait({run}, timeout=self.patience_s)
                    assert done, f"it goes on for {self.patience_s:g} s after it was cancelled"
                    if not run.cancelled():  # it may have been as quick
                        self._outcomes(run.result(), job)
                    left = _children(loaded) - before
                    assert not left, f"cancelled after {moment:g} s it leaves processes: {left}"
                    files = _names(temp)
                    assert not files, f"cancelled after {moment:g} s it leaves in TMPDIR: {files}"

        self._with(tmp_path, check, options)

    def test_a_run_leaves_the_audio_as_it_was_and_no_file(self, tmp_path: Path) -> None:
        options = self._options(tmp_path)
        temp = Path(options["TMPDIR"])
        folder = tmp_path / "audio"
        folder.mkdir()

        async def check(provider: Provider) -> None:
            job = Job("job", (_quiet(folder, provider.sample_rate),))
            before = _contents(folder)
            await self._run(provider, job)
            assert _contents(folder) == before, "the audio's folder belongs to the bridge"
            files = _names(temp)
            assert not files, f"it leaves in TMPDIR: {files}"

        self._with(tmp_path, check, options)

    def _options(self, folder: Path) -> Mapping[str, str]:
        temp = folder / "tmp"
        temp.mkdir(exist_ok=True)
        return {"TMPDIR": str(temp)} | dict(self.options(folder))

    def _with(
        self,
        folder: Path,
        check: Callable[[Provider], Awaitable[T]],
        options: Mapping[str, str] | None = None,
    ) -> T:
        """Run the check on a provider in an event loop of its own, and close it."""
        given = options if options is not None else self._options(folder)

        async def run() -> T:
            provider = self.load(given)
            try:
                return await check(provider)
            finally:
                await provider.close()

        return asyncio.run(run())

    async def _run(self, provider: Provider, *jobs: Job) -> Run:
        async with asyncio.timeout(self.patience_s):
            return await provider.transcribe(jobs)

    def _outcomes(
        self, run: Run, *jobs: Job
    ) -> Mapping[str, Mapping[str, Transcript] | ProviderError]:
        assert set(run.outcomes) == {job.id for job in jobs}, "an outcome for each job"
        for job in jobs:
            outcome = run.outcomes[job.id]
            if isinstance(outcome, ProviderError):
                assert outcome.reason, "a reason, for metrics"
                continue
            assert set(outcome) == {one.key for one in job.audio}, "a transcript for each audio"
        assert run.facts.status in ("success", "error", "timeout"), run.facts.status
        return run.outcomes

    def _check_times(self, heard: Transcript, duration: float) -> None:
        last = 0.0
        for segment in heard.segments:
            assert segment.start >= last, f"segments in order of their start: {segment}"
            assert segment.start <= segment.end <= duration + _SLACK_S, (
                f"beyond the audio: {segment}"
            )
            last = segment.start
            for word in segment.words:
                assert word.start <= word.end <= duration + _SLACK_S, f"beyond the audio: {word}"
                assert word.probability is None or 0 <= word.probability <= 1, str(word)


def _one_line(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text


def _stderr(run: Run) -> str:
    return run.facts.stderr_tail or "no stderr"


def _quiet(folder: Path, rate: int) -> AudioFile:
    path = folder / "quiet.wav"
    with wave.open(str(path), "wb") as wav:
        wav.setparams((1, 2, rate, 0, "NONE", ""))
        wav.writeframes(bytes(2 * rate))
    return AudioFile("1/ü 2", path, 1.0)  # a label of a stream may be no name for a file


def _children(since: int) -> set[int]:
    """Processes beneath this one that began at tick `since` or later (proc(5), fields 4 and 22).

    What is beneath an older one is its own affair. Zombies that nobody has waited for count.
    """
    beneath: dict[int, list[int]] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[19]) >= since:
            beneath.setdefault(int(fields[1]), []).append(int(pid))
    found: set[int] = set()
    unseen = [os.getpid()]
    while unseen:
        pids = beneath.get(unseen.pop(), ())
        unseen += pids
        found.update(pids)
    return found


def _tick() -> int:
    """The time now in the unit in which the kernel notes when a process began."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def _contents(folder: Path) -> dict[str, str]:
    return {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(folder.iterdir())
    }
