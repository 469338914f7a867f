"""Numbers as people say them, digit by digit or in groups: "four one", "double seven", "einundvierzig".

English, German, Spanish and French, each as its own language or all of them where none is known.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_TOKEN = re.compile(r"[0-9]+|[^\W\d_]+|[^\w\s]|_")

# Between the groups of a number; the hearer's word is another stream's, the speaker's own is here.
FILLERS: Final = frozenset(
    [
        "uh",
        "um",
        "er",
        "erm",
        "ah",
        "eh",
        "hm",
        "hmm",
        "mm",
        "mhm",
        "mmhm",
        "huh",
        "okay",
        "ok",
        "yes",
        "yeah",
        "yep",
        "right",
        "so",
        "and",
        "then",
        "next",
        "dash",
        "hyphen",
        "minus",
        "space",
        "comma",
        "well",
        "now",
        "slash",
        "ah",
        "ahm",
        "ja",
        "genau",
        "also",
        "und",
        "dann",
        "strich",
        "bindestrich",
        "pause",
        "leerzeichen",
        "komma",
        "este",
        "si",
        "vale",
        "y",
        "luego",
        "guion",
        "espacio",
        "coma",
        "euh",
        "oui",
        "alors",
        "et",
        "puis",
        "tiret",
        "espace",
        "virgule",
    ]
)
_GLUE = frozenset(",.-–—/()…?!;·'’\"‑")  # noqa: RUF001  what recognisers put between groups
_MOST_FILLERS = 4

_LANGUAGES = {
    "english": "en",
    "german": "de",
    "deutsch": "de",
    "spanish": "es",
    "castilian": "es",
    "french": "fr",
}
ANY: Final = "any"  # a language of all words, also of those that are another's
_AMBIGUOUS = frozenset({("once",), ("un",), ("cent",), ("une",)})  # words of another language, too


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a number in figures or a sign: folded, and where it stands."""

    text: str
    start: int
    end: int

    @property
    def is_figures(self) -> bool:
        return self.text.isdecimal()


@dataclass(frozen=True, slots=True)
class Atom:
    """The smallest group of digits that was said or written as one. Places are characters."""

    digits: str
    start: int
    end: int
    spoken: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Groups of digits with nothing between them that could end a number."""

    atoms: tuple[Atom, ...]

    @property
    def digits(self) -> str:
        return "".join(one.digits for one in self.atoms)

    @property
    def start(self) -> int:
        return self.atoms[0].start

    @property
    def end(self) -> int:
        return self.atoms[-1].end


def fold(text: str) -> str:
    """Lower case without accents, any script's digits as ours; each character keeps its place."""
    if text.isascii():
        return text.lower()
    return "".join(map(_folded, text))


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKD", character.lower())[:1] or character
    return plain if len(plain) == 1 else character


def tokens(folded: str) -> list[Token]:
    """The tokens of a folded text."""
    return [Token(one[0], one.start(), one.end()) for one in _TOKEN.finditer(folded)]


def runs(
    found: Sequence[Token], folded: str, language: str | None, opaque: Sequence[tuple[int, int]]
) -> tuple[list[Run], list[Run]]:
    """All runs of digits, read in two ways: "forty one" as 41, and as 40 1. `opaque`: no digits."""
    phrases = _phrases(language)
    usable = [one for one in found if not any(a <= one.start < b for a, b in opaque)]
    return (
        list(_runs(list(_atoms(usable, phrases, longest=True)), found, folded, opaque)),
        list(_runs(list(_atoms(usable, phrases, longest=False)), found, folded, opaque)),
    )


def _atoms(found: Sequence[Token], phrases: "_Phrases", *, longest: bool) -> Iterator[Atom]:
    at = 0
    words, most = phrases.words, phrases.most
    while at < len(found):
        token = found[at]
        if token.is_figures:
            yield Atom(token.text, token.start, token.end, spoken=False)
            at += 1
            continue
        if token.text not in phrases.firsts:
            at += 1
            continue
        taken = 0
        digits = ""
        phrase: list[str] = []
        last = at
        for ahead in range(at, min(len(found), at + 2 * most)):
            text = found[ahead].text
            if text == "-" and phrase:
                continue
            if not text.isalpha() or len(phrase) >= most:
                break
            phrase.append(text)
            if (value := words.get(tuple(phrase))) is not None:
                taken, digits, last = ahead + 1 - at, value, ahead
                if not longest:
                    break
        if taken:
            yield Atom(digits, token.start, found[last].end, spoken=True)
            at += taken
        else:
            at += 1


def _runs(
    atoms: Sequence[Atom],
    found: Sequence[Token],
    folded: str,
    opaque: Sequence[tuple[int, int]],
) -> Iterator[Run]:
    run: list[Atom] = []
    for atom in atoms:
        if run and not _goes_on(folded[run[-1].end : atom.start], run[-1].end, atom.start, opaque):
            yield Run(tuple(run))
            run = []
        run.append(atom)
    if run:
        yield Run(tuple(run))


def _goes_on(between: str, start: int, end: int, opaque: Sequence[tuple[int, int]]) -> bool:
    if any(a < end and b > start for a, b in opaque):
        return False
    if not between or between.isspace():
        return True
    fillers = 0
    for token in _TOKEN.finditer(between):
        if token[0] in _GLUE:
            continue
        if token[0] not in FILLERS or fillers == _MOST_FILLERS:
            return False
        fillers += 1
    return True


@dataclass(frozen=True, slots=True)
class _Phrases:
    """What digits are called. `firsts`: words that a phrase begins with; `most`: words of the longest."""

    words: dict[tuple[str, ...], str]
    firsts: frozenset[str]
    most: int


@lru_cache(maxsize=64)
def _phrases(language: str | None) -> _Phrases:
    words = _words(language)
    return _Phrases(words, frozenset(key[0] for key in words), max(map(len, words)))


def _words(language: str | None) -> dict[tuple[str, ...], str]:
    code = (language or "").lower()
    code = _LANGUAGES.get(code, code.partition("-")[0].partition("_")[0])
    makers = {"en": _english, "de": _german, "es": _spanish, "fr": _french}
    if code in makers:
        return makers[code]()
    merged: dict[tuple[str, ...], str] = {}
    for make in reversed(makers.values()):
        merged |= {
            key: value for key, value in make().items() if code == ANY or key not in _AMBIGUOUS
        }
    return merged


def _english() -> dict[tuple[str, ...], str]:
    units = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    teens = [
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    below: dict[tuple[str, ...], str] = {
        (word,): str(number) for number, word in enumerate(units + teens)
    }
    below |= {(word,): str(20 + 10 * number) for number, word in enumerate(tens)}
    below |= {
        (ten, unit): str(20 + 10 * number + one)
        for number, ten in enumerate(tens)
        for one, unit in enumerate(units)
        if one
    }
    words = dict(below)
    for one, unit in enumerate(units[1:], 1):
        words[(unit, "hundred")] = f"{one}00"
        for key, value in below.items():
            if value != "0":
                words[(unit, "hundred", *key)] = str(100 * one + int(value))
                words[(unit, "hundred", "and", *key)] = str(100 * one + int(value))
    zeros = ("oh", "o", "nought", "naught", "nil")
    words |= {(word,): "0" for word in zeros}
    for word, digit in [
        *((unit, str(one)) for one, unit in enumerate(units)),
        *((z, "0") for z in zeros),
    ]:
        words[("double", word)] = 2 * digit
        words[("triple", word)] = 3 * digit
        words[("treble", word)] = 3 * digit
    return words


def _german() -> dict[tuple[str, ...], str]:
    units = ["null", "eins", "zwei", "drei", "vier", "funf", "sechs", "sieben", "acht", "neun"]
    stems = ["null", "ein", "zwei", "drei", "vier", "funf", "sechs", "sieben", "acht", "neun"]
    teens = [
        "zehn",
        "elf",
        "zwolf",
        "dreizehn",
        "vierzehn",
        "funfzehn",
        "sechzehn",
        "siebzehn",
        "achtzehn",
        "neunzehn",
    ]
    tens = ["zwanzig", "dreissig", "vierzig", "funfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
    below: dict[tuple[str, ...], str] = {
        (word,): str(number) for number, word in enumerate(units + teens)
    }
    for number, ten in enumerate(tens):
        below[(ten,)] = str(20 + 10 * number)
        for one, stem in enumerate(stems[1:], 1):
            value = str(20 + 10 * number + one)
            below[(f"{stem}und{ten}",)] = below[(stem, "und", ten)] = value
    words = dict(below)
    for one, stem in enumerate(stems[1:], 1):
        words[(f"{stem}hundert",)] = f"{one}00"
        for key, value in below.items():
            if len(key) == 1 and value != "0":
                words[(f"{stem}hundert{key[0]}",)] = str(100 * one + int(value))
    words |= {("zwo",): "2", ("o",): "0", ("ein",): "1"}
    for one, unit in enumerate(units):
        words[("doppel", unit)] = words[(f"doppel{unit}",)] = 2 * str(one)
        words[("zweimal", unit)] = words[("zweimal", "die", unit)] = 2 * str(one)
        words[("dreimal", unit)] = words[("dreimal", "die", unit)] = 3 * str(one)
    # Folding leaves the sharp s; some write umlauts as two letters.
    for key, value in list(words.items()):
        for old, new in (("dreissig", "dreißig"), ("funf", "fuenf"), ("zwolf", "zwoelf")):
            if any(old in word for word in key):
                words[tuple(word.replace(old, new) for word in key)] = value
    return words


def _spanish() -> dict[tuple[str, ...], str]:
    units = ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"]
    rest = [
        "diez",
        "once",
        "doce",
        "trece",
        "catorce",
        "quince",
        "dieciseis",
        "diecisiete",
        "dieciocho",
        "diecinueve",
        "veinte",
        "veintiuno",
        "veintidos",
        "veintitres",
        "veinticuatro",
        "veinticinco",
        "veintiseis",
        "veintisiete",
        "veintiocho",
        "veintinueve",
    ]
    tens = ["treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"]
    below: dict[tuple[str, ...], str] = {
        (word,): str(number) for number, word in enumerate(units + rest)
    }
    for number, ten in enumerate(tens):
        below[(ten,)] = str(30 + 10 * number)
        for one, unit in enumerate(units[1:], 1):
            below[(ten, "y", unit)] = str(30 + 10 * number + one)
    words = dict(below)
    hundreds = [
        "ciento",
        "doscientos",
        "trescientos",
        "cuatrocientos",
        "quinientos",
        "seiscientos",
        "setecientos",
        "ochocientos",
        "novecientos",
    ]
    words[("cien",)] = "100"
    for number, hundred in enumerate(hundreds, 1):
        if number > 1:
            words[(hundred,)] = f"{number}00"
        for key, value in below.items():
            if value != "0":
                words[(hundred, *key)] = str(100 * number + int(value))
    for one, unit in enumerate(units):
        words[("doble", unit)] = 2 * str(one)
        words[("triple", unit)] = 3 * str(one)
    return words


def _french() -> dict[tuple[str, ...], str]:
    units = ["zero", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
    teens = ["dix", "onze", "douze", "treize", "quatorze", "quinze", "seize"]
    below: dict[tuple[str, ...], str] = {
        (word,): str(number) for number, word in enumerate(units + teens)
    }
    below |= {("dix", unit): str(10 + one) for one, unit in enumerate(units) if one > 6}
    under_twenty = {value: key for key, value in below.items()}
    tens = {
        "vingt": 20, "trente": 30, "quarante": 40, "cinquante": 50, "soixante": 60,
        "septante": 70, "huitante": 80, "octante": 80, "nonante": 90,
    }  # fmt: skip
    for ten, number in tens.items():
        below[(ten,)] = str(number)
        for one in range(1, 20 if ten == "soixante" else 10):
            key = under_twenty[str(one)]
            below[(ten, *key)] = below[(ten, "et", *key)] = str(number + one)
    for score in ("vingt", "vingts"):
        below[("quatre", score)] = "80"
        for one in range(1, 20):
            below[("quatre", score, *under_twenty[str(one)])] = str(80 + one)
    words = dict(below)
    for one, unit in enumerate(units):
        hundred = ("cent",) if one == 1 else (unit, "cent")
        if one:
            words[hundred] = f"{one}00"
            if one > 1:
                words[(unit, "cents")] = f"{one}00"
            for key, value in below.items():
                if value != "0":
                    words[(*hundred, *key)] = str(100 * one + int(value))
        words[("double", unit)] = 2 * str(one)
        words[("triple", unit)] = 3 * str(one)
    return words
