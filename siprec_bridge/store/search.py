"""Search over the latest transcript of each session, by what was said, who took part, and when.

All terms must be said within one stretch of a conversation, of about 8,000 words.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store import recordings
from siprec_bridge.store.dialect import says
from siprec_bridge.store.recordings import SessionRow
from siprec_bridge.store.schema import passages, transcripts
from siprec_bridge.store.words import Term, marks, parts_of, people_of, terms_of

# Made once: what SQLAlchemy spends on making a statement is more than SQLite spends on it.
_INSERT = passages.insert()
_DELETE = passages.delete().where(passages.c.session_id == sa.bindparam("session"))

_HITS = 5
_SNIPPET = 300  # characters
_BEFORE_MARK = 100


@dataclass(frozen=True, slots=True)
class Hit:
    """An utterance in which a term was said; `marks` are places in `text`, `start` and `end` s."""

    label: str
    participant: dict[str, Any] | None
    start: float
    end: float
    starts_at: str | None
    text: str
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A session, the best of the utterances that match in order of time, and how many do."""

    session: SessionRow
    hits: tuple[Hit, ...]
    matches: int


def index(connection: Connection, session_id: str, started_at: datetime, document: str) -> None:
    """Make a transcript the one that its session is found by."""
    connection.execute(_DELETE, {"session": session_id})
    connection.execute(
        _INSERT,
        [
            {
                "session_id": session_id,
                "started_at": started_at,
                "words": one.words,
                "who": one.who,
            }
            for one in parts_of(document)
        ],
    )


def search(
    connection: Connection,
    limit: int,
    *,
    text: str = "",
    participant: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    before: tuple[datetime, str] | None = None,
) -> list[Found]:
    """Sessions that match all that is given, latest first. Any text will do.

    `text`: words, "a phrase", a begin*. `participant`: beginnings of name or address, or the last
    digits of a number. `since` and `until` are about the start. `before` = (started_at, id) of the
    last session of the page before.
    """
    terms, people = terms_of(text), people_of(participant)
    if (text.strip() and not terms) or (participant.strip() and not people):
        return []  # nothing but punctuation was asked for
    matching: sa.FromClause = passages
    if terms or people:
        # Materialized: the words decide. PostgreSQL would walk all sessions, latest first.
        matching = (
            sa.select(passages.c.started_at, passages.c.session_id)
            .where(says(connection, words=terms, who=people))
            .cte("matching")
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
    started_at, session_id = matching.c.started_at, matching.c.session_id
    query = sa.select(started_at, session_id).distinct()
    if since is not None:
        query = query.where(started_at >= since)
    if until is not None:
        query = query.where(started_at < until)
    if before is not None:
        query = query.where(
            sa.tuple_(started_at, session_id)
            < sa.tuple_(
                sa.literal(before[0], started_at.type), sa.literal(before[1], session_id.type)
            )
        )
    query = query.order_by(started_at.desc(), session_id.desc()).limit(limit)
    ids = [row.session_id for row in connection.execute(query)]
    documents = _documents(connection, ids) if terms else {}
    found = []
    for row in recordings.of_ids(connection, ids):
        hits = _hits(documents.get(row.id, "{}"), terms)
        found.append(Found(row, _best(hits), len(hits)))
    return found


def _documents(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    query = (
        sa.select(transcripts.c.session_id, transcripts.c.document)
        .where(transcripts.c.session_id.in_(ids))
        .order_by(transcripts.c.version)
    )
    return {row.session_id: row.document for row in connection.execute(query)}


def _hits(document: str, terms: Sequence[Term]) -> list[tuple[int, Hit]]:
    """Utterances with any of the terms, and how many different ones."""
    found = []
    for one in json.loads(document).get("utterances", ()):
        there = marks(one["text"], terms)
        if there:
            all_marks = sorted({place for some in there.values() for place in some})
            found.append((len(there), _hit(one, all_marks)))
    return found


def _best(hits: Sequence[tuple[int, Hit]]) -> tuple[Hit, ...]:
    best = sorted(hits, key=lambda one: -one[0])[:_HITS]
    return tuple(sorted((hit for _, hit in best), key=lambda hit: hit.start))


def _hit(utterance: dict[str, Any], places: Sequence[tuple[int, int]]) -> Hit:
    text = utterance["text"]
    begin = 0
    if len(text) > _SNIPPET:
        begin = max(0, min(places[0][0] - _BEFORE_MARK, len(text) - _SNIPPET))
    end = begin + _SNIPPET
    inside = tuple((a - begin, b - begin) for a, b in places if a >= begin and b <= end)
    return Hit(
        label=utterance["label"],
        participant=utterance.get("participant"),
        start=utterance["start"],
        end=utterance["end"],
        starts_at=utterance.get("starts_at"),
        text=text[begin:end],
        marks=inside,
    )
