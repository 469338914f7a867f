"""Recording sessions: one row each, from the answer to the INVITE to the archived audio."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.schema import sessions, values_of

SessionState = Literal["recording", "finishing", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One recording session as stored. `document` and `audio` are JSON texts of their owners.

    `held`: who keeps it from being deleted, and why, as JSON. `audio_bytes`: of its whole folder.
    `node`: that recorded it, where several share the database. `group_id` joins sessions.
    """

    id: str
    sip_call_id: str
    state: SessionState
    started_at: datetime
    peer: str
    folder: str
    document: str
    ended_at: datetime | None = None
    end_cause: str | None = None
    audio: str | None = None
    warnings: tuple[str, ...] = ()
    audio_bytes: int | None = None
    audio_deleted_at: datetime | None = None
    held: str | None = None
    assurance: str | None = None
    node: str | None = None
    group_id: str | None = None


# Made once: what SQLAlchemy spends on making a statement is more than SQLite spends on it.
_INSERT = sessions.insert()
_UPDATE = sessions.update().where(sessions.c.id == sa.bindparam("this"))
_GET = sa.select(*(sessions.c[name] for name in SessionRow.__slots__)).where(
    sessions.c.id == sa.bindparam("this")
)
_LONGEST_GROUP = 500  # characters: an index takes no more, and an SRC may send anything
_MOST_FAILED = 1000  # that a start looks for anew: there are ever more of them
_WARNINGS = SessionRow.__slots__.index("warnings")


class SessionFields(TypedDict, total=False):
    """What `update` may change: all but identity and start."""

    state: SessionState
    ended_at: datetime | None
    end_cause: str | None
    peer: str
    folder: str
    document: str
    audio: str | None
    warnings: tuple[str, ...]
    held: str | None
    assurance: str | None
    group_id: str | None


def insert(connection: Connection, row: SessionRow) -> None:
    """Add a session. An id that exists ends in a StoreError."""
    values = {name: getattr(row, name) for name in SessionRow.__slots__}
    values |= {"warnings": json.dumps(row.warnings), "group_id": _joining(row.group_id)}
    connection.execute(_INSERT, values)


def update(connection: Connection, session_id: str, **fields: Unpack[SessionFields]) -> bool:
    """Change the named fields; False when there is no such session."""
    values: dict[str, Any] = dict(fields)
    if "warnings" in fields:
        values["warnings"] = json.dumps(fields["warnings"])
    if "group_id" in fields:
        values["group_id"] = _joining(fields["group_id"])
    return connection.execute(_UPDATE, values | {"this": session_id}).rowcount == 1


def get(connection: Connection, session_id: str) -> SessionRow | None:
    """The session of this id."""
    found = connection.execute(_GET, {"this": session_id}).first()
    if found is None:
        return None
    values = list(found)
    values[_WARNINGS] = tuple(json.loads(values[_WARNINGS]))
    return SessionRow(*values)


def faces(connection: Connection, ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Peer and document of those of these sessions that there are, by id."""
    if not ids:
        return {}
    wanted = sa.select(sessions.c.id, sessions.c.peer, sessions.c.document)
    rows = connection.execute(wanted.where(sessions.c.id.in_(ids)))
    return {id: (peer, document) for id, peer, document in rows}


def of_ids(connection: Connection, ids: Sequence[str]) -> list[SessionRow]:
    """The sessions of these ids that exist, in the order of the ids."""
    rows = _rows(connection, sessions.select().where(sessions.c.id.in_(ids)))
    found = {row.id: row for row in rows}
    return [found[id] for id in ids if id in found]


def unfinished(connection: Connection, node: str | None = None) -> list[SessionRow]:
    """Sessions that were being recorded or archived, oldest first: what a start has to recover.

    Failed ones as well, the newest, whose audio was not to be found: it may be there by now. Of this
    node, or of all.
    """
    left = sessions.select().where(sessions.c.audio_deleted_at.is_(None))
    if node is not None:
        left = left.where(sessions.c.node == node)
    begun = left.where(sessions.c.state.in_(("recording", "finishing")))
    newest_first = (sessions.c.started_at.desc(), sessions.c.id.desc())
    failed = left.where(sessions.c.state == "failed").order_by(*newest_first).limit(_MOST_FAILED)
    rows = [*_rows(connection, begun), *_rows(connection, failed)]
    return sorted(rows, key=lambda row: (row.started_at, row.id))


def listing(
    connection: Connection,
    limit: int,
    *,
    before: tuple[datetime, str] | None = None,
    state: SessionState | None = None,
    sip_call_id: str | None = None,
    assurance: str | None = None,
    group_id: str | None = None,
) -> list[SessionRow]:
    """Sessions, latest first. `before` = (started_at, id) of the last row of the page before."""
    query = sessions.select()
    if before is not None:
        query = query.where(
            sa.tuple_(sessions.c.started_at, sessions.c.id)
            < sa.tuple_(
                sa.literal(before[0], sessions.c.started_at.type),
                sa.literal(before[1], sessions.c.id.type),
            )
        )
    if state is not None:
        query = query.where(sessions.c.state == state)
    if sip_call_id is not None:
        query = query.where(sessions.c.sip_call_id == sip_call_id)
    if assurance is not None:
        query = query.where(sessions.c.assurance == assurance)
    if group_id is not None:
        query = query.where(sessions.c.group_id == group_id)
    return _rows(
        connection,
        query.order_by(sessions.c.started_at.desc(), sessions.c.id.desc()).limit(limit),
    )


def _joining(group_id: str | None) -> str | None:
    return group_id if group_id and len(group_id) <= _LONGEST_GROUP else None


def _rows(connection: Connection, query: sa.Select[Any]) -> list[SessionRow]:
    return [row_of(row) for row in connection.execute(query).mappings()]


def row_of(row: sa.RowMapping) -> SessionRow:
    """A result row of the whole table."""
    values = values_of(row)
    return SessionRow(**(values | {"warnings": tuple(json.loads(values["warnings"]))}))
