"""The whisper provider: runs the executable in WHISPER_BINARY_PATH with openai-whisper's CLI.

Anything that keeps that contract (see wrappers/README.md) is a recogniser.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from siprec_bridge.provider import (
    AudioFile,
    ConfigurationError,
    Job,
    ProviderError,
    ProviderUnavailable,
    Run,
    parse_duration,
)
from siprec_bridge.transcript import RunFacts, Transcript
from siprec_providers.leftovers import PREFIX, clear_leftovers, held, note_owner
from siprec_providers.process import Finished, run_process
from siprec_providers.whisper_json import MalformedOutput, read_output

T = TypeVar("T")

log = structlog.get_logger()

_FOUND_ON_PATH = ("whisper", "whisper-ctranslate2")
_STANDIN = "whisper-standin"
_LARGEST_OUTPUT = 64 << 20  # octets; hours of words stay far below
# A shell's way to say that there is no such program, or that it is none.
_THREADS = "OMP_NUM_THREADS"  # read by torch, CTranslate2 and BLAS; ours by whisper-cpp
_NO_PROGRAM = (126, 127)


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _arguments(value: object) -> object:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


class WhisperOptions(BaseModel):
    """The WHISPER_* settings; field = variable in lower case without the prefix."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    enabled: bool = Field(
        True, description="false: record only; jobs are off until it is true again"
    )
    binary_path: str | None = Field(
        None,
        description="the executable; else whisper or whisper-ctranslate2 on PATH, "
        "else the bundled stand-in",
    )
    model: str = Field("base", min_length=1, description="model, as the executable names it")
    models_dir: Path | None = Field(None, description="folder of its models (--model_dir)")
    language: str | None = Field(None, description="language spoken; unset or auto: detected")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="what to do")
    translate: bool = Field(False, description="true: the same as WHISPER_TASK=translate")
    output_format: Literal["json", "txt", "srt", "vtt", "tsv"] = Field(
        "json", description="format that is asked for and read; json has the most in it"
    )
    timeout: Annotated[float, BeforeValidator(_seconds), Field(gt=0)] = Field(
        1200.0, description="longest run; then the whole process group is ended"
    )
    max_concurrent: Annotated[int, Field(ge=-1)] = Field(
        -1, description="running processes at once; -1: as many as cores, 0: no limit"
    )
    extra_args: Annotated[tuple[str, ...], BeforeValidator(_arguments)] = Field(
        (), description="further arguments, quoted as in a shell"
    )
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] = Field(
        16000, description="Hz; audio is resampled to it"
    )
    batch: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="audio files in one run at most; 1 for executables that take only one"
    )

    @property
    def effective_task(self) -> str:
        """`task`, or translate where either setting says so."""
        return "translate" if self.translate else self.task


class WhisperCli:
    """A provider that runs a program for each batch. See `siprec_bridge.provider.Provider`."""

    name = "whisper"

    def __init__(
        self, options: WhisperOptions, temp_dir: Path, environment: Mapping[str, str]
    ) -> None:
        self._options = options
        self._temp_dir = temp_dir
        self._environment = environment
        self.model = options.model
        self.sample_rate = options.sample_rate
        self.max_batch = options.batch
        self.language = options.language
        self.enabled = options.enabled
        cores = self._cores = len(os.sched_getaffinity(0))
        self._running = 0  # programs
        limit = cores if options.max_concurrent == -1 else options.max_concurrent
        self.max_concurrent: int | None = limit or None
        self._slots = asyncio.Semaphore(limit) if limit else None
        self._binary, self._reason = _choose_binary(options, environment)
        log.info(
            "whisper provider initialized",
            binary=self._binary,
            model=options.model,
            outputFormat=options.output_format,
            timeout=f"{options.timeout:g}s",
        )
        log.info("Whisper rate limiting enabled", max_concurrent=limit or "unlimited")

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """Read WHISPER_* and TMPDIR. Raises ConfigurationError."""
        prefix = "WHISPER_"
        own = {
            name.removeprefix(prefix).lower(): value.strip()
            for name, value in options.items()
            if name.startswith(prefix) and value.strip()
        }
        try:
            parsed = WhisperOptions.model_validate(own)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise ConfigurationError(
                f"{prefix}{name.upper()}={own.get(name, '')}",
                first["msg"].removeprefix("Value error, "),
            ) from error
        if parsed.binary_path is not None and parsed.binary_path.endswith("/"):
            raise ConfigurationError(f"WHISPER_BINARY_PATH={parsed.binary_path}", "is a folder")
        # Absolute, as all paths that the program gets: it runs in a directory of its own.
        temp_dir = Path(options.get("TMPDIR") or tempfile.gettempdir()).expanduser().absolute()
        if not temp_dir.is_dir():
            raise ConfigurationError(f"TMPDIR={temp_dir}", "must be a folder that is there")
        left = clear_leftovers(temp_dir)
        if left:
            log.warning("whisper.leftovers_removed", runs=left, temp_dir=str(temp_dir))
        # A wrapper's own settings (WHISPER_HTTP_URL …) may stand in .env or TOML as ours do.
        given = {name: value for name, value in options.items() if name.startswith(prefix)}
        return cls(parsed, temp_dir, dict(os.environ) | given | {"TMPDIR": str(temp_dir)})

    def describe(self) -> str:
        """One line: which program, and why this one."""
        return f"{self._binary} ({self._reason}), model {self.model}"

    async def unavailable(self) -> str | None:
        """Why the program cannot be run now, or None."""
        if not self._options.enabled:
            return "WHISPER_ENABLED=false"
        return _missing(self._binary)

    async def transcribe(self, jobs: Sequence[Job]) -> Run:
        """One run for all jobs' audio; one after the other for what differs in its arguments.

        So is what is more than one run may have of files, be it of one job.
        """
        alike: dict[tuple[str, str | None, str | None], list[Job]] = {}
        for job in jobs:
            alike.setdefault(self._asked(job), []).append(job)
        runs = [run for some in alike.values() for run in _shared_out(some, self.max_batch)]
        # Counts running programs only: nothing is held while waiting.
        async with self._slots or contextlib.nullcontext():
            return _together([await self._run(some) for some in runs])

    async def close(self) -> None:
        """Nothing is held between runs."""

    async def _run(self, jobs: Sequence[Job]) -> Run:
        cause = await self.unavailable()
        if cause is not None:
            return self._failed(jobs, ProviderUnavailable("unavailable", cause), None, 0, 0)
        try:
            # Not in a thread: cancelled meanwhile, nobody would know of the folder.
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=self._temp_dir)
        except OSError as error:
            problem = ProviderError("temp_dir", f"{self._temp_dir}: {error.strerror}")
            return self._failed(jobs, problem, None, 0, 0)
        try:
            with held(Path(folder)) as locked:
                return await self._run_in(Path(folder), jobs, locked)
        finally:
            await _to_the_end(partial(shutil.rmtree, folder, ignore_errors=True))

    async def _run_in(self, folder: Path, jobs: Sequence[Job], locked: bool) -> Run:
        names = {
            (job.id, audio.key): f"{number:03d}"
            for number, (job, audio) in enumerate(
                (job, audio) for job in jobs for audio in job.audio
            )
        }
        output = folder / "out"
        try:
            files = await _to_the_end(partial(_lay_out, folder, output, jobs, names, locked))
        except OSError as error:
            problem = ProviderError("temp_dir", f"{folder}: {error.strerror}")
            return self._failed(jobs, problem, None, 0, len(names))
        self._running += 1
        try:
            done = await run_process(
                self._command(files, output, jobs),
                timeout_s=self._options.timeout,
                cwd=folder,
                environment={_THREADS: str(self._share(jobs)), **self._environment},
                on_start=partial(_note_group, folder, locked),
            )
        except OSError as error:  # it was there a moment ago
            problem = ProviderUnavailable("unavailable", f"{self._binary}: {error.strerror}")
            return self._failed(jobs, problem, None, 0, len(names))
        finally:
            self._running -= 1
        log.debug("whisper.output", stdout=done.stdout)  # what was said may be in it
        size = await asyncio.to_thread(_size_of, folder)
        problem_of_run = self._problem(done, jobs)
        if problem_of_run is not None:
            return self._failed(jobs, problem_of_run, done, size, len(names))
        outcomes: dict[str, Mapping[str, Transcript] | ProviderError] = {}
        for job in jobs:
            outcomes[job.id] = await asyncio.to_thread(self._read_job, output, job, names)
        errors = [one for one in outcomes.values() if isinstance(one, ProviderError)]
        facts = self._facts(jobs, done, size, len(names), errors[0] if errors else None)
        log.info(
            "Whisper transcription completed",
            jobs=len(jobs),
            files=len(names),
            failed=len(errors),
            duration=round(done.duration, 3),
            model=facts.model,
            **_calls_of(jobs),
        )
        return Run(facts, outcomes)

    def _share(self, jobs: Sequence[Job]) -> int:
        """The threads of a run: its share of the cores.

        Recognisers start one for each core, and threads of several runs that wait for one another on
        the same cores burn many times the CPU that the work takes.
        """
        # Several jobs in one run: there are more than slots, and all slots are about to be taken.
        crowd = self.max_concurrent or self._cores if len(jobs) > 1 else self._running
        return max(1, self._cores // max(1, self._running, crowd))

    def _asked(self, job: Job) -> tuple[str, str | None, str | None]:
        """Model, language and prompt that the program is told; no language: it detects it."""
        language = job.language or self._options.language
        detected = not language or language.lower() == "auto"
        return job.model or self.model, None if detected else language, job.prompt

    def _command(self, files: Sequence[Path], output: Path, jobs: Sequence[Job]) -> list[str]:
        options = self._options
        model, language, prompt = self._asked(jobs[0])
        command = [self._binary, *map(str, files)]
        command += ["--model", model]
        command += ["--output_dir", str(output), "--output_format", options.output_format]
        if options.effective_task != "transcribe":
            command += ["--task", options.effective_task]
        if language is not None:
            command += ["--language", language]
        if options.models_dir is not None:
            command += ["--model_dir", str(options.models_dir.expanduser().absolute())]
        command += options.extra_args
        if prompt is not None:  # behind a house-wide one: the last counts
            command += ["--initial_prompt", prompt]
        return command

    def _problem(self, done: Finished, jobs: Sequence[Job]) -> ProviderError | None:
        if done.timed_out:
            log.error(
                "context deadline exceeded",
                binary=self._binary,
                timeout=f"{self._options.timeout:g}s",
                stderr=done.stderr[-500:],
                **_calls_of(jobs),
            )
            return ProviderError("timeout", f"no result within {self._options.timeout:g} s")
        if done.exit_code in _NO_PROGRAM:
            return ProviderUnavailable("unavailable", f"exit code {done.exit_code}: {done.stderr}")
        if done.exit_code != 0:
            return ProviderError("exit_code", f"exit code {done.exit_code}")
        return None

    def _read_job(
        self, output: Path, job: Job, names: Mapping[tuple[str, str], str]
    ) -> Mapping[str, Transcript] | ProviderError:
        heard: dict[str, Transcript] = {}
        for audio in job.audio:
            name, form = names[job.id, audio.key], self._options.output_format
            file = output / f"{name}.{form}"
            # Of early versions, and of whisper.cpp: 000.wav.json.
            older = output / f"{name}{_suffix(audio)}.{form}"
            try:
                if not file.exists() and older.is_file():
                    file = older
                if not file.is_file():  # a FIFO would be waited on for ever
                    return ProviderError("no_output", f"exit code 0, but no {file.name} is there")
                if file.stat().st_size > _LARGEST_OUTPUT:
                    return ProviderError("bad_output", "output beyond any reason in size")
                data = file.read_bytes()
            except OSError:
                return ProviderError("no_output", f"{file.name} cannot be read")
            try:
                heard[audio.key] = read_output(data, self._options.output_format, audio.duration)
            except MalformedOutput as error:
                return ProviderError("bad_output", str(error))
        return heard

    def _failed(
        self,
        jobs: Sequence[Job],
        problem: ProviderError,
        done: Finished | None,
        size: int,
        files: int,
    ) -> Run:
        return Run(
            self._facts(jobs, done, size, files, problem),
            dict.fromkeys((job.id for job in jobs), problem),
        )

    def _facts(
        self,
        jobs: Sequence[Job],
        done: Finished | None,
        size: int,
        files: int,
        problem: ProviderError | None,
    ) -> RunFacts:
        status = "success" if problem is None else "error"
        if done is not None and done.timed_out:
            status = "timeout"
        return RunFacts(
            provider=self.name,
            model=self._asked(jobs[0])[0],
            status=status,
            reason=problem.reason if problem is not None else "ok",
            duration=done.duration if done is not None else 0.0,
            exit_code=done.exit_code if done is not None else None,
            stderr_tail=done.stderr if done is not None else "",
            temp_bytes=size,
            output_format=self._options.output_format,
            files=files,
        )


def _together(runs: Sequence[Run]) -> Run:
    """Several runs as one: the facts of the first that failed, or of the last, with all their time."""
    told = next((one.facts for one in runs if one.facts.status != "success"), runs[-1].facts)
    facts = told.model_copy(
        update={
            "duration": sum(one.facts.duration for one in runs),
            "temp_bytes": max(one.facts.temp_bytes for one in runs),
            "files": sum(one.facts.files for one in runs),
        }
    )
    outcomes: dict[str, Mapping[str, Transcript] | ProviderError] = {}
    for one in runs:
        for id, outcome in one.outcomes.items():
            before = outcomes.get(id, {})
            if isinstance(before, ProviderError):  # of a job with files in several runs
                continue
            outcomes[id] = outcome if isinstance(outcome, ProviderError) else {**before, **outcome}
    return Run(facts, outcomes)


def _shared_out(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """The jobs in runs of at most so many files; one that is larger by itself, in several."""
    parts = (
        replace(job, audio=job.audio[at : at + most]) if len(job.audio) > most else job
        for job in jobs
        for at in range(0, max(1, len(job.audio)), most)
    )
    run: list[Job] = []
    for part in parts:
        if run and sum(len(one.audio) for one in run) + len(part.audio) > most:
            yield run
            run = []
        run.append(part)
    yield run


async def _to_the_end(work: Callable[[], T]) -> T:
    """Do it in a thread; cancelled, wait for the thread, which cannot be stopped."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _choose_binary(options: WhisperOptions, environment: Mapping[str, str]) -> tuple[str, str]:
    """The program to run, and why it."""
    path = environment.get("PATH", os.defpath)
    if options.binary_path is not None:
        wanted = os.path.expanduser(options.binary_path)
        chosen = shutil.which(wanted, path=path) or wanted
        # A bare name that is not there yet may turn up on PATH.
        return os.path.abspath(chosen) if os.sep in chosen else chosen, "WHISPER_BINARY_PATH"
    for name in _FOUND_ON_PATH:
        if (found := shutil.which(name, path=path)) is not None:
            return found, "found on PATH"
    beside = Path(sys.executable).with_name(_STANDIN)
    found = str(beside) if beside.is_file() else shutil.which(_STANDIN, path=path)
    return found or _STANDIN, "no whisper found; this is the bundled stand-in, not Whisper"


def _missing(binary: str) -> str | None:
    if shutil.which(binary) is not None:
        return None
    if not os.path.exists(binary):
        return f"{binary} does not exist"
    return f"{binary} is not executable"


def _lay_out(
    folder: Path,
    output: Path,
    jobs: Sequence[Job],
    names: Mapping[tuple[str, str], str],
    locked: bool,
) -> list[Path]:
    """Give each audio file a name of its own: two legs may be called the same."""
    note_owner(folder, locked=locked)
    output.mkdir()
    files: list[Path] = []
    for job in jobs:
        for audio in job.audio:
            place = folder / f"{names[job.id, audio.key]}{_suffix(audio)}"
            try:
                os.link(audio.path, place)
            except OSError:  # another file system: wrappers that enter a container see no links
                shutil.copyfile(audio.path, place)
            files.append(place)
    return files


def _suffix(audio: AudioFile) -> str:
    return audio.path.suffix or ".wav"


def _calls_of(jobs: Sequence[Job]) -> dict[str, str]:
    """The log fields that say whose audio a run had; several calls' values stand side by side."""
    names = dict.fromkeys(name for job in jobs for name in job.log_fields)
    return {
        name: " ".join(
            dict.fromkeys(job.log_fields[name] for job in jobs if name in job.log_fields)
        )
        for name in names
    }


def _note_group(folder: Path, locked: bool, group: int) -> None:
    # A full disk is no reason to end a run that has just begun.
    with contextlib.suppress(OSError):
        note_owner(folder, group, locked=locked)


def _size_of(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a program's own temporary files come and go
                size += os.lstat(os.path.join(place, name)).st_size
    return size
