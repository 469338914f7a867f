"""Every setting of `siprec-asr`: environment variable ASR_…, type, default, meaning."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from siprec_asr.errors import ConfigurationError

PREFIX = "ASR_"
_UNITS = {"s": 1, "m": 60, "h": 3600}
_SIZES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_duration(value: object) -> object:
    """Seconds of "90s", "20m", "1h30m" or a plain number."""
    if not isinstance(value, str) or re.fullmatch(r"[0-9.]+", value):
        return value
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", value):
        raise ValueError("a duration like 90s, 20m or 1h30m is needed")
    return sum(
        float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([hms])", value)
    )


def parse_size(value: object) -> object:
    """Octets of "8GiB", "256MiB" or a plain number."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|[KMG]iB)", value)
    if found is None:
        raise ValueError("a size like 256MiB or 8GiB is needed")
    return int(float(found[1]) * _SIZES[found[2]])


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _octal(value: object) -> object:
    return int(value, 8) if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Octets = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseModel):
    """Field = variable in lower case without the prefix. Durations in seconds, sizes in octets."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), extra="forbid")

    host: str = Field("127.0.0.1", description="address of HTTP, WebSocket and Wyoming")
    port: Port = Field(9300, description="port of HTTP and WebSocket; 0: none")
    wyoming_port: Port = Field(10300, description="port of Wyoming, which knows no login; 0: none")
    socket: Path | None = Field(
        None,
        description="Unix socket of HTTP; unset: /run/siprec-asr/asr.sock where that folder is "
        "ours, else $XDG_RUNTIME_DIR/siprec-asr.sock",
    )
    socket_mode: Annotated[int, BeforeValidator(_octal)] = Field(
        0o600, description="who may connect to the Unix socket (octal)"
    )
    token: str | None = Field(
        None, min_length=1, description="bearer token for HTTP and WebSocket over TCP; or ASR_TOKEN_FILE"
    )  # fmt: skip
    model: str = Field("base", min_length=1, description="model for requests that name none")
    models_dir: Path | None = Field(
        None, description="folder of local models: a folder each, in CTranslate2's form"
    )
    download: bool = Field(True, description="fetch known models that are not on this machine")
    preload: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (), description="models to load at start; ready only when they are (names, by commas)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run")
    device_index: Annotated[int, Field(ge=0)] = Field(0, description="which CUDA device")
    compute_type: str = Field(
        "auto", description="arithmetic: float16, int8, int8_float16, float32 …; auto: the best"
    )
    cpu_threads: Annotated[int, Field(ge=0)] = Field(
        0, description="threads of one run on the CPU; 0: CTranslate2 decides"
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="runs at once; live streams want 2 or more"
    )
    cache_size: Annotated[int, Field(ge=1)] = Field(2, description="models kept loaded at most")
    cache_ttl: Seconds = Field(0.0, description="an unused model is dropped after it; 0: never")
    cache_memory_limit: Octets = Field(0, description="memory of all loaded models; 0: no limit")
    beam_size: Annotated[int, Field(ge=1, le=20)] = Field(5, description="beams of the search")
    batch_size: Annotated[int, Field(ge=1, le=128)] = Field(
        1, description="windows of long audio decoded together; above 1 cut at pauses, 8 to 16 suit GPUs"
    )  # fmt: skip
    word_timestamps: bool = Field(True, description="times of words where a client leaves it open")
    language: str | None = Field(None, description="language spoken; unset: detected")
    deadline: Annotated[Seconds, Field(gt=0)] = Field(
        1200.0, description="longest a request waits for its transcript, queue and run"
    )
    queue_limit: Annotated[int, Field(ge=1)] = Field(
        64, description="requests waiting at most; more get 429 and Retry-After"
    )
    queue_audio: Annotated[Seconds, Field(gt=0)] = Field(
        14400.0, description="audio waiting at most, as play time"
    )
    max_upload: Annotated[Octets, Field(gt=0)] = Field(
        512 << 20, description="largest request; it is held in memory"
    )
    max_audio: Annotated[Seconds, Field(gt=0)] = Field(
        14400.0, description="longest single piece of audio"
    )
    max_streams: Annotated[int, Field(ge=1)] = Field(
        16, description="live streams at once, Wyoming connections likewise"
    )
    stream_step: Annotated[Seconds, Field(gt=0.1)] = Field(
        1.0, description="new audio of a live stream between two partial transcripts"
    )
    stop_timeout: Seconds = Field(30.0, description="what runs at SIGTERM may go on so long")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="transcripts are in the log at debug only"
    )
    log_format: Literal["json", "console", "auto"] = Field(
        "auto", description="auto: console lines for a terminal, else JSON"
    )

    @model_validator(mode="after")
    def _somewhere_to_listen(self) -> Self:
        if self.models_dir is not None and not self.models_dir.is_dir():
            raise ValueError(f"models_dir: {self.models_dir} is not a folder")
        return self

    def changed(self, changes: Mapping[str, object]) -> "Settings":
        """These settings with some changed, checked. Raises ConfigurationError."""
        return _validated(self.model_dump() | dict(changes))


# What may be changed while the server runs; the rest is built into its parts.
CHANGEABLE = frozenset(
    {"model", "beam_size", "batch_size", "word_timestamps", "language", "deadline",
     "cache_size", "cache_ttl", "cache_memory_limit", "queue_limit", "queue_audio", "max_audio"}
)  # fmt: skip


def load(environment: Mapping[str, str]) -> Settings:
    """Read ASR_…; ASR_NAME_FILE names a file that holds the value of ASR_NAME.

    Raises ConfigurationError, also for a name that is no setting.
    """
    given: dict[str, object] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or not text.strip():
            continue
        if name not in Settings.model_fields and name.endswith("_file"):
            name = name.removesuffix("_file")
            try:
                text = Path(text).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{variable}={text}: {error}") from error
        if name not in Settings.model_fields:
            raise ConfigurationError(f"{variable}: there is no such setting")
        given[name] = text.strip()
    return _validated(given)


def default_socket(environment: Mapping[str, str]) -> Path | None:
    """Where the Unix socket lies when no setting says so; whisper-resident looks there too."""
    if os.access("/run/siprec-asr", os.W_OK | os.X_OK):
        return Path("/run/siprec-asr/asr.sock")
    runtime = environment.get("XDG_RUNTIME_DIR")
    return Path(runtime, "siprec-asr.sock") if runtime and Path(runtime).is_dir() else None


def _validated(given: Mapping[str, object]) -> Settings:
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            name, _, reason = reason.partition(": ")
            raise ConfigurationError(f"{PREFIX}{name.upper()}: {reason}") from error
        name = str(first["loc"][0])
        shown = "***" if name == "token" else given.get(name)
        raise ConfigurationError(f"{PREFIX}{name.upper()}={shown}: {reason}") from error
