"""What an engine hears, and the forms that clients ask for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Word:
    """Seconds from the start of the audio; probability 0..1. `word` has its leading space."""

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech as Whisper cuts it, with its measures of doubt."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that was heard in one piece of audio; `duration` in seconds."""

    language: str
    duration: float
    model: str
    segments: tuple[Segment, ...] = ()
    task: str = "transcribe"

    @property
    def text(self) -> str:
        """The segments' texts, joined as Whisper spaces them."""
        return "".join(one.text for one in self.segments).strip()


def document(transcript: Transcript) -> dict[str, object]:
    """openai-whisper's JSON, with the model's name."""
    return {
        "text": transcript.text,
        "segments": [_segment(number, one) for number, one in enumerate(transcript.segments)],
        "language": transcript.language,
        "model": transcript.model,
    }


def verbose_document(
    transcript: Transcript, *, words: bool, segments: bool = True
) -> dict[str, object]:
    """OpenAI's `verbose_json`; words lie beside the segments there."""
    verbose: dict[str, object] = {
        "task": transcript.task,
        "language": transcript.language,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
    }
    if segments:
        verbose["segments"] = [
            {name: value for name, value in _segment(number, one).items() if name != "words"}
            for number, one in enumerate(transcript.segments)
        ]
    if words:
        verbose["words"] = [
            _word(word) | {"word": word.word.strip()}
            for one in transcript.segments
            for word in one.words
        ]
    return verbose


def render(transcript: Transcript, form: str) -> str:
    """The transcript as json, txt, srt, vtt or tsv, as openai-whisper's CLI writes them."""
    writers: dict[str, Callable[[Transcript], str]] = {
        "json": lambda one: json.dumps(document(one), ensure_ascii=False),
        "txt": lambda one: "".join(f"{each.text.strip()}\n" for each in one.segments),
        "srt": lambda one: _cues(one.segments, ",", numbered=True),
        "vtt": lambda one: "WEBVTT\n\n" + _cues(one.segments, ".", numbered=False),
        "tsv": lambda one: _tsv(one.segments),
    }
    return writers[form](transcript)


FORMATS = ("json", "txt", "srt", "vtt", "tsv")


def _segment(number: int, one: Segment) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": number,
        "start": round(one.start, 3),
        "end": round(one.end, 3),
        "text": one.text,
    }
    for name in ("avg_logprob", "no_speech_prob", "compression_ratio", "temperature"):
        value = getattr(one, name)
        if value is not None:
            fields[name] = value
    if one.words:
        fields["words"] = [_word(word) for word in one.words]
    return fields


def _word(word: Word) -> dict[str, object]:
    return asdict(word) | {
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": round(word.probability, 4),
    }


def _cues(segments: Sequence[Segment], point: str, *, numbered: bool) -> str:
    blocks = []
    for number, one in enumerate(segments, 1):
        head = f"{number}\n" if numbered else ""
        times = f"{_clock(one.start, point)} --> {_clock(one.end, point)}"
        blocks.append(f"{head}{times}\n{one.text.strip()}\n\n")
    return "".join(blocks)


def _tsv(segments: Sequence[Segment]) -> str:
    rows = [
        f"{round(one.start * 1000)}\t{round(one.end * 1000)}\t{one.text.strip()}"
        for one in segments
    ]
    return "\n".join(["start\tend\ttext", *rows]) + "\n"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
