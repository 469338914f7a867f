"""What a server's answer says: a result, or what is wrong."""

import json
import math
import re
import wave
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siprec_wrappers.contract import Segment, Word
from siprec_wrappers.languages import code_of
from siprec_wrappers.service import Failed

_LARGEST = 1e9  # seconds, and any measure: beyond is no number of speech
_MOST_LOOKED_AT = 16 * 1024  # octets of an answer that is no result


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a server heard in a file."""

    segments: tuple[Segment, ...]
    language: str | None
    model: str | None


def read_result(body: bytes, api: str, audio: Path, language: str | None) -> Recognised:
    """A server's answer. Raises Failed for anything that is no result, a page above all."""
    # The type that is declared tells nothing: whisper-asr-webservice calls its JSON text/plain.
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        start = _plain(body[:_MOST_LOOKED_AT].decode("utf-8", "replace"))[:120]
        raise Failed(f"200, but no JSON: {start or 'nothing at all'}") from None
    if not isinstance(value, dict):
        raise Failed("200, but its JSON is no result")
    listed, text = value.get("segments"), value.get("text")
    reason = _reason(value)
    if reason or not (isinstance(listed, list) or isinstance(text, str)):
        raise Failed(f"200, but no result: {reason or 'neither text nor segments'}")
    spoken = value.get("language")
    spoken = code_of(spoken) if isinstance(spoken, str) and spoken else language
    model = value.get("model")
    words = [word for each in _list(value.get("words")) if (word := _word(each)) is not None]
    if isinstance(listed, list):
        segments = [one for each in listed if (one := _segment(each, api)) is not None]
        if words and not any(one.words for one in segments):
            segments = _with_words(segments, words)
    else:
        plain = " ".join(str(text).split())
        end = max(_duration(audio), words[-1].end if words else 0.0)
        segments = [Segment(plain, 0.0, end, tuple(words))] if plain else []
    return Recognised(tuple(segments), spoken, model if isinstance(model, str) and model else None)


def complaint_of(body: bytes, token: str | None) -> str:
    """What the server says about it: on one line, from JSON or from a page."""
    text = body.decode("utf-8", "replace")
    try:
        text = _reason(json.loads(text)) or text
    except (ValueError, RecursionError):
        text = _plain(text)
    text = " ".join(text.split())[:500]
    if token is not None:
        text = text.replace(token, "…").replace(token.partition(" ")[2], "…")
    return f": {text}" if text else ""


def _plain(text: str) -> str:
    """A page's words, on one line."""
    return " ".join(re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text).split())


def _reason(value: object) -> str | None:
    """The text in {"error": …}, {"error": {"message": …}}, {"detail": …}."""
    if isinstance(value, dict):
        for name in ("error", "detail", "message"):
            if value.get(name):
                inner = value[name]
                return _reason(inner) or (inner if isinstance(inner, str) else json.dumps(inner))
    return None


def _segment(value: object, api: str) -> Segment | None:
    if isinstance(value, list) and len(value) >= 5:
        # whisper-asr-webservice over a faster-whisper whose segments are tuples: id, seek, start,
        # end, text, …; the words are the one list of lists.
        words = next((one for one in value[5:] if one and isinstance(one, list)
                      and isinstance(one[0], list)), [])  # fmt: skip
        named = [dict(zip(("start", "end", "word", "probability"), one, strict=False))
                 for one in words if isinstance(one, list)]  # fmt: skip
        value = {"start": value[2], "end": value[3], "text": value[4], "words": named}
    if not isinstance(value, dict):
        return None
    text = " ".join(str(value.get("text") or "").split())
    start = _number(value.get("start")) or 0.0
    if not text:
        return None
    pieces = _list(value.get("words"))
    spoken = _joined(pieces) if api == "cpp" else [_word(one) for one in pieces]
    return Segment(
        text,
        start,
        max(start, _number(value.get("end")) or 0.0),
        tuple(one for one in spoken if one is not None),
        _number(value.get("avg_logprob")),
        _number(value.get("no_speech_prob")),
        _number(value.get("compression_ratio")),
    )


def _word(value: object) -> Word | None:
    if not isinstance(value, dict):
        return None
    text = str(value.get("word") or value.get("text") or "").strip()
    start, end = _number(value.get("start")), _number(value.get("end"))
    if not text or start is None or end is None:
        return None
    probability = _number(value.get("probability", value.get("score")))
    if probability is not None:
        probability = min(1.0, max(0.0, probability))
    return Word(text, start, max(start, end), probability)


def _joined(pieces: Sequence[object]) -> list[Word]:
    """whisper.cpp's "words" are tokens; one that begins with a space begins a word."""
    words: list[Word] = []
    for piece in pieces:
        one = _word(piece)
        if one is None:
            continue
        begins = isinstance(piece, dict) and str(piece.get("word", "")).startswith(" ")
        if begins or not words:
            words.append(one)
            continue
        last = words[-1]
        known = [p for p in (last.probability, one.probability) if p is not None]
        words[-1] = Word(
            last.text + one.text, last.start, max(last.end, one.end), min(known, default=None)
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
        found[place] = segment._replace(words=tuple(words[first:taken]))
    return found


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _duration(audio: Path) -> float:
    try:
        with wave.open(str(audio), "rb") as file:
            return file.getnframes() / file.getframerate()
    except (OSError, EOFError, wave.Error, ZeroDivisionError):
        return 0.0


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < _LARGEST else None
