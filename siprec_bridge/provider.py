"""The contract that transcription plug-ins implement. Public API: change it only by adding.

A plug-in registers a class under the entry point group `siprec_bridge.providers`. The bridge
makes one instance with `from_options(options)`, where `options` maps every configured name
(environment, .env and TOML merged, names in upper case) to its text, so that a plug-in reads
its own variables without the bridge knowing them.
"""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from siprec_bridge.transcript import RunFacts, Transcript


class ConfigurationError(Exception):
    """The operator's mistake: stops the start. Says which setting, its value and what is allowed."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
        self.setting = setting
        self.reason = reason

    @classmethod
    def cannot_listen(
        cls, what: str, place: tuple[str, int], error: OSError, *, host: str, port: str
    ) -> Self:
        """That a socket cannot be bound, blamed on the setting of the host or on that of the port."""
        number = error.errno or 0
        text = f"{what} cannot listen on {place[0]}:{place[1]}: "
        if number < 0:  # of getaddrinfo
            return cls(f"{host}={place[0]}", f"{text}{error.strerror}")
        if number == errno.EADDRNOTAVAIL:
            return cls(f"{host}={place[0]}", f"{text}this machine has no such address")
        if number == errno.EADDRINUSE:
            return cls(f"{port}={place[1]}", f"{text}it is taken; is a bridge running already?")
        if number == errno.EACCES:
            return cls(
                f"{port}={place[1]}", f"{text}not allowed; below 1024 it takes CAP_NET_BIND_SERVICE"
            )
        return cls(f"{port}={place[1]}", f"{text}{os.strerror(number)}")


def parse_duration(text: str) -> float:
    """Seconds in "20m", "90s", "1h30m", "90d", "250ms" or a bare number of seconds.

    Raises ValueError with what is allowed.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms]?)", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise ValueError("a duration such as 90s, 20m, 1h30m or 90d is needed")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


_UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "": 1.0}


class ProviderError(Exception):
    """The recogniser's failure. `retryable` decides between another try later and giving up."""

    retryable = True

    def __init__(self, reason: str, detail: str = "", *, retryable: bool | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason  # short slug for metrics and the job row
        self.detail = detail
        if retryable is not None:
            self.retryable = retryable


class ProviderUnavailable(ProviderError):
    """The recogniser is not there (not found, not executable, server down).

    The job did not fail: it waits, and the try is not counted. But it is the job's failure (a model
    that is not there, say) where the recogniser hears a tone right after.
    """


@dataclass(frozen=True, slots=True)
class AudioFile:
    """One leg to transcribe: mono PCM WAV. `key` names it within its job (the stream label)."""

    key: str
    path: Path
    duration: float


@dataclass(frozen=True, slots=True)
class Job:
    """One session's audio, all legs. `None` leaves the choice to the provider's own options."""

    id: str
    audio: tuple[AudioFile, ...]
    model: str | None = None
    language: str | None = None
    log_fields: Mapping[str, str] = field(default_factory=dict)  # which call it is, for log lines
    prompt: str | None = None  # what the recogniser is told to expect; it may ignore it


@dataclass(frozen=True, slots=True)
class Run:
    """What one call of `transcribe` did.

    `outcomes` holds every job's id: its transcripts by audio key, or the error that it met.
    """

    facts: RunFacts
    outcomes: Mapping[str, Mapping[str, Transcript] | ProviderError]


def is_off(provider: "Provider") -> bool:
    """Whether the operator has switched it off: that it does not run is as it should be."""
    return not getattr(provider, "enabled", True)


class Provider(Protocol):
    """A recogniser. One instance serves all jobs; `transcribe` is called concurrently.

    It may have `language: str | None` as well: what it takes a job's to be that names none, where it
    does not detect it. Only then, or when jobs name theirs, do legs share a file. And
    `enabled: bool`; False: the operator has switched it off, which is nobody's fault.
    """

    name: str  # the entry point's name
    model: str  # the model used when a job names none
    sample_rate: int  # Hz: what audio should be handed in at
    max_concurrent: int | None  # runs at once; None: no limit
    max_batch: int  # audio files that one run takes; 1: no batching

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """Build from configured names. Raises ConfigurationError."""
        ...

    def describe(self) -> str:
        """One line for the operator at start: what was chosen and why."""
        ...

    async def unavailable(self) -> str | None:
        """Why no run can start now (one line), or None. Cheap: polled for /health/ready."""
        ...

    async def transcribe(self, jobs: Sequence[Job]) -> Run:
        """Transcribe all jobs in one run. Failures are outcomes, never exceptions.

        The bridge hands in jobs together only if they agree on model, language and prompt.
        Cancelling it ends the run: no process, slot or temporary file is left.
        """
        ...

    async def close(self) -> None:
        """Release what is held. No run is under way."""
        ...
