"""Sessions of one call: those that the SRC has put into one communication session group.

Such are the two of a phone's built-in bridge, one with each party's voice, and those before and after
a transfer.
"""

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.recordings import SessionRow, row_of
from siprec_bridge.store.schema import sessions, transcripts, values_of
from siprec_bridge.store.transcripts import TranscriptRow

MOST_SESSIONS = 100  # some SRCs have one group for all of their calls: that joins nothing

_SESSIONS = (
    sessions.select()
    .where(sessions.c.group_id == sa.bindparam("group"))
    .order_by(sessions.c.started_at, sessions.c.id)
    .limit(MOST_SESSIONS + 1)
)
_VERSIONS = (
    sa.select(sessions.c.id, sa.func.max(transcripts.c.version))
    .outerjoin(transcripts, transcripts.c.session_id == sessions.c.id)
    .where(sessions.c.group_id == sa.bindparam("group"))
    .group_by(sessions.c.id, sessions.c.started_at)
    .order_by(sessions.c.started_at, sessions.c.id)
    .limit(MOST_SESSIONS + 1)
)
_LATEST = sa.select(sa.func.max(transcripts.c.version)).where(
    transcripts.c.session_id == sessions.c.id
)
_LATEST_VERSIONS = (
    sa.select(transcripts.c.session_id, sa.func.max(transcripts.c.version))
    .where(transcripts.c.session_id.in_(sa.bindparam("ids", expanding=True)))
    .group_by(transcripts.c.session_id)
)
_TRANSCRIPTS = (
    sa.select(transcripts)
    .join(sessions, sessions.c.id == transcripts.c.session_id)
    .where(
        sessions.c.id.in_(sa.bindparam("ids", expanding=True)),
        transcripts.c.version == _LATEST.correlate(sessions).scalar_subquery(),
    )
)


class TooLarge(Exception):
    """A group of more sessions than any call has."""


def sessions_of(connection: Connection, group_id: str) -> list[SessionRow]:
    """A group's sessions in the order in which they began. Raises TooLarge."""
    rows = connection.execute(_SESSIONS, {"group": group_id}).mappings().all()
    if len(rows) > MOST_SESSIONS:
        raise TooLarge(f"more than {MOST_SESSIONS} sessions are in this group")
    return [row_of(row) for row in rows]


def latest_versions(connection: Connection, session_ids: Collection[str]) -> dict[str, int]:
    """The latest version of the transcript of each of these sessions that has any."""
    rows = connection.execute(_LATEST_VERSIONS, {"ids": list(session_ids)})
    return {id: version for id, version in rows}


def latest_transcripts(
    connection: Connection, session_ids: Collection[str]
) -> dict[str, TranscriptRow]:
    """The latest transcript of each of these sessions that has any."""
    rows = connection.execute(_TRANSCRIPTS, {"ids": list(session_ids)}).mappings()
    return {row["session_id"]: TranscriptRow(**values_of(row)) for row in rows}


def transcribed(connection: Connection, group_id: str) -> list[tuple[str, int]]:
    """Each session and the latest version of its transcript, once all of several have one.

    Empty as long as one has none, for a session that is alone in its group, and for too many.
    """
    rows = connection.execute(_VERSIONS, {"group": group_id}).all()
    if not 1 < len(rows) <= MOST_SESSIONS or any(version is None for _, version in rows):
        return []
    return [(id, version) for id, version in rows]
