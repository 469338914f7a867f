"""What is changed in the tables of what was stored before, and the line that says that it was done.

What the rows say is their owners' business: they hand in what is to stand there instead.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store import search, transcripts
from siprec_bridge.store.recordings import SessionRow, row_of
from siprec_bridge.store.schema import audit, events, jobs, sessions, sip_messages, values_of
from siprec_bridge.store.schema import transcripts as transcripts_table
from siprec_bridge.store.transcripts import TranscriptRow

if TYPE_CHECKING:
    from siprec_bridge.store.database import Database

_BATCH = 200


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who did what, when and why. `subject` is a hash; `detail` JSON: what came of it."""

    at: datetime
    action: str
    actor: str | None
    reason: str | None
    subject: str
    detail: str


def sessions_naming(connection: Connection, pattern: str, after: str) -> list[SessionRow]:
    """Some sessions whose document is LIKE this pattern in lower case, by id after this one."""
    query = (
        sessions.select()
        .where(
            sessions.c.id > after,
            sa.func.lower(sessions.c.document).like(pattern, escape="\\"),
        )
        .order_by(sessions.c.id)
        .limit(_BATCH)
    )
    return [row_of(row) for row in connection.execute(query).mappings()]


def events_of(connection: Connection, session_id: str) -> list[tuple[int, str, str]]:
    """Number, type and body of each event of a session."""
    query = sa.select(events.c.seq, events.c.type, events.c.body).where(
        events.c.session_id == session_id
    )
    return [(seq, kind, body) for seq, kind, body in connection.execute(query)]


def change_events(connection: Connection, bodies: Mapping[int, str | None]) -> None:
    """Give events another body; None: they are deleted, and delivered to nobody any more."""
    for seq, body in bodies.items():
        if body is None:
            connection.execute(events.delete().where(events.c.seq == seq))
        else:
            connection.execute(events.update().where(events.c.seq == seq).values(body=body))


def delete_events(connection: Connection, session_id: str) -> None:
    """Delete all events of a session, delivered or not."""
    connection.execute(events.delete().where(events.c.session_id == session_id))


def transcripts_of(connection: Connection, session_id: str) -> Iterator[TranscriptRow]:
    """All versions, oldest first."""
    query = (
        transcripts_table.select()
        .where(transcripts_table.c.session_id == session_id)
        .order_by(transcripts_table.c.version)
    )
    for row in connection.execute(query).mappings().all():
        yield TranscriptRow(**values_of(row))


def change_transcript(connection: Connection, row: TranscriptRow, text: str, document: str) -> None:
    """Let a version say something else; the latest is found by that from now on."""
    connection.execute(
        transcripts_table.update()
        .where(
            transcripts_table.c.session_id == row.session_id,
            transcripts_table.c.version == row.version,
        )
        .values(text=text, document=document)
    )
    if row.version == transcripts.latest_version(connection, row.session_id):
        started_at = connection.execute(
            sa.select(sessions.c.started_at).where(sessions.c.id == row.session_id)
        ).scalar_one()
        search.index(connection, row.session_id, started_at, document)


def forget_traces(connection: Connection, session_id: str) -> None:
    """Delete a session's SIP messages, and what its jobs were told and said."""
    connection.execute(sip_messages.delete().where(sip_messages.c.session_id == session_id))
    connection.execute(
        jobs.update().where(jobs.c.session_id == session_id).values(prompt=None, stderr_tail=None)
    )


def change_stderr(connection: Connection, session_id: str, conceal: Callable[[str], str]) -> None:
    """Give what the recogniser said in a session's jobs another text."""
    ours = jobs.c.session_id == session_id
    said = connection.execute(sa.select(jobs.c.id, jobs.c.stderr_tail).where(ours)).all()
    for job_id, text in said:
        if text and (kept := conceal(text)) != text:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(stderr_tail=kept))


def note(connection: Connection, row: AuditRow) -> int:
    """Add a line to the audit; returns its number."""
    line = {name: getattr(row, name) for name in AuditRow.__slots__}
    number: int = connection.execute(audit.insert().values(line).returning(audit.c.id)).scalar_one()
    return number


def tell(connection: Connection, number: int, detail: str) -> None:
    """What came of what a line of the audit tells."""
    connection.execute(audit.update().where(audit.c.id == number).values(detail=detail))


def lines(connection: Connection, limit: int) -> list[AuditRow]:
    """The audit, latest first."""
    columns: Sequence[Any] = [audit.c[name] for name in AuditRow.__slots__]
    query = sa.select(*columns).order_by(audit.c.id.desc()).limit(limit)
    return [AuditRow(**values_of(row)) for row in connection.execute(query).mappings()]


async def compact_index(database: "Database", pages: int = 500) -> None:
    """Drop words from SQLite's index that are marked as deleted only; others' vacuum does it.

    In short transactions of so many pages of 4 KiB: as one it would keep calls from being written down, for longer than
    they wait where the index is large. Raises StoreError.
    """
    more = await database.write(partial(_merge, pages=-pages))  # negative: all of it, from now on
    while more:
        more = await database.write(partial(_merge, pages=pages))


def _merge(connection: Connection, pages: int) -> bool:
    """Write so many pages of the index anew. False: that was all. sqlite.org/fts5.html §6.8."""
    if connection.dialect.name != "sqlite":
        return False
    changes = sa.text("SELECT total_changes()")
    before = connection.execute(changes).scalar_one()
    connection.execute(
        sa.text("INSERT INTO passages_fts (passages_fts, rank) VALUES ('merge', :pages)"),
        {"pages": pages},
    )
    return bool(connection.execute(changes).scalar_one() - before >= 2)


def detail(values: Mapping[str, Any]) -> str:
    """JSON for an audit line."""
    return json.dumps(values, sort_keys=True)
