"""What turns audio into JSON on a worker: a program that keeps the CLI contract, or faster-whisper."""

import ctypes
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from siprec_wrappers.farm.job import Job
from siprec_wrappers.farm.settings import EngineSettings
from siprec_wrappers.languages import code_of

_TERM_GRACE_S = 3.0
_ASK_EVERY_S = 0.5
_LARGEST_OUTPUT = 64 << 20
_TAIL = 4096
_NO_PROGRAM = (126, 127)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class RunFailed(Exception):
    """The recogniser failed; the message is its own. `unavailable`: it did not run at all."""

    def __init__(self, error: str, *, unavailable: bool = False) -> None:
        super().__init__(error)
        self.unavailable = unavailable


class Cancelled(Exception):
    """Nobody wants the result any more."""


class Engine(Protocol):
    """A recogniser on this machine."""

    def transcribe(self, audio: Path, job: Job, stopped: Callable[[], bool]) -> bytes:
        """The contract's JSON. Asks `stopped` about twice a second if it can.

        Raises RunFailed, and Cancelled when `stopped` says so or the job's deadline is over.
        """
        ...


def check_engine(settings: EngineSettings) -> None:
    """Raise RunFailed when this machine lacks what is set; imports nothing."""
    if settings.kind == "faster-whisper":
        if importlib.util.find_spec("faster_whisper") is None:
            raise RunFailed("WHISPER_FARM_ENGINE: faster-whisper is not installed")
    elif shutil.which(settings.command[0]) is None:
        raise RunFailed(f"WHISPER_FARM_COMMAND: {settings.command[0]}: no such program")


def make_engine(settings: EngineSettings) -> Engine:
    """The engine that is set."""
    if settings.kind == "faster-whisper":
        return FasterWhisper()
    return Command(settings.command)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies. prctl(2)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Command:
    """A program in a process group of its own, which ends with it, whatever is left in it."""

    def __init__(self, command: Sequence[str]) -> None:
        # By setpriv (util-linux), if it is there: a child that sets it up itself has to be forked
        # from all of this process, which takes milliseconds.
        setpriv = shutil.which("setpriv")
        guard = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
        self._preexec = None if setpriv else die_with_parent
        self._command = (*guard, *command)

    def transcribe(self, audio: Path, job: Job, stopped: Callable[[], bool]) -> bytes:
        """See Engine."""
        with tempfile.TemporaryDirectory(prefix="whisper-farm-") as folder:
            arguments = [
                *self._command, str(audio), *job.arguments(),
                "--output_dir", folder, "--output_format", "json",
            ]  # fmt: skip
            try:
                child = subprocess.Popen(
                    arguments,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=self._preexec,
                )
            except OSError as error:
                raise RunFailed(f"{error.filename}: {error.strerror}", unavailable=True) from error
            except ValueError as error:  # NUL, half a character
                raise RunFailed(f"its arguments cannot be passed on: {error}") from error
            tail = _Tail(child)
            try:
                _await(child, job, stopped)
            finally:
                _end_group(child)
            if child.returncode:
                said = tail.text() or f"exit code {child.returncode}"
                raise RunFailed(said, unavailable=child.returncode in _NO_PROGRAM)
            return _output(Path(folder) / f"{audio.stem}.json", tail)


class _Tail:
    """Reads a child's stderr to its end, so that it never blocks, and keeps the last of it."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._child.stderr is not None
        descriptor = self._child.stderr.fileno()
        while data := os.read(descriptor, 65536):
            self._kept = (self._kept + data)[-_TAIL:]

    def text(self) -> str:
        self._thread.join(0.5)  # what left the group may hold the pipe for ever
        return self._kept.decode("utf-8", "replace").strip()


def _await(child: "subprocess.Popen[bytes]", job: Job, stopped: Callable[[], bool]) -> None:
    descriptor = os.pidfd_open(child.pid)
    try:
        end = select.poll()
        end.register(descriptor, select.POLLIN)
        while not end.poll(1000 * _ASK_EVERY_S):
            if time.time() > job.deadline:
                raise Cancelled("its time is over")
            if stopped():
                raise Cancelled("its client wants it no more")
    finally:
        os.close(descriptor)
    child.wait()


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    for what in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, what)
        except (ProcessLookupError, PermissionError):
            break
        until = time.monotonic() + _TERM_GRACE_S
        while time.monotonic() < until:
            child.poll()  # a leader that nobody has waited for is still a member
            try:
                os.killpg(child.pid, 0)
            except (ProcessLookupError, PermissionError):
                break
            time.sleep(0.01)
    child.wait()


def _output(path: Path, tail: _Tail) -> bytes:
    try:
        if not path.is_file():
            raise RunFailed(f"wrote no {path.name}. {tail.text()}".strip())
        if path.stat().st_size > _LARGEST_OUTPUT:
            raise RunFailed("its output is larger than 64 MiB")
        data = path.read_bytes()
        check_result(data)
    except ValueError as error:
        raise RunFailed(f"its output is no JSON of the contract: {error}") from error
    return data


def check_result(data: bytes) -> None:
    """Raise ValueError unless it is a JSON object."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    if not isinstance(document, dict):
        raise ValueError("not an object")


class FasterWhisper:
    """faster-whisper in this process: the model stays loaded between jobs.

    A run cannot be interrupted here: one that is cancelled, or too late, is dropped when it ends.
    """

    def __init__(self) -> None:
        from faster_whisper import WhisperModel  # seconds: in the process that runs it only

        self._load: Any = WhisperModel
        self._models: dict[str, Any] = {}

    def transcribe(self, audio: Path, job: Job, stopped: Callable[[], bool]) -> bytes:
        """See Engine. Between two segments it asks `stopped`."""
        try:
            model = self._models.get(job.model)
            if model is None:
                self._models.clear()  # one at a time: a GPU seldom holds two
                model = self._models[job.model] = self._load(job.model, compute_type="auto")
        except Exception as error:
            raise RunFailed(f"model {job.model}: {error}", unavailable=True) from error
        try:
            found, info = model.transcribe(
                str(audio),
                language=code_of(job.language) if job.language else None,
                task=job.task,
                word_timestamps=True,
            )
            segments = []
            for number, one in enumerate(found):
                if stopped() or time.time() > job.deadline:
                    raise Cancelled("nobody waits for it")
                segments.append(_segment(number, one))
        except Cancelled:
            raise
        except Exception as error:
            raise RunFailed(f"{type(error).__name__}: {error}") from error
        document = {
            "text": "".join(str(one["text"]) for one in segments).strip(),
            "language": info.language,
            "segments": segments,
            "model": job.model,
        }
        return json.dumps(document, ensure_ascii=False).encode()


def _segment(number: int, one: Any) -> dict[str, object]:
    return {
        "id": number,
        "start": round(one.start, 3),
        "end": round(one.end, 3),
        "text": one.text,
        "avg_logprob": one.avg_logprob,
        "no_speech_prob": one.no_speech_prob,
        "compression_ratio": one.compression_ratio,
        "words": [
            {
                "word": word.word,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "probability": round(word.probability, 4),
            }
            for word in one.words or ()
        ],
    }
