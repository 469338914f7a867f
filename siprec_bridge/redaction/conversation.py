"""A conversation without what a policy takes out of it: in texts and words, and when it was said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from siprec_bridge.redaction.detect import BREAK, Spot, Stream, detect, stream
from siprec_bridge.redaction.numerals import runs, tokens
from siprec_bridge.redaction.policy import Policy
from siprec_bridge.transcript import Conversation, Redaction, Suppressed, Utterance, Word

_PAD_S = 0.2  # around words: where they begin and end is the recogniser's guess
_SHORTEST_WORD_S = 0.04  # on average; faster speech is a guess gone wrong
_NUMBER: Final = "[number]"

Range = tuple[int, int, str]  # characters of an utterance, and the kind


@dataclass(frozen=True, slots=True)
class Redacted:
    """The conversation that may be kept, and where something was taken out of it, in its seconds."""

    conversation: Conversation
    redactions: tuple[Redaction, ...]


def redact_conversation(conversation: Conversation, policy: Policy) -> Redacted:
    """Take out what the policy names, of all parties; `conversation.redactions` says where.

    What was set aside as hardly said loses all numbers. Telephone keys that were kept become `*`.
    """
    if not policy:
        return Redacted(conversation, ())
    utterances = conversation.utterances
    texts = [one.text for one in utterances]
    said = [aligned(one.text, one.words) for one in utterances]
    apart = [
        bool(one.words) and places is None for one, places in zip(utterances, said, strict=True)
    ]
    spots = _ranges(utterances, texts, policy)
    # Where words and text differ, each is looked through, and what one has is in doubt in both.
    by_words: Mapping[int, list[Range]] = {}
    joined = [
        " ".join(word.text.strip() for word in one.words) if differs else one.text
        for one, differs in zip(utterances, apart, strict=True)
    ]
    if any(apart):
        by_words = _ranges(utterances, joined, policy)
    kept: list[Utterance] = []
    found: list[Redaction] = []
    for index, utterance in enumerate(utterances):
        own = spots.get(index, [])
        if not apart[index]:
            kept.append(_without(utterance, own, said[index]))
            found += _times(utterance, own, said[index])
            continue
        other = by_words.get(index, [])
        if own or other:
            base = utterance.model_copy(update={"text": joined[index]}) if not own else utterance
            cleaned = _without(base, own or other, None)
            kept.append(cleaned.model_copy(update={"words": ()}))
            found += _times(utterance, own or other, None)
        else:
            kept.append(utterance)
    suppressed, more = _set_aside(conversation.suppressed, policy)
    found += more
    redactions = tuple(
        sorted({*conversation.redactions, *found}, key=lambda one: (one.start, one.end, one.kind))
    )
    facts = conversation.run
    cleaned_document = conversation.model_copy(
        update={
            "utterances": tuple(kept),
            "suppressed": suppressed,
            "redactions": redactions,
            # A recogniser may have said there what it heard.
            "run": facts.model_copy(update={"stderr_tail": ""}) if facts is not None else None,
            "legs": tuple(
                leg.model_copy(
                    update={"keys": tuple(key.model_copy(update={"key": "*"}) for key in leg.keys)}
                )
                for leg in conversation.legs
            ),
        }
    )
    return Redacted(cleaned_document, tuple(found))


def redact_text(text: str, policy: Policy) -> str:
    """Any text without what the policy names, as far as it can be told without its times."""
    if not policy:
        return text
    one = stream("", [(0, text, 0.0, 1.0)], None)
    return cut(text, [(s.start, s.end, s.kind) for s in detect([one], policy)[""]])


def _ranges(
    utterances: Sequence[Utterance], texts: Sequence[str], policy: Policy
) -> dict[int, list[Range]]:
    """What to take out of each utterance, by its number."""
    streams: list[Stream] = []
    for label in dict.fromkeys(one.label for one in utterances):
        own = [
            (index, texts[index].replace(BREAK, " "), one.start, one.end)
            for index, one in enumerate(utterances)
            if one.label == label
        ]
        languages = {one.language for one in utterances if one.label == label and one.language}
        streams.append(stream(label, own, languages.pop() if len(languages) == 1 else None))
    found = detect(streams, policy)
    ranges: dict[int, list[Range]] = {}
    for one in streams:
        for spot in found[one.label]:
            for piece in one.pieces:
                start = max(spot.start, piece.offset)
                end = min(spot.end, piece.offset + piece.length)
                if start < end:
                    ranges.setdefault(piece.index, []).append(
                        (start - piece.offset, end - piece.offset, spot.kind)
                    )
    return ranges


def aligned(text: str, words: Sequence[Word]) -> list[tuple[int, int]] | None:
    """Where each word stands in the text, or None where the words are not the text's."""
    if not words:
        return None
    places: list[tuple[int, int]] = []
    at = 0
    for word in words:
        part = word.text.strip()
        begin = text.find(part, at)
        if begin < 0 or text[at:begin].strip():
            return None
        at = begin + len(part)
        places.append((begin, at))
    return places if not text[at:].strip() else None


def cut(text: str, ranges: Sequence[Range]) -> str:
    """The text with the kind's name in place of each range; they are disjoint and in order."""
    parts: list[str] = []
    at = 0
    for start, end, kind in ranges:
        parts += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*parts, text[at:]])


def _without(
    utterance: Utterance, ranges: Sequence[Range], places: Sequence[tuple[int, int]] | None
) -> Utterance:
    if not ranges:
        return utterance
    text = cut(utterance.text, ranges)
    words = words_without(utterance.words, ranges, places) if places is not None else ()
    return utterance.model_copy(update={"text": text, "words": words})


def words_without(
    words: Sequence[Word], ranges: Sequence[Range], places: Sequence[tuple[int, int]]
) -> tuple[Word, ...]:
    """The words, those of each range as one with the time of all of them."""
    kept: list[Word] = []
    done: Range | None = None
    for word, (start, end) in zip(words, places, strict=True):
        inside = next((one for one in ranges if one[0] < end and one[1] > start), None)
        if inside is None:
            kept.append(word)
            continue
        text = word.text.strip()
        tail = text[max(0, inside[1] - start) :]
        if inside is done:
            kept[-1] = kept[-1].model_copy(
                update={"text": kept[-1].text + tail, "end": max(kept[-1].end, word.end)}
            )
            continue
        space = word.text[: len(word.text) - len(word.text.lstrip())]
        head = text[: max(0, inside[0] - start)]
        others = [one for one in ranges if one is not inside and one[0] < end and one[1] > start]
        if others:  # two in one word: nothing else of it is worth keeping
            head, tail = "", ""
        kept.append(Word(text=f"{space}{head}[{inside[2]}]{tail}", start=word.start, end=word.end))
        done = inside
    return tuple(kept)


def _times(
    utterance: Utterance, ranges: Sequence[Range], places: Sequence[tuple[int, int]] | None
) -> list[Redaction]:
    """When each range was said: by its words, else some time in the whole utterance."""
    found: list[Redaction] = []
    for start, end, kind in ranges:
        begin, until = utterance.start, utterance.end
        if places is not None:
            inside = [
                word
                for word, (a, b) in zip(utterance.words, places, strict=True)
                if a < end and b > start
            ]
            first = min((word.start for word in inside), default=begin)
            last = max((word.end for word in inside), default=until)
            if last - first >= _SHORTEST_WORD_S * len(inside) > 0:
                begin, until = first, last
        found.append(
            Redaction(
                kind=kind,
                label=utterance.label,
                start=round(begin - _PAD_S, 3),  # a leg may begin before its session
                end=round(until + _PAD_S, 3),
            )
        )
    return found


def _set_aside(
    suppressed: Sequence[Suppressed], policy: Policy
) -> tuple[tuple[Suppressed, ...], list[Redaction]]:
    """What was hardly said, without any number; and when something to take out was, all the same."""
    kept: list[Suppressed] = []
    found: list[Redaction] = []
    for one in suppressed:
        alone = stream("", [(0, one.text.replace(BREAK, " "), one.start, one.end)], None)
        spots = detect([alone], policy)[""]
        for kind in sorted({spot.kind for spot in spots}):
            if one.label is not None:
                found.append(Redaction(kind=kind, label=one.label, start=one.start, end=one.end))
        numbers = [
            Spot("number", run.start, run.end)
            for reading in runs(tokens(alone.folded), alone.folded, None, ())
            for run in reading
            if len(run.digits) >= 3
            and not any(s.start < run.end and s.end > run.start for s in spots)
        ]
        merged: list[Range] = []
        for spot in sorted([*spots, *numbers], key=lambda spot: (spot.start, -spot.end)):
            if merged and spot.start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], spot.end), merged[-1][2])
            else:
                merged.append((spot.start, spot.end, spot.kind))
        kept.append(one.model_copy(update={"text": cut(one.text, merged)}))
    return tuple(kept), found
