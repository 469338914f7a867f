"""The CLI contract on a wrapper's side: arguments in, output files out. See ../README.md.

Imported at each start of a wrapper, so it imports little: dataclasses would take 10 ms of CPU.
"""

import argparse
import json
import re
import wave
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

FORMATS = ("json", "txt", "srt", "vtt", "tsv")


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "": 1.0}


class Failure(Exception):
    """Why a wrapper gives up, and the exit code that says so.

    1: the run failed; 124: out of time; 126, 127: the recogniser cannot be had now, the job waits.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Arguments(NamedTuple):
    """What the caller asked for.

    `ignored` are the options that are not the contract's, in their order: a wrapper that has a
    use for them passes them on, another leaves them.
    """

    audio: tuple[Path, ...]
    model: str
    output_dir: Path
    output_formats: tuple[str, ...]
    task: str
    language: str | None
    ignored: tuple[str, ...]
    model_dir: str | None = None


class Word(NamedTuple):
    """Seconds from the start of the file; probability 0..1, None where the recogniser has none."""

    text: str
    start: float
    end: float
    probability: float | None = None


class Segment(NamedTuple):
    """A stretch of speech. The measures are openai-whisper's; None where the recogniser has none."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None


def seconds_in(text: str) -> float:
    """What `90`, `90s`, `20m`, `1h30m` or `1d` are, as the bridge writes times.

    Raises ValueError for anything else, and for no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms]?)", text.strip().lower(), re.ASCII)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text.strip().lower() or not 0 < seconds < float("inf"):
        raise ValueError("a duration such as 90s or 20m is needed")
    return seconds


def parse_arguments(
    program: str,
    about: str,
    argv: Sequence[str] | None = None,
    *,
    epilog: str = "Further options of openai-whisper are accepted.",
) -> Arguments:
    """Read the contract's arguments; a wrong one ends the program with exit code 2.

    `about` and `epilog` are shown by `--help`, with their own line breaks.
    """
    parser = argparse.ArgumentParser(
        program, description=about, epilog=epilog, allow_abbrev=False,
        # With a width of its own argparse need not import shutil to ask the terminal's.
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),
    )  # fmt: skip
    parser.add_argument("audio", nargs="+", type=Path, help="audio files")
    parser.add_argument("--model", default="base", help="model (default: %(default)s)")
    parser.add_argument("--output_dir", "-o", type=Path, default=Path(), help="where to write")
    parser.add_argument("--output_format", "-f", choices=(*FORMATS, "all"), default="all")
    parser.add_argument("--task", choices=("transcribe", "translate"), default="transcribe")
    parser.add_argument("--language", default=None, help="language spoken")
    parser.add_argument("--model_dir", default=None, help="folder of models")
    known, rest = parser.parse_known_args(argv)
    formats = FORMATS if known.output_format == "all" else (known.output_format,)
    return Arguments(
        audio=tuple(known.audio),
        model=known.model,
        output_dir=known.output_dir,
        output_formats=formats,
        task=known.task,
        language=known.language,
        ignored=tuple(rest),
        model_dir=known.model_dir,
    )


def check_audio(audio: Sequence[Path], *, wav_rate: int | None = None) -> None:
    """Look at the files before anything is started for them.

    Raises Failure for one that cannot be read, for two whose outputs would have one name, and,
    with `wav_rate` (Hz), for what is no 16-bit PCM WAV of that rate.
    """
    stems: set[str] = set()
    for file in audio:
        try:
            with file.open("rb") as opened:
                head = opened.read(4)
        except OSError as error:
            raise Failure(f"{file}: {error.strerror}") from error
        if not head:
            raise Failure(f"{file}: is empty")
        if file.stem in stems:
            raise Failure(f"{file}: another file of this run has the name {file.stem}, too")
        stems.add(file.stem)
        if wav_rate is not None:
            _check_wav(file, wav_rate)


def _check_wav(file: Path, rate: int) -> None:
    try:
        with wave.open(str(file), "rb") as wav:
            found, octets = wav.getframerate(), wav.getsampwidth()
    except (OSError, EOFError, wave.Error) as error:
        raise Failure(f"{file}: no WAV file: {str(error) or 'it is cut off'}") from error
    if octets != 2:
        raise Failure(f"{file}: {8 * octets}-bit samples; this recogniser takes 16-bit")
    if found != rate:
        raise Failure(f"{file}: {found} Hz; this recogniser takes {rate} (WHISPER_SAMPLE_RATE)")


def put_output(target: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all. Raises OSError."""
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(content)
    part.replace(target)


def write_outputs(
    arguments: Arguments,
    audio: Path,
    segments: Sequence[Segment],
    *,
    language: str | None,
    model: str | None,
) -> None:
    """Write what was asked for as `<output_dir>/<audio name without extension>.<format>`.

    A file is there whole or not at all. `language` or `model` None: not known, left out.
    """
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for form in arguments.output_formats:
        text = {
            "json": lambda: _json(segments, language, model),
            "txt": lambda: "".join(f"{one.text}\n" for one in segments),
            "srt": lambda: _cues(segments, ",", numbered=True),
            "vtt": lambda: "WEBVTT\n\n" + _cues(segments, ".", numbered=False),
            "tsv": lambda: _tsv(segments),
        }[form]()
        target = arguments.output_dir / f"{audio.stem}.{form}"
        # A server's JSON may have escaped half a character.
        put_output(target, text.encode("utf-8", "replace"))


def _json(segments: Sequence[Segment], language: str | None, model: str | None) -> str:
    document: dict[str, object] = {
        "text": " ".join(one.text for one in segments),
        "segments": [
            _known(
                {
                    "id": number,
                    "start": round(one.start, 3),
                    "end": round(one.end, 3),
                    "text": one.text,
                    "words": [_json_word(word) for word in one.words],
                    "avg_logprob": one.avg_logprob,
                    "no_speech_prob": one.no_speech_prob,
                    "compression_ratio": one.compression_ratio,
                }
            )
            for number, one in enumerate(segments)
        ],
        "language": language,
        "model": model,
    }
    return json.dumps(_known(document), ensure_ascii=False)


def _json_word(word: Word) -> dict[str, object]:
    return _known(
        {
            "word": word.text,
            "start": round(word.start, 3),
            "end": round(word.end, 3),
            "probability": round(word.probability, 4) if word.probability is not None else None,
        }
    )


def _known(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _cues(segments: Sequence[Segment], point: str, *, numbered: bool) -> str:
    blocks = []
    for number, one in enumerate(segments, 1):
        head = f"{number}\n" if numbered else ""
        times = f"{_clock(one.start, point)} --> {_clock(one.end, point)}"
        blocks.append(f"{head}{times}\n{one.text}\n\n")
    return "".join(blocks)


def _tsv(segments: Sequence[Segment]) -> str:
    rows = [f"{round(one.start * 1000)}\t{round(one.end * 1000)}\t{one.text}" for one in segments]
    return "\n".join(["start\tend\ttext", *rows]) + "\n"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
