"""Jobs on a real database, a provider in the test's hand."""

import asyncio
import errno
import math
import os
import sys
import time
import wave
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.calls import SAMPLE
from harness.provider import Outcome, ScriptedProvider, heard
from harness.rtp import read_wav
from siprec_bridge.doctor import word_error_rate
from siprec_bridge.provider import AudioFile, Job, Provider, ProviderError, ProviderUnavailable
from siprec_bridge.store import Database, JobRow, SessionRow, StoreError, jobs, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts, Segment, Suppressed, Transcript, Word
from siprec_bridge.transcription import Guard, PackingPolicy, Scheduler, SpeechOptions
from siprec_providers.whisper import WhisperCli

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Office:
    """The owner of the jobs, as the bridge's completion is: it ends them in the database."""

    def __init__(self, database: Database, folder: Path, vendor: str) -> None:
        self.vendor = vendor
        self.database = database
        self.folder = folder
        self.done: dict[str, Mapping[str, Transcript]] = {}
        self.failed: dict[str, ProviderError] = {}
        self.audio: dict[str, tuple[AudioFile, ...]] = {}
        self.disk_full = 0
        self.loads = 0
        self.unreadable: list[OSError] = []  # what becomes of those who read audio first
        self.poison: str | None = None  # a job that cannot be ended
        self.ends: list[str] = []  # jobs whose ends were asked for
        self.scheduler: Scheduler

    async def load(self, row: JobRow) -> Job:
        self.loads += 1
        if row.id.startswith("lost"):
            raise FileNotFoundError("no such recording")
        if self.unreadable:
            raise self.unreadable.pop()
        if row.id.startswith("empty"):
            return Job(row.id, ())
        if row.id in self.audio:
            return Job(row.id, self.audio[row.id])
        audio = (AudioFile("1", wav(self.folder, name=f"{row.id}.wav"), 1.0),)
        return Job(row.id, audio, row.model, row.language, prompt=row.prompt)

    async def on_done(self, row: JobRow, result: Mapping[str, Transcript], facts: RunFacts) -> None:
        self.ends.append(row.id)
        if row.id == self.poison:
            raise ValueError("a defect of ours")
        if self.disk_full:
            self.disk_full -= 1
            raise StoreError("no space left")
        await self.database.write(lambda connection: jobs.finish(connection, row.id, facts, NOW))
        self.done[row.id] = result

    async def on_failed(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        await self.database.write(
            lambda connection: jobs.fail(connection, row.id, error.reason, NOW, facts)
        )
        self.failed[row.id] = error

    async def add(
        self,
        *ids: str,
        vendor: str | None = None,
        model: str | None = None,
        language: str | None = None,
        prompt: str | None = None,
    ) -> None:
        def insert(connection: object) -> None:
            for id in ids:
                session = SessionRow(id, "c", "finished", NOW, "p", "f", "{}")
                recordings.insert(connection, session)  # type: ignore[arg-type]
                row = JobRow(
                    id, id, vendor or self.vendor, 1.0, datetime.now(UTC),
                    model=model, language=language, prompt=prompt,
                )  # fmt: skip
                jobs.insert(connection, row)  # type: ignore[arg-type]

        await self.database.write(insert)

    async def states(self) -> dict[str, tuple[str, int, bool]]:
        rows = await self.database.read(partial(jobs.listing, limit=100))
        return {row.id: (row.state, row.attempts, row.solo) for row in rows}


def wav(folder: Path, pcm: bytes = bytes(16000), name: str = "leg.wav") -> Path:
    path = folder / name
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(pcm)
    return path


def with_silence(folder: Path) -> tuple[AudioFile, ...]:
    """A call of 90 s: what Alice and Bob say in the sample call, far apart, and a leg of silence."""
    legs = []
    for key, places in (("alice", (7.0, 40.0)), ("bob", (20.0, 75.0))):
        _, sample = read_wav(SAMPLE / f"{key}.wav")
        whole = np.zeros(90 * 8000, np.int16)
        for place, half in zip(places, np.split(sample, [64000]), strict=True):
            whole[round(place * 8000) :][: len(half)] = half
        legs.append(AudioFile(key, wav(folder, whole.tobytes(), f"{key}.wav"), 90.0))
    nobody = wav(folder, bytes(2 * 90 * 8000), "nobody.wav")
    return (*legs, AudioFile("nobody", nobody, 90.0))


@asynccontextmanager
async def office(
    folder: Path,
    provider: Provider,
    *ids: str,
    attempts: int = 3,
    audio: tuple[AudioFile, ...] | None = None,
    speech: SpeechOptions | None = None,
    guard: Guard | None = None,
    others: Sequence[Provider] = (),
    circuit: int = 5,
    fallback_after: float | None = None,
    monotonic: Callable[[], float] = time.monotonic,
    packing: PackingPolicy = "off",
) -> AsyncIterator[tuple[Office, Metrics, Callable[[], None]]]:
    database = Database(f"sqlite:///{folder / 'jobs.db'}")
    await database.start()
    here = Office(database, folder, provider.name)
    if audio is not None:
        here.audio = dict.fromkeys(ids, audio)
    await here.add(*ids)
    metrics = Metrics()
    scheduler = here.scheduler = Scheduler(
        database, [provider, *others], metrics,
        load=here.load, on_done=here.on_done, on_failed=here.on_failed,
        clock=lambda: datetime.now(UTC), max_attempts=attempts, retry_delay=0.01,
        speech=speech, guard=guard, monotonic=monotonic,
        circuit_failures=circuit, fallback_after=fallback_after, packing=packing,
    )  # fmt: skip
    running = asyncio.create_task(scheduler.run())
    try:
        yield here, metrics, scheduler.wake
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.stop()


async def test_a_waiting_job_is_run_and_its_result_handed_over(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    async with office(tmp_path, provider, "a") as (here, metrics, _):
        await eventually(lambda: "a" in here.done, "a result")

        assert here.done["a"]["1"].text == "hello"
        assert await here.states() == {"a": ("done", 1, False)}
        runs = metrics.registry.get_sample_value(
            "siprec_whisper_cli_duration_seconds_count", {"model": "m1", "status": "success"}
        )
        assert runs == 1


async def test_jobs_that_wait_for_the_only_slot_go_into_one_run(tmp_path: Path) -> None:
    provider = ScriptedProvider(max_batch=8)
    provider.gate.clear()
    async with office(tmp_path, provider, "a") as (here, _, wake):
        await eventually(lambda: len(provider.runs) == 1, "the first run")
        await here.add("b", "c", "d")
        wake()
        provider.gate.set()
        await eventually(lambda: len(here.done) == 4, "all results")

    assert provider.runs == [["a"], ["b", "c", "d"]]
    assert provider.most_running == 1


async def test_free_slots_share_what_waits(tmp_path: Path) -> None:
    provider = ScriptedProvider(max_concurrent=2)
    provider.gate.clear()
    async with office(tmp_path, provider, "a", "b") as (here, _, _):
        await eventually(lambda: provider.running == 2, "two runs at once")
        provider.gate.set()
        await eventually(lambda: len(here.done) == 2, "both results")

    assert sorted(provider.runs) == [["a"], ["b"]]


async def test_a_failure_is_tried_again_and_then_parked(tmp_path: Path) -> None:
    provider = ScriptedProvider(lambda job, company: ProviderError("exit_code"))
    async with office(tmp_path, provider, "a", attempts=3) as (here, metrics, _):
        await eventually(lambda: "a" in here.failed, "the end of the tries")

        assert len(provider.runs) == 3
        assert (await here.states())["a"][:2] == ("failed", 3)
        retried = metrics.registry.get_sample_value("siprec_jobs_total", {"outcome": "retried"})
        assert retried == 2


async def test_what_no_second_try_would_mend_is_parked_at_once(tmp_path: Path) -> None:
    provider = ScriptedProvider(lambda job, company: ProviderError("language", retryable=False))
    async with office(tmp_path, provider, "a") as (here, _, _):
        await eventually(lambda: "a" in here.failed, "a failure")

    assert len(provider.runs) == 1


async def test_one_bad_job_does_not_fail_its_company(tmp_path: Path) -> None:
    def answer(job: Job, company: int) -> Outcome:
        if company > 1 or job.id == "bad":
            return ProviderError("exit_code")
        return {"1": heard()}

    provider = ScriptedProvider(answer)
    provider.gate.clear()
    async with office(tmp_path, provider, "first", attempts=2) as (here, _, wake):
        await eventually(lambda: len(provider.runs) == 1, "the first run")
        await here.add("bad", "good")
        wake()
        provider.gate.set()
        await eventually(lambda: {"good", "first"} <= set(here.done), "the good ones")
        await eventually(lambda: "bad" in here.failed, "the bad one")

        assert (await here.states())["good"] == ("done", 2, True)


async def test_a_job_that_we_cannot_cope_with_harms_none_of_its_company(tmp_path: Path) -> None:
    async with office(tmp_path, ScriptedProvider()) as (here, _, wake):
        here.poison = "b"
        await here.add("a", "b", "c")
        wake()
        await eventually(
            lambda: "b" in here.failed, "the end of what cannot be ended", patience=100.0
        )
        await eventually(lambda: {"a", "c"} <= here.done.keys(), "the others' results")

        assert str(here.failed["b"]) == "internal_error"
        assert (here.ends.count("a"), here.ends.count("b"), here.ends.count("c")) == (1, 3, 1)


async def test_a_recogniser_that_is_away_costs_no_try(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    provider.broken = ProviderUnavailable("unavailable")
    provider.cause = "not installed"
    with capture_logs() as logs:
        async with office(tmp_path, provider, "a") as (here, metrics, _):
            await eventually(
                lambda: metrics.registry.get_sample_value("siprec_jobs_backlog") == 1, "the backlog"
            )
            before = list(provider.runs)
            provider.cause = None
            await eventually(lambda: len(provider.runs) >= 1, "a run that finds nothing")
            provider.broken = None
            await eventually(lambda: "a" in here.done, "a result")

            assert before == []
            assert (await here.states())["a"] == ("done", 1, False)
    told = [one["event"] for one in logs if one["event"].startswith("recogniser.")]
    assert told[0] == "recogniser.unavailable"
    assert told[-1] == "recogniser.available_again"


async def test_jobs_of_a_recogniser_that_is_switched_off_are_off_until_it_is_on(
    tmp_path: Path,
) -> None:
    provider = ScriptedProvider()
    provider.cause, provider.enabled = "switched off", False
    with capture_logs() as logs:
        async with office(tmp_path, provider, "a") as (here, metrics, wake):
            await eventually(
                lambda: any(one["event"] == "recogniser.off" for one in logs), "a word of it"
            )
            await here.add("b")
            wake()
            async with asyncio.timeout(10):
                while {state for state, *_ in (await here.states()).values()} != {"off"}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            (state,) = here.scheduler.vendors()
            gauges = [
                metrics.registry.get_sample_value(name, labels)
                for name, labels in (
                    ("siprec_recogniser_available", {}),
                    ("siprec_vendor_available", {"vendor": "scripted"}),
                )
            ]
    provider.cause, provider.enabled = None, True
    async with office(tmp_path, provider) as (here, _, _):
        await eventually(lambda: {"a", "b"} <= here.done.keys(), "the results")

    assert [one["event"] for one in logs].count("recogniser.off") == 1
    assert state.state == "off"
    assert all(value is not None and math.isnan(value) for value in gauges)
    assert not [one for one in logs if one["log_level"] not in ("info", "debug")]


async def test_another_vendor_stands_in_for_one_that_is_switched_off_where_that_is_wanted(
    tmp_path: Path,
) -> None:
    provider, other = ScriptedProvider(), ScriptedProvider(name="second")
    provider.cause, provider.enabled = "switched off", False
    async with office(tmp_path, provider, "a", others=[other], fallback_after=0.0) as (here, *_):
        await eventually(lambda: "a" in here.done, "a result")

    assert other.runs == [["a"]]


async def test_a_server_that_is_down_is_asked_ever_more_seldom_and_no_job_is_begun_for_it(
    tmp_path: Path,
) -> None:
    provider = ScriptedProvider()
    provider.broken = ProviderUnavailable("unavailable", "connection refused")
    now = [1000.0]
    async with office(tmp_path, provider, "a", "b", monotonic=lambda: now[0]) as (
        here,
        metrics,
        wake,
    ):
        await eventually(lambda: gauge(metrics, "vendor_available") == 0, "the outage")
        asked = [provider.probes]
        for early, due in ((0.4, 0.6), (0.9, 1.1)):
            begun = now[0]
            now[0] = begun + early
            wake()
            await asyncio.sleep(0.1)
            asked.append(provider.probes)
            now[0] = begun + due
            wake()
            await eventually(lambda: provider.probes > asked[-1], "a probe")
            asked.append(provider.probes)
        trouble = await here.scheduler.trouble(provider.name)
        runs = len(provider.runs)
        provider.broken = None
        now[0] += 10
        wake()
        await eventually(lambda: len(here.done) == 2, "the results")

        assert asked == [1, 1, 2, 2, 3]
        assert runs == 1
        assert trouble == "connection refused"
        assert {state[1] for state in (await here.states()).values()} == {1}
        assert metrics.registry.get_sample_value("siprec_recogniser_available") == 1


async def test_a_job_whose_model_is_not_there_does_not_keep_the_others_waiting(
    tmp_path: Path,
) -> None:
    provider = ScriptedProvider(
        lambda job, company: (
            ProviderUnavailable("unavailable", "no model huge")
            if job.model == "huge"
            else {"1": heard()}
        )
    )
    async with office(tmp_path, provider) as (here, _, wake):
        await here.add("wrong", model="huge")
        await here.add("right")
        wake()
        await eventually(lambda: "right" in here.done, "the others' result")
        await eventually(lambda: "wrong" in here.failed, "the end of what cannot be done")

        assert "no model huge" in str(here.failed["wrong"])
        assert (await here.states())["wrong"] == ("failed", 3, False)


async def test_a_result_waits_for_a_disk_that_is_full(tmp_path: Path) -> None:
    async with office(tmp_path, ScriptedProvider()) as (here, _, wake):
        here.disk_full = 1
        await here.add("a")
        wake()

        await eventually(lambda: "a" in here.done, "a result")


async def test_audio_that_is_lost_and_audio_that_is_empty_need_no_run(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    async with office(tmp_path, provider, "lost", "empty") as (here, _, _):
        await eventually(lambda: bool(here.failed) and bool(here.done), "both ends")

    assert here.failed["lost"].reason == "audio_missing"
    assert here.done["empty"] == {}
    assert provider.runs == []


@pytest.mark.parametrize(
    ("code", "tries"), [(errno.ENOSPC, 1), (errno.EMFILE, 1), (errno.ESTALE, 2)]
)
async def test_a_full_disk_or_a_mount_in_trouble_is_no_reason_to_give_a_job_up(
    tmp_path: Path, code: int, tries: int
) -> None:
    async with office(tmp_path, ScriptedProvider()) as (here, metrics, wake):
        here.unreadable = [OSError(code, os.strerror(code))]
        await here.add("a")
        wake()
        if tries == 1:
            await eventually(lambda: gauge(metrics, "vendor_available") == 0, "a pause")
            assert os.strerror(code) in (await here.scheduler.trouble("scripted") or "")
        await eventually(lambda: "a" in here.done, "a result")

        assert (await here.states())["a"] == ("done", tries, False)
        assert here.loads == 2


async def test_stopping_queues_what_was_running_again_uncounted(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    provider.gate.clear()
    async with office(tmp_path, provider, "a"):
        await eventually(lambda: provider.running == 1, "a run")

    assert provider.running == 0
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    await database.start()
    (row,) = await database.read(partial(jobs.listing, limit=10))
    await database.stop()
    assert (row.state, row.attempts) == ("queued", 0)


async def test_a_call_in_which_nobody_speaks_costs_no_run(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    silent = AudioFile("1", wav(tmp_path), 1.0)
    async with office(tmp_path, provider, "a", audio=(silent,), speech=SpeechOptions()) as (
        here,
        metrics,
        _,
    ):
        await eventually(lambda: "a" in here.done, "a result")
        (row,) = await here.database.read(partial(jobs.listing, limit=10))

    assert provider.runs == []
    assert (row.state, row.reason) == ("done", "no_speech")
    assert here.done["a"] == {"1": Transcript(speech=0.0)}
    cut = metrics.registry.get_sample_value("siprec_vad_audio_seconds_total", {"verdict": "cut"})
    assert cut == 1.0


async def test_a_recogniser_gets_the_speech_alone_and_its_times_are_put_back(
    tmp_path: Path,
) -> None:
    given: list[AudioFile] = []

    def answer(job: Job, company: int) -> Outcome:
        given.extend(job.audio)
        end = job.audio[0].duration
        words = (Word(text="first", start=1, end=2), Word(text="last", start=end - 1, end=end))
        segment = Segment(text="first last", start=1, end=end, words=words)
        return {job.audio[0].key: Transcript(segments=(segment,))}

    async with office(
        tmp_path, ScriptedProvider(answer), "a",
        audio=with_silence(tmp_path), speech=SpeechOptions(),
    ) as (here, metrics, _):  # fmt: skip
        await eventually(lambda: "a" in here.done, "a result")

    assert [one.key for one in given] == ["alice", "bob"]
    assert all(one.duration < 12 for one in given)
    first, last = here.done["a"]["alice"].segments
    assert (first.text, last.text) == ("first", "last")
    assert 7 < first.start < 13
    assert 40 < last.start < last.end < 46
    assert here.done["a"]["nobody"] == Transcript(speech=0.0)
    kept = metrics.registry.get_sample_value("siprec_vad_audio_seconds_total", {"verdict": "kept"})
    assert kept == pytest.approx(sum(one.duration for one in given))


async def test_what_nobody_said_is_set_aside_and_counted(tmp_path: Path) -> None:
    def answer(job: Job, company: int) -> Outcome:
        phantom = Segment(text="Thank you.", start=5, end=6, no_speech_prob=0.9, avg_logprob=-1.5)
        return {"1": Transcript(segments=(*heard().segments, phantom))}

    async with office(tmp_path, ScriptedProvider(answer), "a", guard=Guard()) as (here, metrics, _):
        await eventually(lambda: "a" in here.done, "a result")

    assert here.done["a"]["1"].text == "hello"
    assert here.done["a"]["1"].suppressed == (
        Suppressed(text="Thank you.", start=5, end=6, reason="no_speech"),
    )
    counted = metrics.registry.get_sample_value(
        "siprec_doubtful_segments_total", {"reason": "no_speech"}
    )
    assert counted == 1


@pytest.mark.parametrize("language", [None, "auto", "en"])
async def test_both_parties_share_a_file_only_where_the_language_is_known(
    language: str | None, tmp_path: Path
) -> None:
    def answer(job: Job, company: int) -> Outcome:
        return {
            one.key: Transcript(
                segments=(
                    Segment(text="first", start=1, end=2),
                    Segment(text="last", start=one.duration - 2, end=one.duration - 1),
                )
            )
            for one in job.audio
        }

    provider = ScriptedProvider(answer)
    provider.language = language
    async with office(
        tmp_path, provider, "a",
        audio=with_silence(tmp_path), speech=SpeechOptions(), packing="call",
    ) as (here, metrics, _):  # fmt: skip
        await eventually(lambda: "a" in here.done, "a result")

    legs = [len(job.audio) for job in provider.given]
    packed = metrics.registry.get_sample_value("siprec_packed_legs_total", {"heard": "together"})
    if language != "en":
        assert (legs, packed) == ([2], 0)
        return
    assert (legs, packed) == ([1], 2)
    (alone,), (other,) = (here.done["a"][key].segments for key in ("alice", "bob"))
    assert {alone.text, other.text} == {"first", "last"}
    assert 7 < alone.start < 46
    assert 20 < other.start < 84
    assert here.done["a"]["nobody"] == Transcript(speech=0.0)


async def test_legs_whose_words_are_mixed_up_are_heard_again_alone(tmp_path: Path) -> None:
    def answer(job: Job, company: int) -> Outcome:
        return {
            one.key: Transcript(segments=(Segment(text="all", start=1, end=one.duration - 1),))
            for one in job.audio
        }

    provider = ScriptedProvider(answer)
    provider.language = "en"
    async with office(
        tmp_path, provider, "a",
        audio=with_silence(tmp_path), speech=SpeechOptions(), packing="call",
    ) as (here, metrics, _):  # fmt: skip
        await eventually(lambda: "a" in here.done, "a result")

    assert [len(job.audio) for job in provider.given] == [1, 2]
    assert [here.done["a"][key].text for key in ("alice", "bob")] == ["all", "all"]
    again = metrics.registry.get_sample_value("siprec_packed_legs_total", {"heard": "again"})
    assert again == 2


@pytest.mark.peer
async def test_a_real_recogniser_hears_both_parties_of_one_file_each_for_itself(
    tmp_path: Path,
) -> None:
    standin = str(Path(sys.executable).with_name("whisper-standin"))
    provider = WhisperCli.from_options(
        {"WHISPER_BINARY_PATH": standin, "WHISPER_LANGUAGE": "en", "TMPDIR": str(tmp_path)}
    )
    results: list[Mapping[str, Transcript]] = []
    packed: list[float | None] = []
    packings: tuple[PackingPolicy, ...] = ("off", "call")
    for packing in packings:
        folder = tmp_path / packing
        folder.mkdir()
        async with office(
            folder, provider, "a",
            audio=with_silence(folder), speech=SpeechOptions(), packing=packing,
        ) as (here, metrics, _):  # fmt: skip
            await eventually(lambda: "a" in here.done, "a result", patience=100.0)
            packed.append(
                metrics.registry.get_sample_value("siprec_packed_legs_total", {"heard": "together"})
            )
        results.append(here.done["a"])

    apart, together = results
    assert packed == [0, 2]
    for key in ("alice", "bob"):
        words = [word for one in apart[key].segments for word in one.words]
        same = [word for one in together[key].segments for word in one.words]
        assert len(words) > 10
        assert word_error_rate(apart[key].text, together[key].text) < 0.1
        assert same[0].start == pytest.approx(words[0].start, abs=0.3)
        assert same[-1].end == pytest.approx(words[-1].end, abs=0.3)


@pytest.mark.peer
async def test_a_real_recogniser_hears_the_same_at_the_same_time_in_the_speech_alone(
    tmp_path: Path,
) -> None:
    standin = str(Path(sys.executable).with_name("whisper-standin"))
    provider = WhisperCli.from_options({"WHISPER_BINARY_PATH": standin, "TMPDIR": str(tmp_path)})
    results: list[Mapping[str, Transcript]] = []
    for speech in (None, SpeechOptions()):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        async with office(
            folder, provider, "a", audio=with_silence(folder)[::2], speech=speech
        ) as (
            here,
            _,
            _,
        ):
            await eventually(lambda: "a" in here.done, "a result")
        results.append(here.done["a"])

    whole, packed = results
    for key in ("alice", "nobody"):
        assert packed[key].text == whole[key].text
        pairs = list(zip(
            [word for one in whole[key].segments for word in one.words],
            [word for one in packed[key].segments for word in one.words],
            strict=True,
        ))  # fmt: skip
        assert key == "nobody" or len(pairs) > 10
        for one, other in pairs:
            assert other.start == pytest.approx(one.start, abs=0.1)
            assert other.end == pytest.approx(one.end, abs=0.1)


async def test_a_broken_recogniser_gets_no_more_jobs_and_costs_none_its_tries(
    tmp_path: Path,
) -> None:
    now = [1000.0]
    provider = ScriptedProvider()
    provider.broken = ProviderError("exit_code", "exit code 1")
    async with office(
        tmp_path, provider, *"abcdefgh", attempts=4, circuit=3, monotonic=lambda: now[0]
    ) as (here, metrics, wake):
        await eventually(lambda: provider.probes == 1, "a probe")
        await eventually(lambda: gauge(metrics, "vendor_circuit_open") == 1, "an open circuit")
        runs = len(provider.runs)
        trouble = await here.scheduler.trouble("scripted")
        for probes in (2, 3):  # an hour of it
            now[0] += 1800
            wake()
            await eventually(lambda n=probes: provider.probes == n, "a further probe")  # type: ignore[misc]
        during = await here.states()
        assert len(provider.runs) == runs

        provider.broken = None
        now[0] += 1800
        wake()
        await eventually(lambda: len(here.done) == 8, "all results")
        after = gauge(metrics, "vendor_circuit_open")
        counted = [
            metrics.registry.get_sample_value(
                "siprec_vendor_probes_total", {"vendor": "scripted", "result": result}
            )
            for result in ("works", "fails")
        ]

    assert runs == 3
    assert here.failed == {}
    assert {(state, attempts) for state, attempts, _ in during.values()} == {("queued", 0)}
    assert trouble == "broken: exit_code: exit code 1"
    assert (after, counted) == (0, [1, 3])


async def test_poison_alone_does_not_stop_the_recogniser(tmp_path: Path) -> None:
    def answer(job: Job, company: int) -> Outcome:
        return ProviderError("exit_code") if job.id.startswith("bad") else {"1": heard()}

    provider = ScriptedProvider(answer, max_batch=1)
    bad = [f"bad {number}" for number in range(6)]
    async with office(tmp_path, provider, *bad, attempts=2, circuit=3) as (here, metrics, wake):
        await eventually(lambda: len(here.failed) == 6, "the end of the bad ones")
        await here.add("good")
        wake()
        await eventually(lambda: "good" in here.done, "a result")

        assert gauge(metrics, "vendor_circuit_open") == 0
        assert {one[1] for one in (await here.states()).values()} == {1, 2}


async def test_a_single_job_is_not_given_up_before_the_recogniser_was_probed(
    tmp_path: Path,
) -> None:
    provider = ScriptedProvider()
    provider.broken = ProviderError("timeout")
    async with office(tmp_path, provider, "a", attempts=2, circuit=50) as (here, metrics, _):
        await eventually(lambda: gauge(metrics, "vendor_circuit_open") == 1, "an open circuit")
        async with asyncio.timeout(10):
            while (await here.states())["a"][:2] != ("queued", 0):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        assert here.failed == {}


async def test_a_job_that_a_vendor_gives_up_goes_to_the_next_and_at_last_is_parked(
    tmp_path: Path,
) -> None:
    def never(job: Job, company: int) -> Outcome:
        return ProviderError("exit_code")

    def sometimes(job: Job, company: int) -> Outcome:
        return ProviderError("bad_output") if job.id == "hopeless" else {"1": heard("by another")}

    first = ScriptedProvider(never, max_batch=1, name="first")
    second = ScriptedProvider(sometimes, max_batch=1, name="second")
    async with office(
        tmp_path, first, "hopeless", "a", attempts=2, others=[second], fallback_after=3600
    ) as (here, metrics, _):
        await eventually(lambda: "a" in here.done and "hopeless" in here.failed, "both ends")
        (row,) = [
            row
            for row in await here.database.read(partial(jobs.listing, limit=9))
            if row.id == "hopeless"
        ]
        moved = metrics.registry.get_sample_value(
            "siprec_fallbacks_total", {"vendor": "first", "to": "second"}
        )

    assert here.done["a"]["1"].text == "by another"
    assert here.failed["hopeless"].reason == "bad_output"
    assert (row.vendor, row.tried, row.attempts) == ("second", "first", 2)
    assert moved == 2
    assert [run[0] for run in first.runs].count("a") == 2


async def test_without_fallback_no_other_vendor_hears_a_call(tmp_path: Path) -> None:
    first = ScriptedProvider(lambda job, company: ProviderError("exit_code"), name="first")
    second = ScriptedProvider(name="second")
    async with office(tmp_path, first, "a", attempts=2, others=[second]) as (here, _, _):
        await eventually(lambda: "a" in here.failed, "the end")

    assert second.runs == []


async def test_a_vendor_that_is_away_for_long_loses_its_jobs_and_gets_the_next_ones_back(
    tmp_path: Path,
) -> None:
    now = [1000.0]
    first, second = ScriptedProvider(name="first"), ScriptedProvider(name="second")
    first.cause = "not installed"
    async with office(
        tmp_path, first, "a", others=[second], fallback_after=600, monotonic=lambda: now[0]
    ) as (here, metrics, wake):
        await eventually(lambda: gauge(metrics, "vendor_available", "first") == 0, "the outage")
        now[0] += 599
        wake()
        await asyncio.sleep(0.2)
        before = list(second.runs)
        now[0] += 2
        wake()
        await eventually(lambda: "a" in here.done, "a result of the other")
        first.cause = None
        wake()
        await eventually(lambda: gauge(metrics, "vendor_available", "first") == 1, "its return")
        await here.add("b")
        wake()
        await eventually(lambda: "b" in here.done, "a result of the first")

    assert before == []
    assert (first.runs, second.runs) == ([["b"]], [["a"]])


async def test_a_rules_model_language_and_prompt_reach_the_vendor_and_are_not_mixed(
    tmp_path: Path,
) -> None:
    provider = ScriptedProvider()
    provider.gate.clear()
    async with office(tmp_path, provider, "first") as (here, _, wake):
        await eventually(lambda: len(provider.runs) == 1, "the first run")
        await here.add("a", "b", model="large", language="de", prompt="Storno")
        await here.add("c", model="large")
        await here.add("d", vendor="that is gone", model="its own")
        wake()
        provider.gate.set()
        await eventually(lambda: len(here.done) == 4, "what has a vendor")

    assert provider.runs == [["first"], ["a", "b"], ["c"]]
    assert [(job.model, job.language, job.prompt) for job in provider.given] == [
        (None, None, None),
        ("large", "de", "Storno"),
        ("large", "de", "Storno"),
        ("large", None, None),
    ]


async def test_jobs_of_a_vendor_that_is_gone_go_to_the_default_one_with_the_next_start(
    tmp_path: Path,
) -> None:
    away = ScriptedProvider(name="old")
    away.cause = "gone"
    async with office(tmp_path, away) as (here, _, _):
        await here.add("a", vendor="old", model="old-large")
    provider = ScriptedProvider()
    async with office(tmp_path, provider) as (here, _, _):
        await eventually(lambda: "a" in here.done, "a result")

    assert [job.model for job in provider.given] == [None]


async def test_the_backlogs_end_is_foretold_from_what_runs_did(tmp_path: Path) -> None:
    provider = ScriptedProvider(max_concurrent=2)
    provider.seconds = 0.5  # for each second of audio
    async with office(tmp_path, provider, "a", "b") as (here, metrics, wake):
        await eventually(lambda: len(here.done) == 2, "results")
        provider.gate.clear()
        await here.add(*"cdefgh")
        wake()
        await eventually(lambda: provider.running == 2, "runs")
        backlog = await here.database.read(jobs.backlog)
        eta = here.scheduler.eta(backlog)
        (state,) = here.scheduler.vendors()
        await eventually(lambda: gauge(metrics, "vendor_pace_ratio") == 2, "the pace as a metric")
        places = await here.database.read(jobs.places)
        shown = partial(metrics.registry.get_sample_value, "siprec_jobs_backlog_eta_seconds")
        await eventually(lambda: shown() == pytest.approx(1.5), "the end as a metric")
        runs = gauge(metrics, "vendor_runs_active")
        provider.gate.set()
        await eventually(lambda: len(here.done) == 8, "all results")

    # Six seconds of audio, two runs at once, each at twice the pace of speech.
    assert eta == pytest.approx(1.5)
    assert runs == 2
    assert (state.pace, state.running, state.slots, state.state) == (2, 2, 2, "working")
    assert [one.position for one in places.values()] == list(range(1, len(places) + 1))


def gauge(metrics: Metrics, name: str, vendor: str = "scripted") -> float | None:
    return metrics.registry.get_sample_value(f"siprec_{name}", {"vendor": vendor})
