"""What the farm reads from its environment; the names are in docs/farm.md."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")


class SettingError(ValueError):
    """A setting is missing or wrong; the message names it and says what is allowed."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a machine recognises: `kind` command or faster-whisper, and the command."""

    kind: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """One farm, as its client, workers and dispatcher see it. Times in seconds."""

    broker: str
    store: str
    name: str
    pool: str
    timeout: float
    attempts: int
    keep: float
    engine: EngineSettings

    @property
    def jobs_exchange(self) -> str:
        """Topic exchange that jobs are published to."""
        return f"{self.name}.jobs"

    @property
    def dead_exchange(self) -> str:
        """Topic exchange of the jobs that nobody could do, with their own routing keys."""
        return f"{self.name}.dead"

    @property
    def done_exchange(self) -> str:
        """Topic exchange of the signals that a job's result or failure is in the store."""
        return f"{self.name}.done"

    @property
    def queue(self) -> str:
        """Quorum queue of this pool."""
        return f"{self.name}.{self.pool}"

    @property
    def dead_queue(self) -> str:
        """Quorum queue where dead jobs of all pools lie."""
        return f"{self.name}.dead"

    def routing_key(self, request: str) -> str:
        """Key of one request; its last word is the request, which its client binds to."""
        return f"{self.pool}.{request}"


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read WHISPER_FARM_*. Raises SettingError."""
    timeout = _seconds(environment, "TIMEOUT", "20m")
    keep = _seconds(environment, "KEEP", "24h")
    if keep < 2 * timeout:
        raise SettingError(
            f"WHISPER_FARM_KEEP={keep:g}s: at least twice WHISPER_FARM_TIMEOUT ({timeout:g}s), "
            "or audio would be removed before its job is done"
        )
    return Settings(
        broker=_required(environment, "BROKER"),
        store=_required(environment, "STORE"),
        name=_word(environment, "NAME", "whisper-farm"),
        pool=_word(environment, "POOL", "default"),
        timeout=timeout,
        attempts=_count(environment, "ATTEMPTS", 3),
        keep=keep,
        engine=read_engine_settings(environment),
    )


def read_engine_settings(environment: Mapping[str, str]) -> EngineSettings:
    """Read WHISPER_FARM_ENGINE and _COMMAND. Raises SettingError."""
    kind = _one(environment, "ENGINE") or "command"
    if kind not in ("command", "faster-whisper"):
        raise SettingError(f"WHISPER_FARM_ENGINE={kind}: command or faster-whisper")
    text = _one(environment, "COMMAND") or "whisper"
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise SettingError(f"WHISPER_FARM_COMMAND={text}: {error}") from error
    return EngineSettings(kind, command)


def _one(environment: Mapping[str, str], name: str) -> str:
    """The value, or what is in the file that `…_FILE` names: secrets need not be in the environment."""
    full = f"WHISPER_FARM_{name}"
    file = environment.get(f"{full}_FILE", "").strip()
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{full}_FILE={file}: {error}") from error
    return environment.get(full, "").strip()


def _required(environment: Mapping[str, str], name: str) -> str:
    value = _one(environment, name)
    if not value:
        raise SettingError(f"WHISPER_FARM_{name} is not set")
    return value


def _word(environment: Mapping[str, str], name: str, default: str) -> str:
    value = _one(environment, name) or default
    if not _NAME.fullmatch(value):
        raise SettingError(f"WHISPER_FARM_{name}={value}: letters, digits, _ and -, at most 60")
    return value


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    value = _one(environment, name) or str(default)
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 100:
        raise SettingError(f"WHISPER_FARM_{name}={value}: a number from 1 to 100")
    return int(value)


def _seconds(environment: Mapping[str, str], name: str, default: str) -> float:
    value = _one(environment, name) or default
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise SettingError(f"WHISPER_FARM_{name}={value}: {error}") from error
    return seconds


def parse_duration(text: str) -> float:
    """Seconds of `20m`, `1h30m`, `90s`. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError("a duration such as 90s, 20m or 1h30m")
    parts = re.findall(r"([\d.]+)(ms|[dhms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds:
        raise ValueError("must be longer than nothing")
    return seconds
