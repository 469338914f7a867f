"""E-mail addresses, written or spoken: "john dot smith at example dot com". Over folded text."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from siprec_bridge.redaction.numerals import Token

_WRITTEN = re.compile(r"(?<![\w.%+\-])[\w.%+\-]++ ?@ ?[a-z0-9\-]+(?:\.[a-z0-9\-]+)+")
_DOT = r"(?:\s*\.\s*|\s+(?:dot|punkt|punto|point)\s+)"
_TLD = (
    r"(?:com|org|net|edu|gov|mil|int|info|biz|io|co|me|app|dev|ai|tv|cc|eu|uk|ie|de|at|ch|li|fr|be|lu|"
    r"nl|es|pt|it|mx|ar|cl|pe|us|ca|au|nz|in|br|pl|cz|sk|hu|ro|bg|gr|se|no|dk|fi|ru|ua|tr|za|jp|cn|"
    r"kr|sg|hk|online|shop|store|email|cloud|tech|cat|gmbh|berlin|london|paris)"
)
_AT = re.compile(
    r"(?<!\s)(?:\s*+@\s*|\s++(?:at|arroba|arobase|arobas|klammeraffe|affenschwanz)\s+(?:sign\s+)?)"
    r"(?P<domain>(?:[a-z0-9\-]+\s+){0,3}?[a-z0-9\-]+(?:" + _DOT + r"[a-z0-9\-]+)*?" + _DOT
    + r"(?:co" + _DOT + r")?" + _TLD + r")(?![\w@])"
)  # fmt: skip
_CONNECTORS = frozenset(
    [
        "dot",
        "punkt",
        "punto",
        "point",
        "underscore",
        "unterstrich",
        "dash",
        "hyphen",
        "minus",
        "bindestrich",
        "tiret",
        "guion",
        "plus",
        "bajo",
        ".",
        "_",
        "-",
        "+",
    ]
)
_CUE = re.compile(
    r"e[- ]?mail|\bmail\b|courriel|correo|gmail|reach (?:me|us) at|write to|send (?:it|that) to|"
    r"\b(?:it s|it's|that's|its|ist|es|c'est)\s*$|adresse\b|address\b"
)
_PROVIDERS = re.compile(
    r"(?:g\s?mail|hot\s?mail|outlook|yahoo|i\s?cloud|gmx|web|proton\s?mail|proton|aol|live|msn|"
    r"posteo|t-online|orange|free|wanadoo|laposte|telefonica|fastmail|mailbox)\b"
)
# What stands before "at" where a place on the web is meant, not a person.
_VERBS: Final = frozenset(
    [
        "look",
        "looked",
        "looking",
        "looks",
        "find",
        "found",
        "available",
        "buy",
        "bought",
        "buying",
        "order",
        "ordered",
        "shop",
        "shopping",
        "see",
        "saw",
        "seen",
        "visit",
        "visited",
        "work",
        "works",
        "worked",
        "working",
        "book",
        "booked",
        "read",
        "check",
        "checked",
        "sign",
        "signed",
        "register",
        "registered",
        "us",
        "up",
        "is",
        "was",
        "are",
        "be",
        "it",
        "that",
        "this",
        "there",
        "here",
        "them",
        "one",
        "online",
        "arrived",
        "arrive",
        "shoes",
        "things",
        "pictures",
        "store",
        "prices",
        "price",
        "page",
        "site",
        "website",
        "now",
        "today",
        "bei",
    ]
)
_NO_DOMAIN = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "our",
        "your",
        "my",
        "their",
        "noon",
        "night",
        "home",
        "work",
        "least",
        "last",
    ]
)
# What stands before an address that is a number alone, and is no name in front of it.
_NO_NAME = frozenset(
    [
        "is",
        "it",
        "s",
        "its",
        "mail",
        "email",
        "address",
        "to",
        "and",
        "number",
        "ist",
        "lautet",
        "adresse",
        "an",
        "und",
        "nummer",
        "es",
        "correo",
        "a",
        "y",
        "numero",
        "est",
        "et",
        "le",
    ]
)
_LONGEST = 40  # tokens
_LONGEST_DOMAIN = 8  # tokens, with the sign
_AT_WORDS = frozenset(["@", "at", "arroba", "arobase", "arobas", "klammeraffe", "affenschwanz"])
_SPOKEN = _CONNECTORS - {".", "-", "+", "minus", "plus", "point", "bajo"}  # hardly said otherwise


def addresses(
    folded: str, found: Sequence[Token], spelled: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Places of addresses. `spelled`: places of digits, as words too."""
    for one in _WRITTEN.finditer(folded):
        yield one.start(), one.end()
    for one in _AT.finditer(folded):
        begin = _local_part(folded, found, spelled, one.start())
        if begin is None:
            continue
        local = folded[begin : one.start()]
        plain = local.isalpha()
        if plain and (local in _VERBS or len(local) == 1):
            continue
        if plain and one["domain"].split()[0] in _NO_DOMAIN:
            continue
        if (
            not plain
            or "@" in one[0]
            or _PROVIDERS.match(one["domain"])
            or _CUE.search(folded[max(0, begin - 120) : begin])
        ):
            yield begin, one.end("domain")


def unfinished(
    folded: str, found: Sequence[Token], spelled: Sequence[tuple[int, int]], *, settled: bool
) -> int | None:
    """Where something begins that may become an address with what is said next, or None.

    Of a text that is not `settled`, more is taken for one: it comes back with the next words.
    """
    begins: list[int] = []
    for place in range(max(1, len(found) - _LONGEST_DOMAIN), len(found)):
        token, after = found[place], found[place + 1 :]
        if token.text not in _AT_WORDS or (found[place - 1].text in _VERBS and settled):
            continue
        if not settled or not after or after[-1].text in _CONNECTORS - {"."}:
            end = found[place - 1].end
            begin = _local_part(folded, found, spelled, end)
            begins.append(found[place - 1].start if begin is None else begin)
    if found:
        begin = _local_part(folded, found, spelled, found[-1].end)
        said = [one.text for one in found if begin is not None and one.start >= begin]
        if begin is not None and (len(said) > 1 if not settled else _SPOKEN.intersection(said)):
            begins.append(begin)
    return min(begins, default=None)


def _local_part(
    folded: str, found: Sequence[Token], spelled: Sequence[tuple[int, int]], end: int
) -> int | None:
    """Where the part before the sign begins, or None."""
    last = bisect_right(found, end, key=lambda one: one.end)
    before = found[max(0, last - _LONGEST) : last]
    if not before or folded[before[-1].end : end].strip():
        return None
    begin: int | None = None
    connected = True  # to what has been taken
    previous: Token | None = None
    for place in range(len(before) - 1, -1, -1):
        token = before[place]
        if previous is not None and folded[token.end : previous.start].strip():
            break
        glued = previous is not None and token.end == previous.start
        if token.text in _CONNECTORS:
            if begin is None and not connected:
                break
            if token.text == "." and not glued:
                break  # a sentence's end
            connected = True
        elif token.text.isalnum():
            short = _is_short(token, spelled)
            follows = place > 0 and before[place - 1].text in _CONNECTORS  # dot miller ninety two
            named = token.text not in _NO_NAME and _is_number(previous, spelled)  # anna ninety two
            goes_on = named or ((short or follows) and _is_short(previous, spelled))
            if not (connected or glued or goes_on):
                break
            begin, connected = token.start, False
        else:
            break
        previous = token
    return begin


def _is_short(token: Token | None, spelled: Sequence[tuple[int, int]]) -> bool:
    return token is not None and (len(token.text) == 1 or _is_number(token, spelled))


def _is_number(token: Token | None, spelled: Sequence[tuple[int, int]]) -> bool:
    return token is not None and (token.is_figures or _within(token, spelled))


def _within(token: Token, places: Sequence[tuple[int, int]]) -> bool:
    place = bisect_right(places, token.start, key=lambda one: one[0]) - 1
    return place >= 0 and token.start < places[place][1]
