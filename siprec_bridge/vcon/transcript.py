"""The body of a transcript's analysis: who said what, by the container's parties and dialogs.

The draft leaves the form to vendors; this one is described in docs/vcon.md.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from siprec_bridge.transcript import Conversation, Participant, Utterance, Value
from siprec_bridge.vcon.container import Date

SCHEMA: Final = "urn:siprec-bridge:vcon:transcript:1"


class SpokenWord(Value):
    """A word; `confidence` is from 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float | None = None


class Said(Value):
    """One utterance. `start` and `end` are seconds from the start of the call."""

    party: int | None = None
    dialog: int | None = None
    start: float
    end: float
    starts_at: Date
    ends_at: Date
    text: str
    language: str | None = None
    confidence: float | None = None
    doubt: str | None = None
    words: tuple[SpokenWord, ...] = ()


class TranscriptBody(Value):
    """A whole conversation."""

    version: int
    started_at: Date
    duration: float
    language: str | None = None
    text: str
    utterances: tuple[Said, ...] = ()


def body_of(
    conversation: Conversation,
    version: int,
    party_of: Callable[[Participant | None, str], int | None],
    dialog_of: Mapping[str, int],
) -> TranscriptBody:
    """The body. `party_of` a participant and a label, `dialog_of` a label."""
    return TranscriptBody(
        version=version,
        started_at=conversation.started_at,
        duration=conversation.duration,
        language=conversation.language,
        text=conversation.text,
        utterances=tuple(
            Said(
                party=party_of(one.participant, one.label),
                dialog=dialog_of.get(one.label),
                start=one.start,
                end=one.end,
                starts_at=one.starts_at,
                ends_at=one.ends_at,
                text=one.text,
                language=one.language,
                confidence=_confidence(one),
                doubt=one.doubt,
                words=tuple(
                    SpokenWord(
                        text=word.text,
                        start=word.start,
                        end=word.end,
                        confidence=word.probability,
                    )
                    for word in one.words
                ),
            )
            for one in conversation.utterances
        ),
    )


def _confidence(utterance: Utterance) -> float | None:
    """The mean of the words', or what the mean of the tokens' logarithms says."""
    known = [word.probability for word in utterance.words if word.probability is not None]
    if known:
        return round(sum(known) / len(known), 3)
    if utterance.avg_logprob is not None:
        return round(math.exp(min(0.0, utterance.avg_logprob)), 3)
    return None
