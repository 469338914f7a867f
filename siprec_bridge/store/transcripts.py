"""Transcripts: one document per session and version. The first one stored of a version stays."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store import search
from siprec_bridge.store.dialect import insert_new
from siprec_bridge.store.schema import sessions, transcripts, values_of

# Made once: what SQLAlchemy spends on making a statement is more than SQLite spends on it.
_LATEST = sa.select(sa.func.max(transcripts.c.version)).where(
    transcripts.c.session_id == sa.bindparam("session")
)
_SESSION = sa.select(
    sessions.c.started_at, sa.func.coalesce(_LATEST.scalar_subquery(), 0).label("latest")
).where(sessions.c.id == sa.bindparam("session"))


@dataclass(frozen=True, slots=True)
class TranscriptRow:
    """`document` is the JSON of a Conversation, `text` its words for reading and searching."""

    session_id: str
    version: int
    job_id: str
    text: str
    document: str
    created_at: datetime


def save(
    connection: Connection,
    session_id: str,
    version: int,
    job_id: str,
    text: str,
    document: str,
    at: datetime,
) -> bool:
    """Store a transcript, the latest to be searched.

    False when this version exists, which then stays as it was delivered.
    """
    session = connection.execute(_SESSION, {"session": session_id}).one()
    added = connection.execute(
        insert_new(connection, transcripts, returning=("version",)),
        {
            "session_id": session_id,
            "version": version,
            "job_id": job_id,
            "text": text,
            "document": document,
            "created_at": at,
        },
    ).first()
    if added is not None and version > session.latest:
        search.index(connection, session_id, session.started_at, document)
    return added is not None


def get(
    connection: Connection, session_id: str, version: int | None = None
) -> TranscriptRow | None:
    """A session's transcript: this version, or the latest."""
    query = transcripts.select().where(transcripts.c.session_id == session_id)
    if version is not None:
        query = query.where(transcripts.c.version == version)
    rows = connection.execute(query.order_by(transcripts.c.version.desc()).limit(1)).mappings()
    return next((TranscriptRow(**values_of(row)) for row in rows), None)


def versions(connection: Connection, session_id: str) -> dict[int, datetime]:
    """The versions stored of a session's transcript, and since when."""
    rows = connection.execute(
        sa.select(transcripts.c.version, transcripts.c.created_at)
        .where(transcripts.c.session_id == session_id)
        .order_by(transcripts.c.version)
    )
    return {version: at for version, at in rows}


def latest_version(connection: Connection, session_id: str) -> int:
    """The highest version stored for a session; 0 when there is none."""
    return connection.scalar(_LATEST, {"session": session_id}) or 0
