"""Lines of talk while it goes on, without what a policy takes out of them.

Of a number of which half is said nobody can tell what it will be: digits are shown only where what
follows has shown that they are few. Whatever else they were, the transcript says after the call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from siprec_bridge.redaction.conversation import Range, aligned, cut, words_without
from siprec_bridge.redaction.detect import BREAK, Stream, detect, harmless, mixed_groups, stream
from siprec_bridge.redaction.email import addresses, unfinished
from siprec_bridge.redaction.numerals import ANY, FILLERS, Run, Token, runs, tokens
from siprec_bridge.redaction.policy import Kind, Policy
from siprec_bridge.transcript import Word

_CONTEXT_S = 60.0  # of what was said before; for as long it is known what was asked for
_MOST_LINES = 60
_FEW = 2  # digits that no card, phone or id is given away by
_MOST_IN_TIME = 8  # digits of a date, a time, an amount
_MIXED = 4  # letters and digits that may be a part of an id
_PLAIN = 3  # words behind a number by which a line that still grows has left it
_MOST_BETWEEN = 8  # words between the parts of a number
_NUMBERS: frozenset[Kind] = frozenset({"cards", "phones", "ids", "ibans"})


@dataclass(frozen=True, slots=True)
class LiveText:
    """The words of a line before anybody gets them, in seconds of the session.

    `settled`: they will not grow any more.
    """

    label: str
    text: str
    words: tuple[Word, ...]
    start: float
    end: float
    language: str | None
    settled: bool


class LiveLines:
    """What was said of late in one session, in memory alone, to judge by what is said now."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._settled: list[LiveText] = []

    def clean(self, said: LiveText) -> LiveText | None:
        """What may be shown of a line; None: nothing, by now. Settled ones in order of each label."""
        said = replace(said, text=said.text.replace(BREAK, " "))
        before = [one for one in self._settled if one.end > said.start - _CONTEXT_S]
        if said.settled:
            self._settled = [*before, said][-_MOST_LINES:]
        if not self.policy:
            return said
        own = _stream(said.label, [*(one for one in before if one.label == said.label), said])
        begin = own.pieces[-1].offset
        # The last word of a line that grows may be half of one, or half of the "at" of an address.
        unsure = 2 if "emails" in self.policy.kinds else 1
        end = len(own.text) if said.settled else begin + _without_last(unsure, said.text)
        found = _Found(own, end, tokens(own.folded[:end]))
        ranges = list(self._ranges(found, settled=said.settled))
        if said.settled:
            labels = dict.fromkeys(one.label for one in before if one.label != said.label)
            others = [_stream(x, [one for one in before if one.label == x]) for x in labels]
            spots = detect([own, *others], self.policy)[own.label]
            ranges += [(one.start, one.end, one.kind) for one in spots]
        if "emails" in self.policy.kinds:
            at = _unfinished(own, settled=said.settled)
            if at is not None and said.settled:
                ranges.append((at, end, "email"))
            elif at is not None:
                while at > begin and not own.text[at - 1].isspace():
                    at -= 1
                end = min(end, at)
        return _shown(said, begin, end, ranges)

    def _ranges(self, found: "_Found", *, settled: bool) -> Iterator[Range]:
        folded, end = (
            found.stream.folded[: found.end],
            len(found.stream.folded[: found.end].rstrip()),
        )
        longest, shortest = runs(found.tokens, folded, found.stream.language or ANY, ())
        if "emails" in self.policy.kinds:
            spelled = [(atom.start, atom.end) for run in shortest for atom in run.atoms]
            for start, end in addresses(folded, found.tokens, spelled):
                yield start, end, "email"
        if not self.policy.kinds & _NUMBERS:
            return
        figures = list(harmless(folded))
        plain = 1 if settled else _PLAIN
        for run in longest:
            within = any(a <= run.start and run.end <= b for a, b in figures)
            few = len(run.digits) <= _FEW and not _near_more(run, longest, folded)
            if not (
                found.plain_words_after(run.end) >= plain
                and (few or (within and len(run.digits) <= _MOST_IN_TIME))
            ) and not all(folded[one.start : one.end] in ("o", "oh") for one in run.atoms):
                yield run.start, run.end, "number"
        if self.policy.kinds & {"ids", "ibans"}:
            for group in mixed_groups(found.stream, found.tokens, longest):
                text = "".join(part for part, _, _ in group)
                if (
                    text.isalpha()
                ):  # of a line that grows, spelled letters may be the first of an id
                    mixed = not settled and len(group) == len(text) > 1 and group[-1][2] == end
                else:
                    mixed = not text.isdecimal() and len(text) >= (_MIXED if settled else 2)
                if mixed:
                    yield group[0][1], group[-1][2], "number"


@dataclass(frozen=True, slots=True)
class _Found:
    """A stream as far as it may be shown, and its tokens."""

    stream: Stream
    end: int
    tokens: Sequence[Token]

    def plain_words_after(self, place: int) -> int:
        """Words behind a place that no number goes on with."""
        after = (one for one in self.tokens if one.start >= place)
        return sum(one.text.isalpha() and one.text not in FILLERS for one in after)


def _stream(label: str, lines: Sequence[LiveText]) -> Stream:
    languages = {one.language for one in lines if one.language}
    texts = [(index, one.text, one.start, one.end) for index, one in enumerate(lines)]
    return stream(label, texts, languages.pop() if len(languages) == 1 else None)


def _unfinished(own: Stream, *, settled: bool) -> int | None:
    found = tokens(own.folded)
    _, shortest = runs(found, own.folded, own.language or ANY, ())
    spelled = [(atom.start, atom.end) for run in shortest for atom in run.atoms]
    return unfinished(own.folded, found, spelled, settled=settled)


def _without_last(words: int, text: str) -> int:
    """How much of a text is not its last words."""
    for _ in range(words):
        text = text.rstrip()
        text = text.removesuffix(text.split()[-1]) if text else ""
    return len(text.rstrip())


def _near_more(run: Run, others: Sequence[Run], folded: str) -> bool:
    """Whether the same number may go on here: "4111 1111, let me turn it, 11"."""
    return any(
        len(one.digits) > _FEW
        and one.end <= run.start
        and len(folded[one.end : run.start].split()) <= _MOST_BETWEEN
        for one in others
    )


def _shown(said: LiveText, begin: int, end: int, ranges: Sequence[Range]) -> LiveText | None:
    """The line up to `end`, which like `ranges` is a place in its stream, where it has `begin`."""
    merged: list[Range] = []
    for start, stop, kind in sorted(ranges, key=lambda one: (one[0], -one[1])):
        start, stop = max(0, start - begin), min(stop, end) - begin
        if start >= stop:
            continue
        if merged and start < merged[-1][1]:
            first, last, known = merged[-1]
            merged[-1] = (first, max(last, stop), kind if known == "number" else known)
        else:
            merged.append((start, stop, kind))
    text = said.text[: max(0, end - begin)]
    places = aligned(said.text, said.words)
    words: tuple[Word, ...] = ()
    if places is not None:
        whole = [n for n, (_, last) in enumerate(places) if last <= len(text)]
        words = words_without([said.words[n] for n in whole], merged, [places[n] for n in whole])
    text = cut(text, merged).strip()
    return replace(said, text=text, words=words) if text else None
