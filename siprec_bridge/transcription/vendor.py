"""A vendor of transcripts with its runs: whether it is there, whether it works, and how fast it is."""

import asyncio
import tempfile
import wave
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog

from siprec_bridge.provider import (
    AudioFile,
    Job,
    Provider,
    ProviderError,
    ProviderUnavailable,
    is_off,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts
from siprec_bridge.transcription.circuit import Circuit
from siprec_bridge.transcription.pace import Pace
from siprec_bridge.transcription.prepare import Preparation

log = structlog.get_logger()

_NO_LIMIT = 64  # runs at once where the provider sets no limit
_LOOK_S = 5.0
_OUTAGE_FIRST_S, _OUTAGE_LONGEST_S = 0.5, 15.0
_PROBE_S = 1.0  # length of the tone that a recogniser is probed with


Condition = Literal["working", "off", "away", "broken"]


@dataclass(frozen=True, slots=True)
class VendorState:
    """A vendor as operators see it."""

    name: str
    state: Condition
    cause: str | None
    running: int  # runs
    slots: int | None  # None: no limit
    pace: float | None  # seconds of audio in a second of a run; None: not known yet


class Vendor:
    """A provider with its runs, and what is known of it. `default`: it gets jobs that name none.

    `observe` is told of each probe's run; `refund` gets the attempts, by job, that were spent on a
    recogniser that was broken; `changed` hears when a run has ended.
    """

    def __init__(
        self,
        provider: Provider,
        preparation: Preparation,
        circuit: Circuit,
        metrics: Metrics,
        *,
        default: bool,
        now: Callable[[], float],
        observe: Callable[[RunFacts], None],
        refund: Callable[[Mapping[str, int]], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self.provider = provider
        self.preparation = preparation
        self.circuit = circuit
        self.pace = Pace()
        self.runs: set[asyncio.Task[Any]] = set()
        self._metrics = metrics
        self._default = default
        self._now = now
        self._observe = observe
        self._refund = refund
        self._changed = changed
        self._away: str | None = None  # why it cannot be run
        self._try_at: float | None = None  # away by what a run said: only a run can tell otherwise
        self._outage_s = 0.0
        self._down_since: float | None = None  # away or broken
        self._probe = asyncio.Lock()
        self._probed_at = -1e9  # when it was last found to work, whoever asked

    @property
    def name(self) -> str:
        """As it is configured."""
        return self.provider.name

    @property
    def off(self) -> bool:
        """Whether the operator has switched it off."""
        return is_off(self.provider)

    @property
    def limit(self) -> int:
        """How many runs it may have at once."""
        return self.provider.max_concurrent or _NO_LIMIT

    @property
    def trouble(self) -> str | None:
        """Why no job is started, or None."""
        if self._away is not None:
            return self._away
        return f"broken: {self.circuit.cause}" if self.circuit.is_open else None

    def _condition(self) -> Condition:
        if self.off:
            return "off"
        if self._away:
            return "away"
        return "broken" if self.circuit.is_open else "working"

    @property
    def state(self) -> VendorState:
        """All of it for operators."""
        return VendorState(
            name=self.name,
            state=self._condition(),
            cause=self.trouble,
            running=len(self.runs),
            slots=self.provider.max_concurrent,
            pace=self.pace.ratio,
        )

    def down_for(self) -> float:
        """Seconds since it is away or broken; 0: it is not."""
        return self._now() - self._down_since if self._down_since is not None else 0.0

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Have a run of it, or a probe, as a task of its own."""
        task = asyncio.create_task(work, name=f"transcription run of {self.name}")
        self.runs.add(task)
        task.add_done_callback(self._forget)
        self._metrics.whisper_runs_active.inc()
        self._metrics.vendor_runs_active.labels(vendor=self.name).set(len(self.runs))

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.runs.discard(task)
        self._metrics.whisper_runs_active.dec()
        self._metrics.vendor_runs_active.labels(vendor=self.name).set(len(self.runs))
        self._changed()

    async def look(self) -> None:
        """Ask the provider whether it is there, unless only a run can tell."""
        cause = await self.provider.unavailable()
        if cause is not None or self._try_at is None:
            self._note_availability(cause)

    def wait(self) -> float | None:
        """Seconds until it is to be looked at again; None: a run may start now.

        Where it is time for that, a probe is started.
        """
        if self._away is not None:
            wait = self._outage_s if self._try_at is None else self._try_at - self._now()
            if wait > 0 or self._probe.locked():
                return max(wait, 0.05)
            self.start(self._look_again())
            return _LOOK_S
        if len(self.runs) >= self.limit or self.circuit.is_suspicious:
            return _LOOK_S
        if self.circuit.is_open:
            wait = self.circuit.wait(self._now())
            if not wait and not self._probe.locked():
                self.start(self._verify())
            return min(max(wait, 0.05), _LOOK_S)
        return None

    def note_away(self, cause: ProviderError) -> None:
        """A run found nobody, though the provider sees nothing amiss: a server is down, say."""
        self._note_availability(cause.detail or cause.reason)
        self._try_at = self._now() + self._outage_s

    def note_run(self, audio_seconds: float, facts: RunFacts) -> None:
        """A run of so much audio gave a transcript."""
        self.pace.note(audio_seconds, facts.duration)
        if self.pace.ratio is not None:
            self._metrics.vendor_pace_ratio.labels(vendor=self.name).set(self.pace.ratio)
        self._note_works()

    async def is_to_blame(
        self, error: ProviderError, failed: Sequence[str], facts: RunFacts, *, last_try: bool
    ) -> bool:
        """Whether it is away or broken, so that none of the `failed` jobs of a run is to blame.

        `last_try`: one of them would be given up now.
        """
        begun = self._now() - facts.duration
        if isinstance(error, ProviderUnavailable):
            return await self._is_away(error, since=begun)
        if not error.retryable:
            return False
        if self.circuit.is_open:
            return True
        self.circuit.failed(error.reason, failed)
        if not self.circuit.is_suspicious and not (last_try and self.circuit.is_used):
            return False
        return not await self._verify(failed, since=begun)

    def _note_availability(self, cause: str | None) -> None:
        if cause is None:
            if self._away is not None:
                log.info("recogniser.available_again", vendor=self.name)
            self._outage_s = 0.0
        else:
            if self._away is None and self.off:
                log.info("recogniser.off", vendor=self.name, cause=cause)
            elif self._away is None:
                log.error("recogniser.unavailable", vendor=self.name, cause=cause)
            self._outage_s = min(max(2 * self._outage_s, _OUTAGE_FIRST_S), _OUTAGE_LONGEST_S)
        self._away, self._try_at = cause, None
        self._note_state()

    def _note_state(self) -> None:
        if self.trouble is None:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = self._now()
        available = float("nan") if self.off else float(self.trouble is None)
        self._metrics.vendor_available.labels(vendor=self.name).set(available)
        self._metrics.vendor_circuit_open.labels(vendor=self.name).set(self.circuit.is_open)
        if self._default:
            self._metrics.recogniser_available.set(available)

    def _note_works(self) -> None:
        if self.circuit.is_open:
            log.info("recogniser.works_again", vendor=self.name)
        self.circuit.worked()
        self._probed_at = self._now()
        self._note_state()

    async def _verify(self, failed: Sequence[str] = (), *, since: float | None = None) -> bool:
        """Whether the recogniser transcribes audio that is known to be good.

        It is not asked if it was found to do so after `since`, or found broken meanwhile. `failed`:
        the jobs that were run last, whose attempt their owner takes back.
        """
        async with self._probe:
            if since is not None and self.circuit.is_open:
                return False
            if since is not None and self._probed_at > since:
                self.circuit.worked()
                return True
            was_open = self.circuit.is_open
            error = await self._ask()
            if error is None:
                self._note_works()
                return True
            cause = str(error)
            spent = self.circuit.broke(cause, self._now())
            for job in failed:
                spent[job] = spent.get(job, 1) - 1
            self._note_state()
            report = log.info if was_open else log.error
            report(
                "recogniser.still_broken" if was_open else "recogniser.broken",
                vendor=self.name,
                cause=cause,
                next_probe_s=self.circuit.wait(self._now()),
                effect="calls are recorded, jobs wait",
            )
        if spent:
            await self._refund(spent)
        return False

    async def _is_away(self, error: ProviderUnavailable, *, since: float) -> bool:
        """Whether it is away for all, as a run said, or only for this job: of a model it lacks, say.

        One such job would else wait at the head of the queue for ever, and all others behind it.
        """
        async with self._probe:
            if self._away is not None or self.circuit.is_open:
                return True
            if self._probed_at > since:
                return False
            if await self._ask() is None:
                self._probed_at = self._now()
                return False
            self.note_away(error)
            return True

    async def _look_again(self) -> None:
        """Whether a recogniser that was away, as a run said, is there again."""
        async with self._probe:
            if self._try_at is None:
                return
            error = await self._ask()
            if error is not None:
                self.note_away(error)
            else:
                self._note_availability(None)

    async def _ask(self) -> ProviderError | None:
        """Have a tone transcribed; returns what went wrong, or None."""
        error = await self._hear_tone()
        self._metrics.vendor_probes_total.labels(
            vendor=self.name, result="works" if error is None else "fails"
        ).inc()
        return error

    async def _hear_tone(self) -> ProviderError | None:
        try:
            with tempfile.TemporaryDirectory(prefix="siprec-probe-") as folder:
                path = Path(folder) / "tone.wav"
                await asyncio.to_thread(_write_tone, path, self.provider.sample_rate)
                job = Job("probe", (AudioFile("probe", path, _PROBE_S),))
                run = await self.provider.transcribe([job])
        except Exception as error:  # noqa: BLE001  a full disk, or anyone's plug-in
            return ProviderError(type(error).__name__, str(error))
        self._observe(run.facts)
        outcome = run.outcomes.get(job.id, ProviderError("no_outcome"))
        return outcome if isinstance(outcome, ProviderError) else None


def _write_tone(path: Path, rate: int) -> None:
    """A second of 440 Hz, as loud as speech."""
    tone = 3000 * np.sin(2 * np.pi * 440 * np.arange(round(_PROBE_S * rate)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(tone.astype("<i2").tobytes())
