"""What recognisers write, in all its dialects, into a Transcript. Pure.

openai-whisper's JSON, whisper.cpp's (`transcription[].offsets`, milliseconds), OpenAI's
`verbose_json` (words beside the segments), plain `{"text": …}`; and txt, srt, vtt, tsv.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from siprec_bridge.transcript import Segment, Transcript, Word

FORMATS = ("json", "txt", "srt", "vtt", "tsv")


class MalformedOutput(Exception):
    """An output that no reader understands."""


def read_output(data: bytes, output_format: str, duration: float) -> Transcript:
    """Read a recogniser's output file. `duration` of the audio, in seconds, ends untimed text.

    Raises MalformedOutput, and nothing else, for any bytes.
    """
    text = data.decode("utf-8-sig", "replace")
    match output_format:
        case "json":
            return _read_json(text, duration)
        case "txt":
            return _untimed(text, None, duration)
        case "srt" | "vtt":
            return Transcript(segments=tuple(_read_cues(text)))
        case "tsv":
            return Transcript(segments=tuple(_read_tsv(text)))
        case _:
            raise MalformedOutput(f"no reader for {output_format}")


def _read_json(text: str, duration: float) -> Transcript:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedOutput(f"not JSON: {error}") from error
    if isinstance(value, list):  # bare segments
        value = {"segments": value}
    if not isinstance(value, dict):
        raise MalformedOutput("JSON, but no object")
    result = value.get("result")
    if isinstance(value.get("transcription"), list):
        segments = [_cpp_segment(one) for one in value["transcription"] if isinstance(one, dict)]
        language = result.get("language") if isinstance(result, dict) else value.get("language")
        named = value.get("model")
        model = named.get("type") if isinstance(named, dict) else named
        return Transcript(language=_name(language), segments=_kept(segments), model=_name(model))
    language, model = _name(value.get("language")), _name(value.get("model"))
    listed = value.get("segments")
    if isinstance(listed, list):
        segments = [_segment(one) for one in listed if isinstance(one, dict)]
        words = [word for one in _dicts(value.get("words")) if (word := _word(one)) is not None]
        if words and not any(segment.words for segment in segments):
            segments = _with_words(segments, words)
        return Transcript(language=language, segments=_kept(segments), model=model)
    if isinstance(value.get("text"), str):
        plain = _untimed(value["text"], language, duration)
        return plain.model_copy(update={"model": model})
    raise MalformedOutput("JSON without text, segments or transcription")


def _segment(value: Mapping[str, object]) -> Segment:
    start, end = _span(value.get("start"), value.get("end"))
    words = [word for one in _dicts(value.get("words")) if (word := _word(one)) is not None]
    return Segment(
        text=str(value.get("text") or "").strip(),
        start=start,
        end=end,
        words=tuple(words),
        avg_logprob=_number(value.get("avg_logprob")),
        no_speech_prob=_number(value.get("no_speech_prob")),
        compression_ratio=_number(value.get("compression_ratio")),
    )


def _word(value: Mapping[str, object]) -> Word | None:
    times = value.get("start"), value.get("end")
    text = str(value.get("word") or value.get("text") or "").strip()
    if any(_number(one) is None for one in times) or not text:
        return None
    start, end = _span(*times)
    probability = _probability(value.get("probability", value.get("score")))
    return Word(text=text, start=start, end=end, probability=probability)


def _cpp_segment(value: Mapping[str, object]) -> Segment:
    offsets = value.get("offsets")
    start = end = 0.0
    if isinstance(offsets, dict):
        start, end = _span(offsets.get("from"), offsets.get("to"), per_second=1000)
    return Segment(
        text=str(value.get("text") or "").strip(),
        start=start,
        end=end,
        words=tuple(_cpp_words(_dicts(value.get("tokens")))),
    )


def _cpp_words(tokens: Sequence[Mapping[str, object]]) -> list[Word]:
    """Tokens are pieces of words; one that begins with a space begins a word."""
    words: list[Word] = []
    for token in tokens:
        text, offsets = str(token.get("text") or ""), token.get("offsets")
        if not text.strip() or text.lstrip().startswith("[_") or not isinstance(offsets, dict):
            continue
        start, end = _span(offsets.get("from"), offsets.get("to"), per_second=1000)
        if words and not text.startswith(" "):
            last = words[-1]
            words[-1] = last.model_copy(
                update={"text": last.text + text.strip(), "end": max(last.end, end)}
            )
        else:
            words.append(
                Word(
                    text=text.strip(),
                    start=start,
                    end=end,
                    probability=_probability(token.get("p")),
                )
            )
    return words


def _with_words(segments: Sequence[Segment], words: Sequence[Word]) -> list[Segment]:
    """Each word goes to one segment: the first in time that its middle lies within."""
    # Of hours there are tens of thousands: to look at all for each segment takes minutes.
    words = sorted(words, key=_middle)
    middles, taken, found = [_middle(word) for word in words], 0, list(segments)
    for place in sorted(range(len(found)), key=lambda place: found[place].start):
        segment = found[place]
        first = max(taken, bisect_left(middles, segment.start))
        taken = max(first, bisect_left(middles, segment.end))
        found[place] = segment.model_copy(update={"words": tuple(words[first:taken])})
    return found


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _untimed(text: str, language: str | None, duration: float) -> Transcript:
    plain = " ".join(text.split())
    segments = (Segment(text=plain, start=0.0, end=max(0.0, duration)),) if plain else ()
    return Transcript(language=language, segments=segments)


_CUE = re.compile(
    r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})\s*-->\s*"
    r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
)


def _read_cues(text: str) -> list[Segment]:
    segments: list[Segment] = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip().split("\n")
        for position, line in enumerate(lines[:2]):
            if (found := _CUE.search(line)) is None:
                continue
            start, end = _cue_time(found.groups()[:4]), _cue_time(found.groups()[4:])
            words = " ".join(" ".join(lines[position + 1 :]).split())
            if words:
                segments.append(Segment(text=words, start=start, end=max(start, end)))
            break
    return segments


def _cue_time(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int(fraction.ljust(3, "0")) / 1000


def _read_tsv(text: str) -> list[Segment]:
    """openai-whisper's: start, end (milliseconds), text."""
    segments: list[Segment] = []
    for line in text.splitlines():
        start, _, rest = line.partition("\t")
        end, _, words = rest.partition("\t")
        if None not in (_number(start), _number(end)) and words.strip():
            begun, ended = _span(start, end, per_second=1000)
            segments.append(Segment(text=words.strip(), start=begun, end=ended))
    return segments


def _kept(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    return tuple(segment for segment in segments if segment.text)


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _span(start: object, end: object, *, per_second: int = 1) -> tuple[float, float]:
    """In seconds: none is before the audio, and none ends before it begins."""
    begun = max(0.0, (_number(start) or 0.0) / per_second)
    return begun, max(begun, (_number(end) or 0.0) / per_second)


def _probability(value: object) -> float | None:
    number = _number(value)
    return None if number is None else min(1.0, max(0.0, number))


def _number(value: object) -> float | None:
    """A finite number, also from text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e9 else None  # nor is NaN
