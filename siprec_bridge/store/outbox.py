"""The outbox: events in the transaction of what they tell about, and each sink's deliveries.

`seq` numbers all events in order of commit; it is the cursor of listeners. A delivery is
pending until the sink has confirmed it, or parked when trying again would not help; of those an
operator sends some again and drops others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.dialect import insert_new, number_in_order
from siprec_bridge.store.schema import UtcDateTime, deliveries, events, values_of


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, as consumers get it. `body` is the JSON of the CloudEvent's data.

    `id` is the same whenever the same event is built again. `seq` is given by the outbox.
    """

    id: str
    session_id: str
    type: str
    at: datetime
    body: str
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A sink that gets only the events whose type begins with one of these."""

    name: str
    types: tuple[str, ...]


Recipient = str | Subscriber  # a sink that is named gets everything


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event that a sink has not confirmed, how often it failed, and since when it does."""

    event: Event
    attempts: int
    failing_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that a sink gave up, and why."""

    event: Event
    attempts: int
    reason: str
    failing_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class FailingEvent:
    """An event that a sink did not take so far and is to be offered again, and why it did not."""

    id: str
    session_id: str
    attempts: int
    reason: str
    failing_since: datetime


@dataclass(frozen=True, slots=True)
class SinkBacklog:
    """What one sink has not confirmed. `oldest_at`: when the oldest pending event was appended."""

    pending: int
    parked: int
    oldest_at: datetime | None


# Made once: what SQLAlchemy spends on making a statement is more than SQLite spends on it.
_ADD_DELIVERIES = deliveries.insert()
_LOOKED_THROUGH = 1000  # what failed was tried first, so it is among the oldest


def append(
    connection: Connection, new_events: Sequence[Event], sinks: Sequence[Recipient]
) -> list[Event]:
    """Add events for these sinks; those whose id exists are ignored.

    Returns what was added, with its seq, in the order given.
    """
    if not new_events:
        return []
    number_in_order(connection)
    now = datetime.now(UTC)
    added = connection.execute(
        insert_new(connection, events, returning=("seq", "id")),
        [
            {
                "id": event.id,
                "session_id": event.session_id,
                "type": event.type,
                "at": event.at,
                "body": event.body,
                "recorded_at": now,
            }
            for event in new_events
        ],
    ).all()
    seqs = {event_id: seq for seq, event_id in added}
    due = [
        {
            "seq": seqs[event.id],
            "sink": sink,
            "session_id": event.session_id,
            "state": "pending",
            "attempts": 0,
            "holds_back": True,
        }
        for event in new_events
        if event.id in seqs
        for sink in _takers(event, sinks)
    ]
    if due:
        connection.execute(_ADD_DELIVERIES, due)
    return [
        Event(event.id, event.session_id, event.type, event.at, event.body, seqs[event.id])
        for event in new_events
        if event.id in seqs
    ]


def pending(
    connection: Connection,
    sink: str,
    limit: int,
    now: datetime,
    *,
    besides: Sequence[str] = (),
) -> list[PendingEvent]:
    """What is due for this sink, in order of seq, of all sessions besides some.

    An event waits while an earlier one of its session is pending for a later time, unless that
    one was marked as not holding back; parked events hold nothing back.
    """
    query = _DUE.where(deliveries.c.session_id.not_in(besides)) if besides else _DUE
    rows = connection.execute(query, {"sink": sink, "now": now, "limit": limit})
    return [PendingEvent(Event(*row[:-2]), *row[-2:]) for row in rows]


def next_due(connection: Connection, sink: str) -> datetime | None:
    """When the first delivery that was put off is due again, or None."""
    due: datetime | None = connection.scalar(
        sa.select(sa.func.min(deliveries.c.not_before)).where(
            deliveries.c.sink == sink, deliveries.c.state == _PENDING
        )
    )
    return due


def delivered(connection: Connection, sink: str, seqs: Iterable[int]) -> None:
    """The sink confirmed these events."""
    connection.execute(
        _deliveries_of(sink, seqs).values(state="delivered", not_before=None, reason=None)
    )


def failed(
    connection: Connection,
    sink: str,
    seq: int,
    reason: str,
    not_before: datetime,
    *,
    holds_back: bool = True,
    at: datetime | None = None,
) -> None:
    """Try an event again later; while it waits, it holds back its session's later events or not."""
    connection.execute(
        _awaited(sink, seq).values(
            attempts=deliveries.c.attempts + 1,
            reason=reason,
            not_before=not_before,
            holds_back=holds_back,
            failing_since=_first_failure(at),
        )
    )


def park(
    connection: Connection, sink: str, seq: int, reason: str, at: datetime | None = None
) -> None:
    """Give an event up for this sink until `resend`."""
    connection.execute(
        _awaited(sink, seq).values(
            state="parked",
            attempts=deliveries.c.attempts + 1,
            reason=reason,
            not_before=None,
            failing_since=_first_failure(at),
        )
    )


def _first_failure(at: datetime | None) -> sa.ColumnElement[datetime]:
    now = sa.literal(at or datetime.now(UTC), UtcDateTime())
    return sa.func.coalesce(deliveries.c.failing_since, now)


def parked(
    connection: Connection, sink: str, limit: int, *, after: int = 0, reason: str = ""
) -> list[ParkedEvent]:
    """What this sink gave up, oldest first, after this seq; `reason` is a part of the reason."""
    rows = connection.execute(
        sa.select(events, deliveries.c.attempts, deliveries.c.reason, deliveries.c.failing_since)
        .join(deliveries, deliveries.c.seq == events.c.seq)
        .where(
            deliveries.c.sink == sink,
            deliveries.c.state == _PARKED,
            deliveries.c.seq > after,
            *_for_reason(reason),
        )
        .order_by(deliveries.c.seq)
        .limit(limit)
    ).mappings()
    return [
        ParkedEvent(_event(row), row["attempts"], row["reason"], row["failing_since"])
        for row in rows
    ]


def resend(
    connection: Connection, sink: str, event_id: str | None = None, *, reason: str = ""
) -> int:
    """Make a parked event, those of this reason, or all, pending anew; returns how many.

    `reason` is a part of the reason. They are sent in their old order, after what was sent since.
    """
    query = _given_up(sink, event_id, reason).where(deliveries.c.state == _PARKED)
    return connection.execute(
        query.values(
            state="pending", attempts=0, not_before=None, holds_back=True, failing_since=None
        )
    ).rowcount


def drop(
    connection: Connection,
    sink: str,
    note: str,
    event_id: str | None = None,
    *,
    reason: str = "",
    pending: bool = False,
) -> int:
    """Give up for good what `resend` would send, with `pending` also what waits; returns how many.

    `note`, who wants it and why, stands before the reason for as long as the event is kept.
    """
    query = _given_up(sink, event_id, reason).where(
        sa.or_(deliveries.c.state == _PARKED, deliveries.c.state == _PENDING)
        if pending
        else deliveries.c.state == _PARKED
    )
    was = sa.func.coalesce(deliveries.c.reason, "not tried")
    return connection.execute(
        query.values(state="dropped", not_before=None, reason=sa.literal(f"{note}; was: ") + was)
    ).rowcount


def _given_up(sink: str, event_id: str | None, reason: str) -> sa.Update:
    query = deliveries.update().where(deliveries.c.sink == sink, *_for_reason(reason))
    if event_id is not None:
        one = sa.select(events.c.seq).where(events.c.id == event_id).scalar_subquery()
        query = query.where(deliveries.c.seq == one)
    return query


def _for_reason(reason: str) -> list[sa.ColumnElement[bool]]:
    return [deliveries.c.reason.icontains(reason, autoescape=True)] if reason else []


def sinks(connection: Connection) -> list[str]:
    """The sinks that have something pending or parked."""
    found: set[str] = set()
    for state in (_PENDING, _PARKED):
        query = sa.select(deliveries.c.sink).where(deliveries.c.state == state).distinct()
        found.update(connection.scalars(query))
    return sorted(found)


def backlog(connection: Connection, sink: str) -> SinkBacklog:
    """How much this sink has not confirmed."""

    def count(state: sa.ColumnElement[str]) -> int:
        return (
            connection.scalar(
                sa.select(sa.func.count())
                .select_from(deliveries)
                .where(deliveries.c.sink == sink, deliveries.c.state == state)
            )
            or 0
        )

    first = (
        sa.select(sa.func.min(deliveries.c.seq))
        .where(deliveries.c.sink == sink, deliveries.c.state == _PENDING)
        .scalar_subquery()
    )
    return SinkBacklog(
        pending=count(_PENDING),
        parked=count(_PARKED),
        oldest_at=connection.scalar(sa.select(events.c.recorded_at).where(events.c.seq == first)),
    )


def failing(connection: Connection, sink: str) -> FailingEvent | None:
    """The first event that waits because it failed, among the oldest ones."""
    oldest = (
        deliveries.select()
        .where(deliveries.c.sink == sink, deliveries.c.state == _PENDING)
        .order_by(deliveries.c.seq)
        .limit(_LOOKED_THROUGH)
        .subquery()
    )
    row = connection.execute(
        sa.select(
            events.c.id,
            oldest.c.session_id,
            oldest.c.attempts,
            oldest.c.reason,
            oldest.c.failing_since,
        )
        .join(oldest, oldest.c.seq == events.c.seq)
        .where(oldest.c.failing_since.is_not(None))
        .order_by(oldest.c.seq)
        .limit(1)
    ).first()
    return FailingEvent(*row) if row is not None else None


def since(
    connection: Connection,
    seq: int,
    limit: int,
    *,
    session_id: str | None = None,
    types: Sequence[str] = (),
    until: int | None = None,
) -> list[Event]:
    """Events after `seq` (and up to `until`), in order; `types` are beginnings of type names."""
    query = events.select().where(events.c.seq > seq)
    if until is not None:
        query = query.where(events.c.seq <= until)
    if session_id is not None:
        query = query.where(events.c.session_id == session_id)
    if types:
        query = query.where(
            sa.or_(*(events.c.type.startswith(prefix, autoescape=True) for prefix in types))
        )
    rows = connection.execute(query.order_by(events.c.seq).limit(limit)).mappings()
    return [_event(row) for row in rows]


def first_seq(connection: Connection) -> int:
    """The seq of the oldest event that is still there; 0 when there is none."""
    return connection.scalar(sa.select(sa.func.min(events.c.seq))) or 0


def last_seq(connection: Connection) -> int:
    """The seq of the latest event; 0 when there is none."""
    return connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0


def latest_number(connection: Connection) -> int:
    """The latest seq that was ever given out, whatever became of its event; at least 0."""
    if connection.dialect.name == "postgresql":
        query = sa.text("SELECT last_value FROM events_seq_seq")
    else:
        query = sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    return connection.scalar(query) or 0


def get(connection: Connection, event_id: str) -> Event | None:
    """The event with this id, as long as it is kept."""
    row = connection.execute(events.select().where(events.c.id == event_id)).mappings().first()
    return _event(row) if row is not None else None


# Literal SQL, not parameters: only then does SQLite know that the partial indexes apply.
_PENDING: sa.ColumnElement[str] = sa.literal_column("'pending'", sa.String)
_PARKED: sa.ColumnElement[str] = sa.literal_column("'parked'", sa.String)


def _takers(event: Event, sinks: Sequence[Recipient]) -> list[str]:
    return [
        one if isinstance(one, str) else one.name
        for one in sinks
        if isinstance(one, str) or event.type.startswith(one.types)
    ]


_earlier = deliveries.alias("earlier")
_now = sa.bindparam("now", type_=UtcDateTime)
# Built once: to build it costs as much as to run it, and an event that has just been committed waits.
_DUE = (
    sa.select(
        *(events.c[name] for name in Event.__slots__),
        deliveries.c.attempts,
        deliveries.c.failing_since,
    )
    .join(deliveries, deliveries.c.seq == events.c.seq)
    .where(
        deliveries.c.sink == sa.bindparam("sink"),
        deliveries.c.state == _PENDING,
        sa.or_(deliveries.c.not_before.is_(None), deliveries.c.not_before <= _now),
        ~sa.exists().where(
            _earlier.c.sink == sa.bindparam("sink"),
            _earlier.c.state == _PENDING,
            _earlier.c.session_id == deliveries.c.session_id,
            _earlier.c.seq < deliveries.c.seq,
            _earlier.c.not_before > _now,
            _earlier.c.holds_back,
        ),
    )
    .order_by(deliveries.c.seq)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)


def _deliveries_of(sink: str, seqs: Iterable[int]) -> sa.Update:
    return deliveries.update().where(deliveries.c.sink == sink, deliveries.c.seq.in_(list(seqs)))


def _awaited(sink: str, seq: int) -> sa.Update:
    # While it was tried, an operator may have dropped it, or a node that took over delivered it.
    return _deliveries_of(sink, [seq]).where(deliveries.c.state == _PENDING)


def _event(row: sa.RowMapping) -> Event:
    values: dict[str, Any] = values_of(row)
    return Event(**{name: values[name] for name in Event.__slots__})
