"""A provider's whole chain, tried with the bundled sample, and the step that breaks.

The doctor and the kit for authors of providers (`siprec_bridge.testing`) try with it.
"""

import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from siprec_bridge.provider import (
    AudioFile,
    ConfigurationError,
    Job,
    Provider,
    ProviderError,
    ProviderUnavailable,
    Run,
    is_off,
)
from siprec_bridge.transcript import Transcript
from siprec_bridge.transcription import load_provider
from siprec_bridge.transcription.prepare import Preparation

MOST_WRONG_WORDS = 0.5  # a small model may mishear; more than that is another language or noise
_BROKEN_OUTPUTS = ("no_output", "bad_output")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the chain: what was found, or what is wrong and what to do about it."""

    name: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'BAD '}  {self.name:<11} {self.text}"


@dataclass(frozen=True, slots=True)
class Trial:
    """How a provider did. The last step is the one that broke, if any did."""

    vendor: str
    provider: str | None  # as it describes itself; None: there is none
    steps: tuple[Step, ...]
    reason: str = "ok"  # the provider's slug: timeout, exit_code, no_output …
    exit_code: int | None = None
    stderr: str = ""  # the end of it
    seconds: float | None = None  # of the run
    wrong_words: float | None = None  # 0..1 of the sample's
    heard: Mapping[str, str] | None = None  # by speaker

    @property
    def broken(self) -> Step | None:
        """The step that broke, or None."""
        return self.steps[-1] if not self.steps[-1].ok else None

    def as_json(self) -> str:
        """The whole of it for scripts."""
        broken = self.broken
        return json.dumps(
            {
                "ok": broken is None,
                "vendor": self.vendor,
                "provider": self.provider,
                "broken": broken.name if broken is not None else None,
                "reason": self.reason,
                "exit_code": self.exit_code,
                "seconds": self.seconds,
                "wrong_words": self.wrong_words,
                "heard": self.heard,
                "stderr": self.stderr,
                "steps": [{"step": one.name, "ok": one.ok, "text": one.text} for one in self.steps],
            },
            indent=1,
        )


def sample_words() -> dict[str, str]:
    """What each speaker of the bundled sample says."""
    lines = json.loads(_sample("transcript.json").read_text("utf-8"))
    words: dict[str, str] = {}
    for line in lines:
        words[line["speaker"]] = f"{words.get(line['speaker'], '')} {line['text']}".strip()
    return words


@asynccontextmanager
async def sample_job(sample_rate: int, id: str = "sample") -> AsyncIterator[Job]:
    """The sample as a call's audio: a mono WAV each for alice and bob, at this rate (Hz)."""
    lines = json.loads(_sample("transcript.json").read_text("utf-8"))
    duration = max(line["end"] for line in lines)
    with tempfile.TemporaryDirectory(prefix="siprec-sample-") as folder:
        audio = []
        for key in sample_words():
            given = Path(folder) / f"{key}-given.wav"
            given.write_bytes(_sample(f"{key}.wav").read_bytes())
            audio.append(AudioFile(key, given, duration))
        # Whole, whatever VAD says: it is the provider that is on trial.
        prepared = await Preparation(sample_rate).prepare(Job(id, tuple(audio)), Path(folder))
        named = tuple(
            replace(one, path=one.path.rename(Path(folder) / f"{one.key}.wav"))
            for one in prepared.job.audio
        )
        yield Job(id, named)


async def try_provider(vendor: str, options: Mapping[str, str]) -> Trial:
    """Load the provider as the bridge does, have it transcribe the sample, compare the words."""
    try:
        provider = load_provider(vendor, options)
    except ConfigurationError as error:
        return Trial(vendor, None, (Step("options", False, str(error)),), reason="options")
    described = provider.describe()
    steps = [Step("options", True, described)]
    try:
        cause = await provider.unavailable()
        if cause is not None and is_off(provider):
            text = (
                f"{cause}: it is switched off (calls are recorded, their jobs wait until it is not)"
            )
            return Trial(vendor, described, (*steps, Step("program", False, text)), reason="off")
        if cause is not None:
            text = f"{cause}; install it, or name another in WHISPER_BINARY_PATH"
            steps.append(Step("program", False, f"{text} (calls are recorded, their jobs wait)"))
            return Trial(vendor, described, tuple(steps), reason="unavailable")
        async with sample_job(provider.sample_rate) as job:
            run = await provider.transcribe([job])
        return _judge(vendor, provider, run, job, steps)
    except Exception as error:  # noqa: BLE001  anyone's plug-in, which should not raise
        text = f"{type(error).__name__}: {error}; an error of the provider, which must not raise"
        steps.append(Step("run", False, text))
        return Trial(vendor, described, tuple(steps), reason="exception")
    finally:
        await provider.close()


def _judge(vendor: str, provider: Provider, run: Run, job: Job, steps: list[Step]) -> Trial:
    facts = run.facts
    outcome = run.outcomes.get(job.id, ProviderError("no_output", "no outcome for the job"))
    if not isinstance(outcome, ProviderError) and outcome.keys() != {one.key for one in job.audio}:
        outcome = ProviderError(
            "no_output", f"transcripts of {', '.join(outcome) or 'nobody'} only"
        )
    wrong: float | None = None
    heard: dict[str, str] | None = None
    if isinstance(outcome, ProviderError):
        never_ran = isinstance(outcome, ProviderUnavailable) and facts.exit_code is None
        order = ("program", "run", "output")
        at = 0 if never_ran else 2 if outcome.reason in _BROKEN_OUTPUTS else 1
        steps += [Step(name, True, _GONE_WELL[name]) for name in order[:at]]
        steps.append(Step(order[at], False, _cause(outcome, facts.exit_code)))
    else:
        steps += [Step(name, True, text) for name, text in _GONE_WELL.items()]
        heard = {key: one.text for key, one in outcome.items()}
        wrong, last = _compare(outcome)
        steps.append(last)
    return Trial(
        vendor, provider.describe(), tuple(steps),
        reason=outcome.reason if isinstance(outcome, ProviderError) else "ok",
        exit_code=facts.exit_code,
        stderr=facts.stderr_tail,
        seconds=round(facts.duration, 3),
        wrong_words=round(wrong, 3) if wrong is not None else None,
        heard=heard,
    )  # fmt: skip


_GONE_WELL = {
    "program": "is there and starts",
    "run": "both parties' audio in one run, no complaint",
    "output": "is there for each party, and readable",
}


def _cause(error: ProviderError, exit_code: int | None) -> str:
    match error.reason:
        case "timeout":
            return f"{error}; a smaller model, or a longer WHISPER_TIMEOUT"
        case "no_output":
            return (
                f"{error}; does it keep --output_dir, --output_format, and several files "
                "in one run (else WHISPER_BATCH=1)?"
            )
        case "bad_output":
            return f"{error}; is WHISPER_OUTPUT_FORMAT what it writes?"
        case _ if isinstance(error, ProviderUnavailable) and exit_code is not None:
            return f"{error}; what it needs is away, jobs wait for it"
        case _:
            return str(error)


def _compare(heard: Mapping[str, Transcript]) -> tuple[float, Step]:
    said = sample_words()
    counts = {key: len(words.split()) for key, words in said.items()}
    wrong = {key: word_error_rate(words, heard[key].text) for key, words in said.items()}
    overall = sum(wrong[key] * count for key, count in counts.items()) / sum(counts.values())
    silent = [key for key in said if not heard[key].text]
    text = f"{overall:.0%} of the sample's words wrong"
    if silent:
        return overall, Step("words", False, f"nothing was heard of {' and '.join(silent)}")
    if overall > MOST_WRONG_WORDS:
        swapped = word_error_rate(said["alice"], heard["bob"].text) <= MOST_WRONG_WORDS
        cause = "the parties are mixed up" if swapped else "is the model right for English?"
        return overall, Step("words", False, f"{text}; {cause}")
    return overall, Step("words", True, text)


def word_error_rate(expected: str, heard: str) -> float:
    """Edit distance in words by the number of expected words; 0 is right, case is ignored."""
    wanted, got = _words(expected), _words(heard)
    row = list(range(len(got) + 1))
    for number, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], number
        for position, other in enumerate(got, 1):
            diagonal, row[position] = (
                row[position],
                min(row[position] + 1, row[position - 1] + 1, diagonal + (word != other)),
            )
    return row[-1] / max(1, len(wanted))


def _words(text: str) -> list[str]:
    kept = "".join(char if char.isalnum() or char == "'" else " " for char in text.lower())
    return kept.split()


def _sample(name: str) -> Traversable:
    return files("siprec_bridge.caller").joinpath("sample", name)
