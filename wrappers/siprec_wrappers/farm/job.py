"""One job: an audio in the store and what is wanted of it. Equal jobs have equal ids."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self, TypeGuard

TASK = "whisper_farm.transcribe"
_HEX = frozenset("0123456789abcdef")
_LATEST = 1e11  # Unix time, thousands of years from now


class MalformedJob(ValueError):
    """A message or answer that is no job of ours."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is asked for. `audio` is the audio's key in the store.

    `request` is one client's wish for it, new each time: cancelling it harms nobody else who wants
    the same, and no worker remembers it when the job comes again. `deadline` is Unix time.
    """

    audio: str
    model: str
    language: str | None
    task: str
    extra: tuple[str, ...]
    request: str
    deadline: float
    seconds: float

    @property
    def id(self) -> str:
        """SHA-256 of audio, model, language, task and further arguments: the result's name."""
        wanted = [self.audio, self.model, self.language, self.task, list(self.extra)]
        return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()

    @property
    def result(self) -> str:
        """Key of the JSON that the recogniser wrote."""
        return f"results/{self.id}.json"

    @property
    def failure(self) -> str:
        """Key of why this request has no result."""
        return f"failures/{self.request}.json"

    @property
    def cancelled(self) -> str:
        """Key that is there when the client wants it no more."""
        return f"cancelled/{self.request}"

    @property
    def waiting(self) -> str:
        """Key that is there while the request is open; its name says length and since when."""
        return f"waiting/{self.request}~{round(self.seconds * 1000)}"

    def arguments(self) -> list[str]:
        """The contract's arguments after the audio, without those for the output."""
        language = ["--language", self.language] if self.language else []
        task = ["--task", self.task] if self.task != "transcribe" else []
        return ["--model", self.model, *task, *language, *self.extra]

    def to_json(self) -> dict[str, object]:
        """The job as the message and the dispatcher carry it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The reverse. Raises MalformedJob: what names files and arguments is checked."""
        if not isinstance(document, Mapping):
            raise MalformedJob("not an object")
        audio, request = document.get("audio"), document.get("request")
        model, language = document.get("model"), document.get("language")
        task, extra = document.get("task"), document.get("extra")
        deadline, seconds = document.get("deadline"), document.get("seconds")
        if not (
            isinstance(audio, str)
            and _is_audio_key(audio)
            and isinstance(request, str)
            and len(request) == 32
            and _HEX.issuperset(request)
            and isinstance(model, str)
            and (language is None or isinstance(language, str))
            and task in ("transcribe", "translate")
            and isinstance(extra, Sequence)
            and all(isinstance(one, str) for one in extra)
            and is_time(deadline)
            and is_time(seconds)
        ):
            raise MalformedJob("a field is missing or wrong")
        return cls(
            audio, model, language, str(task), tuple(extra), request, float(deadline), float(seconds)
        )  # fmt: skip


def is_time(value: object) -> TypeGuard[int | float]:
    """Seconds of a time that there may be: JSON has NaN, Infinity, and whole numbers of any size."""
    return isinstance(value, int | float) and abs(value) < _LATEST


def audio_key(digest: str, suffix: str) -> str:
    """Key of an audio by the SHA-256 of its content; the suffix helps recognisers that read it."""
    plain = suffix.lower().removeprefix(".")
    kept = f".{plain}" if plain.isascii() and plain.isalnum() and len(plain) <= 5 else ""
    return f"audio/{digest}{kept}"


def job_of(body: str | bytes) -> Job | None:
    """The job in a message's body, or None when there is none."""
    try:
        arguments = json.loads(body)[0]
        return Job.from_json(arguments[0])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _is_audio_key(key: str) -> bool:
    digest, _, suffix = key.removeprefix("audio/").partition(".")
    return (
        key.startswith("audio/")
        and len(digest) == 64
        and _HEX.issuperset(digest)
        and len(suffix) <= 5
        and (not suffix or (suffix.isascii() and suffix.isalnum()))
    )


def failure_document(error: str, *, unavailable: bool = False, host: str = "") -> bytes:
    """Why a request has no result. `unavailable`: it did not run at all and may wait."""
    return json.dumps(
        {"error": error, "unavailable": unavailable, "worker": host, "time": time.time()}
    ).encode()


def read_failure(data: bytes) -> tuple[str, bool]:
    """The error, and whether the job never ran."""
    try:
        document = json.loads(data)
        return str(document["error"]), bool(document["unavailable"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "failed, and what the worker wrote about it is unreadable", False
