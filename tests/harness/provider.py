"""A provider that does what a test tells it, and remembers what it was asked."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from siprec_bridge.provider import Job, ProviderError, Run
from siprec_bridge.transcript import RunFacts, Segment, Transcript

Outcome = Mapping[str, Transcript] | ProviderError


def heard(text: str = "hello") -> Transcript:
    """One second of speech."""
    return Transcript(language="en", segments=(Segment(text=text, start=0.0, end=1.0),))


class ScriptedProvider:
    """`answer` decides on each job; None: every file says hello. While `broken`, all fails so.

    The scheduler's probes with known good audio are counted in `probes`, not in `runs`.
    """

    name, model, sample_rate = "scripted", "m1", 8000

    def __init__(
        self,
        answer: Callable[[Job, int], Outcome] | None = None,
        *,
        max_concurrent: int | None = 1,
        max_batch: int = 8,
        name: str | None = None,
    ) -> None:
        self.name = name or self.name
        self.language: str | None = None
        self.enabled = True
        self.broken: ProviderError | None = None
        self.probes = 0
        self.given: list[Job] = []
        self.seconds = 0.0  # that a run is said to take, for each second of audio
        self._answer = answer
        self.max_concurrent = max_concurrent
        self.max_batch = max_batch
        self.runs: list[list[str]] = []
        self.cause: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0
        self.most_running = 0

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """Nothing to configure."""
        return cls()

    def describe(self) -> str:
        """One line."""
        return "a double"

    async def unavailable(self) -> str | None:
        """What the test says."""
        return self.cause

    async def transcribe(self, jobs: Sequence[Job]) -> Run:
        """Wait for the gate, then answer."""
        if [job.id for job in jobs] == ["probe"]:
            self.probes += 1
        else:
            self.runs.append([job.id for job in jobs])
            self.given += jobs
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        outcomes = {job.id: self._outcome(job, len(jobs)) for job in jobs}
        failed = [one for one in outcomes.values() if isinstance(one, ProviderError)]
        facts = RunFacts(
            provider=self.name,
            model=self.model,
            status="error" if failed else "success",
            reason=failed[0].reason if failed else "ok",
            duration=self.seconds * sum(one.duration for job in jobs for one in job.audio),
        )
        return Run(facts, outcomes)

    async def close(self) -> None:
        """Nothing is held."""

    def _outcome(self, job: Job, company: int) -> Outcome:
        if self.broken is not None:
            return self.broken
        if self._answer is not None and job.id != "probe":
            return self._answer(job, company)
        return {audio.key: heard() for audio in job.audio}
