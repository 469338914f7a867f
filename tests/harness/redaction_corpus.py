"""The corpus of `redaction_corpus.toml` as conversations, and how well a policy does on it.

python tests/redaction/corpus.py    print precision and recall, as in docs/privacy.md
"""

import tomllib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from siprec_bridge.redaction import KINDS, Policy
from siprec_bridge.redaction.conversation import redact_conversation
from siprec_bridge.transcript import Conversation, Utterance, Word

EVERYTHING = Policy(frozenset(KINDS))
_START = datetime(2026, 5, 4, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Talk:
    """Lines of "label: text", the kinds in them, and what must be gone or left afterwards."""

    said: tuple[str, ...]
    language: str | None
    kinds: tuple[str, ...]
    gone: tuple[str, ...]
    stays: tuple[str, ...]


def corpus() -> list[Talk]:
    table = tomllib.loads(Path(__file__).with_name("redaction_corpus.toml").read_text("utf-8"))
    return [
        Talk(
            tuple(one["said"]),
            one.get("language"),
            tuple(one.get("kinds", ())),
            tuple(one.get("gone", ())),
            tuple(one.get("stays", ())),
        )
        for one in table["talk"]
    ]


def conversation(said: tuple[str, ...], language: str | None = "en") -> Conversation:
    """Lines one after the other, 0.4 s a word, each word with its time."""
    utterances = []
    at = 1.0
    for line in said:
        label, _, text = line.partition(": ")
        words = []
        begin = at
        for word in text.split():
            words.append(Word(text=f" {word}", start=round(at, 3), end=round(at + 0.4, 3)))
            at += 0.4
        utterances.append(
            Utterance(
                label=label,
                start=begin,
                end=at,
                starts_at=_START + timedelta(seconds=begin),
                ends_at=_START + timedelta(seconds=at),
                text=text,
                language=language,
                words=tuple(words),
            )
        )
        at += 0.5
    return Conversation(
        session_id="s-1",
        sip_call_id="c-1",
        started_at=_START,
        ended_at=_START + timedelta(seconds=at),
        duration=at,
        utterances=tuple(utterances),
        provider="whisper",
        model="base",
    )


def score() -> list[tuple[str, int, int, int]]:
    """For each kind: how many there are, how many were found, and how many were no such thing."""
    there: Counter[str] = Counter()
    found: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for talk in corpus():
        clean = redact_conversation(conversation(talk.said, talk.language), EVERYTHING)
        text = clean.conversation.text
        there.update(talk.kinds)
        kinds = Counter(talk.kinds)
        seen = Counter(one.kind for one in clean.redactions)
        for kind in kinds:
            if all(piece not in text for piece in talk.gone):
                found[kind] += kinds[kind] if seen[kind] else 0
        for kind in seen:
            if kind not in kinds:
                wrong[kind] += seen[kind]
    return [(kind, there[kind], found[kind], wrong[kind]) for kind in sorted({*there, *wrong})]
