"""From text to words that both databases index alike, and from what a person typed to a query.

A word is a run of letters and digits without case and accents; of scripts that put no spaces
between words, each character is one. So no index ever sees a character that means something to it.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}][\u0300-\u036f]*)+")
_CHUNK = re.compile(r'"([^"]*)"?|([^\s"]+)')
_NUMBER = re.compile(r"[+\d\s().\-/]*\d[+\d\s().\-/]*")
_SIP_USER = re.compile(r"(?:sips?|tel):([^@;]*)", re.IGNORECASE)
_LONGEST_WORD = 100
_MOST_TERMS = 32
_PART = 8000  # words; PostgreSQL forgets where a word is beyond the 16,383rd

# Between utterances, and between names: no phrase shall reach across. Nobody says that.
_BREAK = "0x0break0x0"
_REVERSED = "0x0tel"


@dataclass(frozen=True, slots=True)
class Term:
    """Words that must follow one another; `prefix`: the last one may go on."""

    words: tuple[str, ...]
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one conversation as it is indexed: what was said, and everyone's names."""

    words: tuple[str, ...]
    who: tuple[str, ...]


def places(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word of a text, folded, and where it is: first character, and the one after the last."""
    for found in _WORD.finditer(text):
        word = _folded(found[0])
        if word:
            yield word, found.start(), found.end()


def terms_of(text: str) -> tuple[Term, ...]:
    """What to look for: each word, "a phrase", or a begin*; any text gives some terms or none."""
    terms = []
    for quoted, plain in _CHUNK.findall(text):
        words = tuple(word for word, _, _ in places(quoted or plain))
        if words:
            terms.append(Term(words, prefix=plain.endswith("*")))
    return tuple(terms[:_MOST_TERMS])


def people_of(text: str) -> tuple[Term, ...]:
    """Whom to look for: beginnings of a name or address, or the last digits of a number."""
    digits = _digits(text) if _NUMBER.fullmatch(text.strip()) else ""
    if len(digits) >= 3:
        return (Term((_REVERSED + digits[::-1],), prefix=True),)
    return tuple(Term(one.words, prefix=True) for one in terms_of(text))


def marks(text: str, terms: Sequence[Term]) -> dict[Term, list[tuple[int, int]]]:
    """Where each term that occurs in a text does: first character, and the one after the last."""
    if text.isascii():
        # Folding keeps these letters: what is not in the text is not among its words.
        low = text.lower()
        terms = [one for one in terms if all(word in low for word in one.words)]
        if not terms:
            return {}
    there = list(places(text))
    found: dict[Term, list[tuple[int, int]]] = {}
    for term in terms:
        for first in range(len(there) - len(term.words) + 1):
            stretch = there[first : first + len(term.words)]
            if _fits([word for word, _, _ in stretch], term):
                found.setdefault(term, []).append((stretch[0][1], stretch[-1][2]))
    return found


def parts_of(document: str) -> list[Part]:
    """What to index of a transcript's document; at least one part, for the names in it."""
    try:
        whole = json.loads(document)
    except ValueError:
        whole = None
    utterances = _dicts(whole, "utterances")
    people = _dicts(whole, "participants") + [
        one["participant"] for one in utterances if isinstance(one.get("participant"), dict)
    ]
    who = tuple(dict.fromkeys(_names(people)))
    flat = tuple(word for name in who for word in (*name, _BREAK))
    parts: list[Part] = []
    words: list[str] = []
    for one in utterances:
        said = [word for word, _, _ in places(str(one.get("text", "")))]
        if words and len(words) + len(said) > _PART:
            parts.append(Part(tuple(words), flat))
            words = []
        words += [*said, _BREAK]
        while len(words) > 2 * _PART:
            parts.append(Part(tuple(words[:_PART]), flat))
            words = words[_PART:]
    return [*parts, Part(tuple(words), flat)]


def _dicts(value: Any, name: str) -> list[dict[str, Any]]:
    found = value.get(name) if isinstance(value, dict) else None
    return [one for one in found or () if isinstance(one, dict)]


def _names(people: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for one in people:
        for text in (one.get("name"), one.get("aor"), one.get("id")):
            if not isinstance(text, str) or not text:
                continue
            yield tuple(word for word, _, _ in places(text))
            user = _SIP_USER.match(text)
            number = user[1] if user is not None else text
            if _NUMBER.fullmatch(number) and len(digits := _digits(number)) >= 3:
                yield (_REVERSED + digits[::-1],)


def _digits(text: str) -> str:
    """A number's digits without what national and international forms put before them."""
    return "".join(one for one in text if one in "0123456789").lstrip("0")[-40:]


def _folded(word: str) -> str:
    if word.isascii():
        return word.lower()[:_LONGEST_WORD]
    letters = unicodedata.normalize("NFKD", word).casefold()
    # Kana and the like lose their marks, too: the same on both sides.
    return "".join(one for one in letters if one.isalnum())[:_LONGEST_WORD]


def _fits(words: Sequence[str], term: Term) -> bool:
    *first, last = term.words
    if list(words[:-1]) != first:
        return False
    return words[-1].startswith(last) if term.prefix else words[-1] == last
