"""`whisper-cpp`: whisper.cpp's `whisper-cli`, with its own flags, its own models and its own JSON.

All files of a run go through one process, so that the model is loaded once. Words come from its
tokens; their times are whisper.cpp's, in steps of 10 ms.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siprec_wrappers.contract import (
    Arguments,
    Failure,
    Segment,
    Word,
    check_audio,
    parse_arguments,
    write_outputs,
)
from siprec_wrappers.languages import code_of
from siprec_wrappers.lifetime import child, run_to_end
from siprec_wrappers.outputs import read_folder

_PROGRAM = "whisper-cpp"
_KNOWN = ("whisper-cli", "whisper.cpp")
_RATE = 16000
_SAME = {"large": "large-v3", "turbo": "large-v3-turbo"}  # openai-whisper's names
_NO_SPACES = {"zh", "ja", "th", "lo", "my", "yue"}  # a token is a word, as openai-whisper has it
_NOTHING = {"[BLANK_AUDIO]", "[ Silence ]", "[silence]", "[SILENCE]"}
_EPILOG = """\
Further options go to whisper-cli as they are; write them in their long form (--threads 8,
--flash-attn, --beam-size 5, --vad ...).

environment:
  WHISPER_CPP_PROGRAM  path or name of whisper-cli (default: whisper-cli on PATH)
  WHISPER_CPP_TIMEOUT  longest run, such as 90s or 20m (default: WHISPER_TIMEOUT, else 20m)
  OMP_NUM_THREADS      its threads (the bridge sets it), unless --threads says so

model: the path of a ggml file, or a name: base is ggml-base.bin in --model_dir. Without
--language the language is detected; --task translate is --translate.

The audio must be 16-bit WAV at 16 kHz, which is what the bridge gives (WHISPER_SAMPLE_RATE).

exit codes: whisper-cli's own; 1 also when it skipped a file or took no option; 124 out of time;
126 or 127 when it, or the model, is not there; 128+n ended by signal n.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run whisper-cli; see `--help`."""
    arguments = parse_arguments(_PROGRAM, (__doc__ or "").strip(), argv, epilog=_EPILOG)
    return run_to_end(
        _PROGRAM, lambda _: _transcribe(arguments, os.environ), timeout="WHISPER_CPP_TIMEOUT"
    )


def _transcribe(arguments: Arguments, environment: Mapping[str, str]) -> None:
    check_audio(arguments.audio, wav_rate=_RATE)
    program = choose_program(environment)
    model = find_model(arguments.model, arguments.model_dir)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".whisper-cpp-", dir=arguments.output_dir, ignore_cleanup_errors=True
    ) as room:
        command = [program, *command_line(arguments, model, Path(room), environment)]
        with child(command) as running:
            code = running.wait()
        if code:
            code = code if code > 0 else 128 - code
            raise Failure(f"{program}: exit code {code}", code)
        found = read_folder(
            Path(room), [f"{number}.json" for number in range(len(arguments.audio))]
        )
    missing = []
    for number, audio in enumerate(arguments.audio):
        content = found.get(f"{number}.json")
        if content is None:
            missing.append(f"{audio.stem}.json")
            continue
        try:
            heard = read_json(content)
        except Failure as failure:
            raise Failure(f"{audio.stem}.json: {failure}") from failure
        write_outputs(
            arguments, audio, heard.segments, language=heard.language, model=arguments.model
        )
    if missing:
        raise Failure(f"whisper-cli ended well, but wrote no {', '.join(missing)}")


def choose_program(environment: Mapping[str, str]) -> str:
    """The program to run. Raises Failure (127) when there is none."""
    named = environment.get("WHISPER_CPP_PROGRAM")
    for name in (os.path.expanduser(named),) if named else _KNOWN:
        if (found := shutil.which(name)) is not None:
            return found
    if named:
        raise Failure(f"WHISPER_CPP_PROGRAM={named}: not found, or not executable", 127)
    raise Failure("whisper-cli is not on PATH (WHISPER_CPP_PROGRAM)", 127)


def find_model(name: str, model_dir: str | None) -> Path:
    """The ggml file of a model. Raises Failure (126) when there is none: it may be on its way."""
    folder = Path(model_dir or ".").expanduser()
    plain = _SAME.get(name, name)
    tried = [folder / f"ggml-{plain}.bin", folder / f"{name}.bin", folder / name]
    if os.sep in name or name.startswith("~"):
        tried = [Path(name).expanduser()]
    for file in tried:
        if file.is_file():
            return file.absolute()
    where = ", ".join(map(str, tried[:1] + tried[2:]))
    raise Failure(f"no model {name}: looked for {where} (WHISPER_MODELS_DIR)", 126)


def command_line(
    arguments: Arguments, model: Path, output_dir: Path, environment: Mapping[str, str]
) -> list[str]:
    """whisper-cli's arguments; the outputs are `0.json`, `1.json`, …"""
    line = ["-m", str(model), "-l", code_of(arguments.language or "auto"), "-ojf"]
    if arguments.task == "translate":
        line.append("-tr")
    for number, audio in enumerate(arguments.audio):
        line += ["-f", str(audio.absolute()), "-of", str(output_dir / str(number))]
    # It knows no such variable itself, and as many threads as cores are too many for runs side by side.
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0:
        line += ["-t", threads]
    # whisper.cpp's word for what the contract may ask for.
    own = ["--prompt" if one == "--initial_prompt" else one for one in arguments.ignored]
    return [*line, *own]


@dataclass(frozen=True, slots=True)
class Heard:
    """What whisper-cli wrote for one file."""

    language: str
    segments: tuple[Segment, ...]


def read_json(content: bytes) -> Heard:
    """Read the output of `-ojf`. Raises Failure for what is none."""
    # A token may end within a character: the octets are put together again before they are read.
    try:
        document = json.loads(content.decode("utf-8", "surrogateescape"))
        language = str(document["result"]["language"])
        segments = [_segment(one, language) for one in document["transcription"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Failure(f"whisper-cli's JSON is not understood: {error!r}") from error
    # What it writes for silence is no speech.
    return Heard(language, tuple(one for one in segments if one.text.strip() not in _NOTHING))


def _segment(written: Mapping[str, Any], language: str) -> Segment:
    text = _readable(written["text"]).strip()
    tokens = [
        token for token in written.get("tokens", ()) if not token["text"].startswith(("[_", "<|"))
    ]
    chances = [max(float(token["p"]), 1e-10) for token in tokens]
    packed = zlib.compress(text.encode())
    return Segment(
        text,
        written["offsets"]["from"] / 1000,
        written["offsets"]["to"] / 1000,
        tuple(_words(tokens, language in _NO_SPACES)),
        avg_logprob=sum(map(math.log, chances)) / len(chances) if chances else None,
        compression_ratio=len(text.encode()) / len(packed),
    )


def _words(tokens: Iterable[Mapping[str, Any]], each_is_one: bool) -> Iterable[Word]:
    groups: list[list[Mapping[str, Any]]] = []
    for token in tokens:
        starts = token["text"].startswith(" ")
        if each_is_one and groups:
            starts = _is_whole("".join(one["text"] for one in groups[-1]))
        if starts or not groups:
            groups.append([])
        groups[-1].append(token)
    for group in groups:
        text = _readable("".join(token["text"] for token in group)).strip()
        if text:
            yield Word(
                text,
                group[0]["offsets"]["from"] / 1000,
                group[-1]["offsets"]["to"] / 1000,
                sum(float(token["p"]) for token in group) / len(group),
            )


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError:
        return False
    return True


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main())
