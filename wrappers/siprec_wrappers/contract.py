"""The CLI contract on a wrapper's side: arguments in, output files out. See ../README.md."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FORMATS = ("json", "txt", "srt", "vtt", "tsv")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the caller asked for. `ignored` are options that this wrapper has no use for."""

    audio: tuple[Path, ...]
    model: str
    output_dir: Path
    output_formats: tuple[str, ...]
    task: str
    language: str | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """Seconds from the start of the file; probability 0..1, None where the recogniser has none."""

    text: str
    start: float
    end: float
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech; the three gates are Whisper's own figures, where it gives them."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None


def parse_arguments(program: str, about: str, argv: Sequence[str] | None = None) -> Arguments:
    """Read the contract's arguments; a wrong one ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        program, description=about, epilog="Further options of openai-whisper are accepted.",
        allow_abbrev=False,
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
    )


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
        part = target.with_name(f".{target.name}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(target)
        except BaseException:  # a full disk, or the signal that ends us
            part.unlink(missing_ok=True)
            raise


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
