"""Where in one party's words something stands that is to be taken out.

A `Stream` is all that was said on one label, in order; other parties' words only give context:
what was asked for. Numbers are looked for among digits in figures and words alike.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from siprec_bridge.redaction import identity, numerals
from siprec_bridge.redaction.email import addresses
from siprec_bridge.redaction.numerals import Atom, Run
from siprec_bridge.redaction.policy import Policy

BREAK: Final = "\ue000"  # in a stream's text: what follows was said much later
_PAUSE_S = 25.0  # longer ones end a number
_MEMORY_S = 60.0  # for how long it is known what was asked for
_CARD_MEMORY_S = 180.0  # for how long after a card its security code may follow
_ECHO_S = 60.0  # within which a number is read back
_MOST_BETWEEN = 8  # words between the parts of a card number
_MOST_PIECES = 8

_CUES: Final[dict[str, re.Pattern[str]]] = {
    "cvv": re.compile(
        r"\bc\s?v\s?[vcn]\s?2?\b|\bcvv2?\b|security code|verification code|card code|"
        r"(?:three|3|four) digits? (?:\w+ ){0,3}(?:on|at) the back|prufnummer|prufziffer|"
        r"sicherheitscode|kartenprufnummer|codigo de seguridad|codigo de verificacion|"
        r"cryptogramme|code de securite|trois chiffres"
    ),
    "card": re.compile(
        r"\b(?:card|visa|mastercard|master card|amex|american express|maestro|discover|debit|credit|"
        r"pan)\b|karte|kreditkarten?|tarjeta|carte (?:bancaire|bleue|de credit|visa)|numero de carte"
    ),
    "iban": re.compile(r"\biban\b|bank account|kontonummer|cuenta bancaria|compte bancaire"),
    "id": re.compile(
        r"social security|\bssn\b|\bsocial\b|tax id|national insurance|\bnino\b|\bni number|"
        r"steuer|identifikationsnummer|\bidnr\b|\bdni\b|\bnie\b|\bnif\b|numero de identidad|"
        r"securite sociale|\bnir\b|codice fiscale|\bbsn\b|burgerservicenummer|sofinummer|passport"
    ),
    "phone": re.compile(
        r"phone|\bmobile\b|\bcell\b|\bcall (?:me|us|him|her|them|you)?\b|reach (?:me|you|him|her)|"
        r"\bdial\b|\bfax\b|number is best|best number|contact number|callback|call back|\bring me\b|"
        r"telefon|handy|rufnummer|mobil|\banrufen\b|erreichen|telefono|\bmovil\b|celular|llama|"
        r"\bportable\b|joindre|appel|\btext me\b|whatsapp"
    ),
    "other": re.compile(
        r"\b(?:order|invoice|ticket|booking|reference|ref|tracking|confirmation|case|serial|article|"
        r"part|model|item|sku|policy|contract|meter|parcel|shipment|batch|version|page|room|flight|"
        r"train|bus|customer|member(?:ship)?|account|claim|job|docket|barcode|isbn)\b|"
        r"bestell|rechnung|auftrag|vorgang|kundennummer|artikel|sendung|seriennummer|vertrag|"
        r"aktenzeichen|buchung|zahler|pedido|factura|referencia|reserva|expediente|cliente|seguimiento|"
        r"commande|facture|dossier|colis|suivi|reservation|client\b|contrat"
    ),
}
_NEAR = 90  # characters in which a cue of some other number speaks against a telephone's

_CURRENCY = (
    r"(?:dollars?|bucks|euros?|pounds?|sterling|cents?|pence|pesos?|francs?|franken|yen|usd|eur|gbp|"
    r"chf|percent|per cent|prozent|por ciento|pour cent|%|€|\$|£|¥|kg|km|kilo\w*|miles|meters|metres|"
    r"meter|metros|metres|kwh|units|pieces|stuck|million\w*|thousand|billion|tausend|mil)"
)
_OPAQUE: Final = (
    re.compile(r"(?<![\d.,/-])\d{4}-\d{2}-\d{2}(?!-?\d)"),
    re.compile(r"(?<![\d.,/-])(\d{1,2})([./-])(\d{1,2})\2(?:\d{4}|\d{2})(?![./-]?\d)"),
    re.compile(r"(?<![\d:])\d{1,2}[:h]\d{2}(?::\d{2})?(?![:\d])"),
    re.compile(r"[$€£¥]\s?\d[\d.,]*"),
    # From its first sign on, and without a way back: nothing is said of how long figures are.
    re.compile(r"(?<![\d.,])[.,]*+\d[\d.,]*+(?: \d{3})*+\s?" + _CURRENCY + r"(?!\w)"),
    re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"),  # an IP address
    re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3}){1,3}(?:\.\d+)?(?![\d,])"),  # 12,345,678
)


@dataclass(frozen=True, slots=True)
class Piece:
    """An utterance in a stream: its text's place, its times in seconds, its number among all."""

    index: int
    offset: int
    length: int
    start: float
    end: float


@dataclass(frozen=True)
class Stream:
    """All words of one label as one text."""

    label: str
    text: str
    pieces: tuple[Piece, ...]
    language: str | None

    @cached_property
    def folded(self) -> str:
        return numerals.fold(self.text)

    @cached_property
    def _offsets(self) -> list[int]:
        return [one.offset for one in self.pieces]

    def piece_at(self, place: int) -> Piece:
        """The utterance that a character is in."""
        return self.pieces[max(0, bisect.bisect_right(self._offsets, place) - 1)]

    def time_of(self, place: int) -> float:
        """About when the character at a place was said."""
        piece = self.piece_at(place)
        share = min(1.0, max(0.0, (place - piece.offset) / max(1, piece.length)))
        return piece.start + share * (piece.end - piece.start)


@dataclass(frozen=True, slots=True)
class Spot:
    """Something to take out of a stream: characters, and what it is called in its place."""

    kind: str  # card, cvv, email, phone, id or iban
    start: int
    end: int
    digits: str = ""


def stream(
    label: str, texts: Sequence[tuple[int, str, float, float]], language: str | None
) -> Stream:
    """Join texts: number among all, text, start and end in seconds; in order of time."""
    parts: list[str] = []
    pieces: list[Piece] = []
    offset = 0
    last: float | None = None
    for index, text, start, end in texts:
        if last is not None:
            between = "\n" if start - last <= _PAUSE_S else f"\n{BREAK}\n"
            parts.append(between)
            offset += len(between)
        pieces.append(Piece(index, offset, len(text), start, end))
        parts.append(text)
        offset += len(text)
        last = max(end, last or end)
    return Stream(label, "".join(parts), tuple(pieces), language)


def detect(streams: Sequence[Stream], policy: Policy) -> dict[str, list[Spot]]:
    """What is to be taken out of each stream, by label; disjoint, in order."""
    search = _Search(streams, policy)
    return search.run()


class _Search:
    def __init__(self, streams: Sequence[Stream], policy: Policy) -> None:
        self._streams = streams
        self._policy = policy
        self._spots: dict[str, list[Spot]] = {one.label: [] for one in streams}
        self._runs: dict[str, tuple[list[Run], list[Run]]] = {}
        # What was said by whomever, in order of time: contexts of numbers.
        self._said = sorted(
            (
                (piece.start, piece.end, one.folded[piece.offset : piece.offset + piece.length])
                for one in streams
                for piece in one.pieces
            ),
            key=lambda said: said[0],
        )
        self._begins = [one[0] for one in self._said]

    def run(self) -> dict[str, list[Spot]]:
        kinds = self._policy.kinds
        for one in self._streams:
            found = numerals.tokens(one.folded)
            opaque = list(harmless(one.folded))
            self._runs[one.label] = longest, shortest = numerals.runs(
                found, one.folded, one.language, opaque
            )
            if "emails" in kinds:
                spelled = [(atom.start, atom.end) for run in shortest for atom in run.atoms]
                for start, end in addresses(one.folded, found, spelled):
                    self._add(one, Spot("email", start, end))
            if "cards" in kinds:
                self._cards(one)
            if {"ids", "ibans"} & kinds:
                self._mixed(one, found, longest)
            for run in longest:
                self._number(one, run)
            if "cards" in kinds:
                self._cards_read_otherwise(one)
        if "cards" in kinds:
            for one in self._streams:
                self._security_codes(one)
        for one in self._streams:
            self._read_back(one)
        return {label: _disjoint(spots) for label, spots in self._spots.items()}

    def _add(self, one: Stream, spot: Spot) -> None:
        self._spots[one.label].append(spot)

    def _taken(self, one: Stream, start: int, end: int) -> bool:
        return any(spot.start < end and spot.end > start for spot in self._spots[one.label])

    def _cards(self, one: Stream) -> None:
        longest, _ = self._runs[one.label]
        for run in longest:
            size = len(run.digits)
            if size < 12 or self._taken(one, run.start, run.end):
                continue
            asked = self._asked(one, run.start)
            if (
                "ids" in self._policy.kinds
                and identity.certain_id(run.digits)
                and not identity.is_issued_card(run.digits)
            ):
                continue  # both checks fit: the one of two digits is rarer
            if (
                (identity.is_card(run.digits) and run.digits[0] != "0" and asked != "other")
                # One digit was misheard, or missed.
                or (size <= 19 and asked in ("card", "cvv"))
            ):
                self._add(one, Spot("card", run.start, run.end, run.digits))
            else:
                self._card_within(one, run)
        self._interrupted_cards(one, longest)

    def _cards_read_otherwise(self, one: Stream) -> None:
        """Whole runs alone: of many groups, some always happen to fit."""
        for run in self._runs[one.label][1]:
            if identity.is_issued_card(run.digits) and not self._taken(one, run.start, run.end):
                self._add(one, Spot("card", run.start, run.end, run.digits))

    def _card_within(self, one: Stream, run: Run) -> None:
        """A card number and what follows it: its date or its code, most likely."""
        window = next(
            ((first, last) for digits, first, last in _windows(run, 13, 19)
             if identity.is_issued_card(digits)), None
        )  # fmt: skip
        if window is None:
            return
        after = run.atoms[window[1] + 1 :]
        code = "".join(atom.digits for atom in after)
        if (
            after
            and len(code) in (3, 4)
            and "\n" in one.text[run.atoms[window[1]].end : after[0].start]
        ):
            # Said in another breath.
            self._add(one, Spot("card", run.start, run.atoms[window[1]].end, run.digits))
            self._add(one, Spot("cvv", after[0].start, run.end, code))
        else:
            self._add(one, Spot("card", run.start, run.end, run.digits))

    def _interrupted_cards(self, one: Stream, runs: Sequence[Run]) -> None:
        """Card numbers with words in between: "4111 1111, let me turn it, 1111 1111"."""
        for first in range(len(runs)):
            if (
                len(runs[first].digits) < 3
                or self._taken(one, runs[first].start, runs[first].end)
                or self._asked(one, runs[first].start) == "other"
            ):
                continue
            pieces = [runs[first]]
            for run in runs[first + 1 : first + _MOST_PIECES]:
                between = one.folded[pieces[-1].end : run.start]
                if BREAK in between or len(between.split()) > _MOST_BETWEEN:
                    break
                if len(run.digits) < 3:
                    break
                pieces.append(run)
                digits = "".join(piece.digits for piece in pieces)
                if len(digits) > 19:
                    break
                if len(digits) in (15, 16) and identity.is_issued_card(digits):
                    for piece in pieces:
                        self._add(one, Spot("card", piece.start, piece.end, digits))
                    break

    def _number(self, one: Stream, run: Run) -> None:
        """An id of digits alone, or a telephone number."""
        size = len(run.digits)
        if size < 7 or self._taken(one, run.start, run.end):
            return
        kinds = self._policy.kinds
        written = one.folded[run.start : run.end]
        asked = self._asked(one, run.start)
        if "ids" in kinds and (
            (asked == "id" and 8 <= size <= 15)
            or (size == 15 and identity.certain_id(run.digits))
            or (
                re.fullmatch(r"\d{3}-\d{2}-\d{4}", written)
                and asked != "other"
                and identity.is_social_security(run.digits)
            )
            or (
                asked not in ("phone", "other")
                and (one.language or "").startswith(("de", "ger"))
                and identity.is_german_id(run.digits)
            )
        ):
            self._add(one, Spot("id", run.start, run.end, run.digits))
            return
        if "phones" in kinds:
            plus = re.search(r"(?:\+|\bplus)\s*$", one.folded[max(0, run.start - 8) : run.start])
            start = run.start - len(plus[0]) if plus is not None else run.start
            regions = self._policy.regions
            if (
                (asked == "phone" and size <= 24)
                or (
                    identity.is_phone(run.digits, international=plus is not None, regions=regions)
                    and (asked != "other" or plus is not None)
                )
                or (
                    (one.language or "").startswith(("es", "spa"))
                    and asked != "other"
                    and identity.is_local_phone(run.digits, regions)
                )
            ):
                self._add(one, Spot("phone", start, run.end, run.digits))

    def _mixed(self, one: Stream, found: Sequence[numerals.Token], runs: Sequence[Run]) -> None:
        """Ids and account numbers of letters and digits, also spelled."""
        for group in mixed_groups(one, found, runs):
            for first, last in _mixed_windows(group):
                some = text_of(group, first, last)
                start, end = group[first][1], group[last][2]
                # Of digits alone, a part of a run happens to fit too often.
                if some.isdecimal() or self._taken(one, start, end):
                    continue
                if "ibans" in self._policy.kinds and len(some) >= 15 and identity.is_iban(some):
                    self._add(one, Spot("iban", start, end, some))
                elif "ids" in self._policy.kinds and identity.certain_id(some):
                    self._add(one, Spot("id", start, end, some))

    def _security_codes(self, one: Stream) -> None:
        cards = [
            self._by_label(label).time_of(spot.end)
            for label, spots in self._spots.items()
            for spot in spots
            if spot.kind == "card"
        ]
        longest, _ = self._runs[one.label]
        for run in longest:
            if len(run.digits) not in (3, 4) or self._taken(one, run.start, run.end):
                continue
            at = one.time_of(run.start)
            cue = self._cue(one, run.start)
            if cue is None or cue[0] != "cvv":
                continue
            follows = any(-5 <= at - card <= _CARD_MEMORY_S for card in cards)
            if follows or re.search(
                r"c\s?v\s?[vc]|card|karte|tarjeta|carte|pruf|crypto|digits?|chiffres", cue[1]
            ):
                self._add(one, Spot("cvv", run.start, run.end, run.digits))

    def _read_back(self, one: Stream) -> None:
        """Parts of a number that is taken out, said again by whomever, or said before in parts."""
        known = [
            (spot.kind, re.sub(r"\D", "", spot.digits), self._by_label(label).time_of(spot.start))
            for label, spots in self._spots.items()
            for spot in spots
            if spot.digits
        ]
        if not known:
            return
        longest, shortest = self._runs[one.label]
        for run in [*longest, *shortest]:
            if len(run.digits) < 3 or self._taken(one, run.start, run.end):
                continue
            at = one.time_of(run.start)
            for kind, digits, when in known:
                if abs(at - when) <= _ECHO_S and run.digits in digits:
                    self._add(one, Spot(kind, run.start, run.end, ""))
                    break

    def _by_label(self, label: str) -> Stream:
        return next(one for one in self._streams if one.label == label)

    def _asked(self, one: Stream, place: int) -> str | None:
        """What kind of number the talk is about at a place, by the last word that tells."""
        cue = self._cue(one, place)
        return cue[0] if cue is not None else None

    def _cue(self, one: Stream, place: int) -> tuple[str, str] | None:
        """The last word before a place that names a kind of number, and that kind."""
        piece = one.piece_at(place)
        own = one.folded[piece.offset : place]
        at = one.time_of(place)
        first = bisect.bisect_left(self._begins, at - _MEMORY_S)
        last = bisect.bisect_left(self._begins, piece.start)
        context = "\n".join([*(text for _, _, text in self._said[first:last][-12:]), own])
        best: tuple[int, str, str] | None = None
        for kind, pattern in _CUES.items():
            for match in pattern.finditer(context):
                if kind == "other" and len(context) - match.end() > _NEAR:
                    continue
                if best is None or match.end() > best[0]:
                    best = (match.end(), kind, match[0])
        return (best[1], best[2]) if best is not None else None


def harmless(folded: str) -> Iterator[tuple[int, int]]:
    """Dates, times, amounts: figures that are no part of a number that is looked for."""
    for pattern in _OPAQUE:
        for one in pattern.finditer(folded):
            digits = re.sub(r"\D", "", one[0])
            if len(digits) >= 13:
                continue  # nobody has so much, or counts so far
            if pattern is _OPAQUE[1] and not _is_date(int(one[1]), int(one[3])):
                continue
            yield one.span()


def _is_date(first: int, second: int) -> bool:
    return 0 < min(first, second) <= 12 and 0 < max(first, second) <= 31


def _windows(run: Run, least: int, most: int) -> Iterator[tuple[str, int, int]]:
    """Digits of groups that follow one another, of these lengths; first and last of the groups."""
    for first in range(len(run.atoms)):
        digits = ""
        for last in range(first, len(run.atoms)):
            digits += run.atoms[last].digits
            if len(digits) > most:
                break
            if len(digits) >= least:
                yield digits, first, last


Group = list[tuple[str, int, int]]


def mixed_groups(
    one: Stream, found: Sequence[numerals.Token], runs: Sequence[Run]
) -> Iterator[Group]:
    """Stretches of digits and of single letters or glued ones, at most of spaces and signs apart."""
    atoms: dict[int, Atom] = {atom.start: atom for run in runs for atom in run.atoms}
    group: Group = []
    skip_to = 0
    for token in found:
        if token.start < skip_to:
            continue
        if token.text in "-./,":
            continue
        part: tuple[str, int, int] | None = None
        if token.start in atoms and (token.is_figures or len(token.text) > 1):
            atom = atoms[token.start]
            part = (atom.digits, atom.start, atom.end)
            skip_to = atom.end
        elif token.text.isascii() and token.text.isalpha():
            original = one.text[token.start : token.end]
            glued = one.text[token.end : token.end + 1].isdecimal() or (
                token.start > 0 and one.text[token.start - 1].isdecimal()
            )
            if len(token.text) == 1 or glued or (original.isupper() and len(original) <= 6):
                part = (token.text.upper(), token.start, token.end)
        elif token.text in numerals.FILLERS:
            continue
        if part is None:
            if group:
                yield group
            group = []
            continue
        group.append(part)
    if group:
        yield group


def _mixed_windows(group: Group) -> Iterator[tuple[int, int]]:
    """First and last part of what may be an id: longer ones first."""
    sizes = [len(part) for part, _, _ in group]
    for first in range(len(group)):
        total = 0
        ends: list[int] = []
        for last in range(first, len(group)):
            total += sizes[last]
            if total > 34:
                break
            if total >= 9:
                ends.append(last)
        for last in reversed(ends):
            yield first, last


def text_of(group: Group, first: int, last: int) -> str:
    """The letters and digits of these parts."""
    return "".join(part for part, _, _ in group[first : last + 1])


def _disjoint(spots: Sequence[Spot]) -> list[Spot]:
    """In order; what overlaps becomes one of the first one's kind."""
    joined: list[Spot] = []
    for spot in sorted(spots, key=lambda one: (one.start, -one.end)):
        if joined and spot.start < joined[-1].end:
            last = joined[-1]
            joined[-1] = Spot(last.kind, last.start, max(last.end, spot.end), last.digits)
        else:
            joined.append(spot)
    return joined
