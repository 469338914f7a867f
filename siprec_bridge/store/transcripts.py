"""Transcripts: one document per session and version. The first one stored of a version stays."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store import search
from siprec_bridge.store.dialect import insert_new
from siprec_bridge.store.schema import sessions, transcripts, values_of


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
    newest = version > latest_version(connection, session_id)
    added = connection.execute(
        insert_new(connection, transcripts).returning(transcripts.c.version),
        {
            "session_id": session_id,
            "version": version,
            "job_id": job_id,
            "text": text,
            "document": document,
            "created_at": at,
        },
    ).first()
    if added is not None and newest:
        started_at = sa.select(sessions.c.started_at).where(sessions.c.id == session_id)
        search.index(connection, session_id, connection.execute(started_at).scalar_one(), document)
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
    found = connection.scalar(
        sa.select(sa.func.max(transcripts.c.version)).where(transcripts.c.session_id == session_id)
    )
    return found or 0
