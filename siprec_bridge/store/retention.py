"""What may be deleted: audio, whole sessions, events that every sink has.

Nothing whose transcription waits or runs is ever listed, nor what somebody has put under hold.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store import deposits
from siprec_bridge.store.recordings import SessionRow, row_of
from siprec_bridge.store.schema import deliveries, events, jobs, sessions
from siprec_bridge.store.schema import deposits as kept


class Going(Exception):
    """A session cannot be held: its files are being deleted, or changed."""


_OVER = sessions.c.state.in_(("finished", "failed")) & sessions.c.held.is_(None)
_WITH_AUDIO = sessions.c.audio_deleted_at.is_(None)


def unmeasured(connection: Connection, limit: int, node: str | None = None) -> list[SessionRow]:
    """Sessions with audio of unknown size, oldest first; here as below of this node, or of all."""
    query = sessions.select().where(
        sessions.c.state == "finished", _WITH_AUDIO, sessions.c.audio_bytes.is_(None)
    )
    return _oldest(connection, query, limit, node)


def note_sizes(connection: Connection, sizes: Sequence[tuple[str, int]]) -> None:
    """Note how many octets the folders of these sessions hold."""
    if sizes:
        connection.execute(
            sessions.update().where(sessions.c.id == sa.bindparam("this")),
            [{"this": session_id, "audio_bytes": size} for session_id, size in sizes],
        )


def audio_bytes(connection: Connection, node: str | None = None) -> int:
    """Octets of all audio that is measured and there."""
    total = sa.select(sa.func.sum(sessions.c.audio_bytes)).where(_WITH_AUDIO)
    if node is not None:
        total = total.where(sessions.c.node == node)
    return int(connection.scalar(total) or 0)


def with_audio(
    connection: Connection,
    limit: int,
    *,
    before: datetime | None = None,
    unheard: bool = False,
    node: str | None = None,
) -> list[SessionRow]:
    """Sessions whose audio may go, oldest first.

    `before`: those that ended by then, whatever became of their transcription. Else those that
    have been transcribed: audio that nobody has heard is not given up for want of room, nor what
    is still to be taken to a store, and what lies there alone takes no room. `unheard`: those, too,
    whose recogniser is switched off.
    """
    wanted = ("queued", "running", "failed", *(() if unheard else ("off",)))
    query = sessions.select().where(_OVER, _WITH_AUDIO)
    if before is not None:
        query = query.where(sessions.c.ended_at < before, ~_job_in("queued", "running"))
    else:
        query = query.where(
            sessions.c.state
            == "finished",  # what is not to be found now may be on a disk elsewhere
            ~_job_in(*wanted),
            ~sa.exists().where(
                kept.c.session_id == sessions.c.id,
                sa.or_(kept.c.state == "pending", kept.c.local_gone_at.is_not(None)),
            ),
        )
    return _oldest(connection, query, limit, node)


def ended(
    connection: Connection, limit: int, before: datetime, node: str | None = None
) -> list[SessionRow]:
    """Whole sessions that may go, oldest first: those that ended before this time."""
    query = sessions.select().where(
        _OVER, sessions.c.ended_at < before, ~_job_in("queued", "running")
    )
    return _oldest(connection, query, limit, node)


def has_open_jobs(connection: Connection, session_id: str) -> bool:
    """Whether a transcription of it waits or runs."""
    query = sa.select(jobs.c.id).where(
        jobs.c.session_id == session_id, jobs.c.state.in_(("queued", "running"))
    )
    return connection.execute(query.limit(1)).first() is not None


def take(connection: Connection, ids: Collection[str], runner: str, now: datetime) -> set[str]:
    """Have these sessions to ourselves, to delete their files; returns those that may be deleted now.

    From here on no hold can be set: see `hold`.
    """
    query = sessions.select().where(sessions.c.id.in_(ids), _OVER, ~_job_in("queued", "running"))
    free = _oldest(connection, query.with_for_update(), len(ids), None)
    return {row.id for row in free if deposits.seize(connection, row.id, runner, now)}


def hold(connection: Connection, session_id: str, held: str | None, now: datetime) -> bool:
    """Keep a session from being deleted and changed, or not any more; False: there is none.

    Raises Going: too late, its files are being deleted or changed.
    """
    changed = sessions.update().where(sessions.c.id == session_id).values(held=held)
    if connection.execute(changed).rowcount == 0:
        return False
    if held is not None and deposits.is_busy(connection, session_id, now):
        raise Going
    return True


def note_audio_deleted(connection: Connection, ids: Sequence[str], at: datetime) -> None:
    """Note that these sessions have no audio any more."""
    connection.execute(
        sessions.update().where(sessions.c.id.in_(ids)).values(audio_deleted_at=at, audio_bytes=0)
    )
    connection.execute(jobs.delete().where(jobs.c.session_id.in_(ids), jobs.c.state == "off"))
    deposits.forget(connection, ids)


def delete_sessions(connection: Connection, ids: Sequence[str]) -> None:
    """Delete sessions with their jobs, transcripts, ladders, and events that no sink waits for.

    What object stores have of them is deleted from now on, too.
    """
    deposits.forget(connection, ids)
    connection.execute(events.delete().where(events.c.session_id.in_(ids), ~_awaited()))
    connection.execute(sessions.delete().where(sessions.c.id.in_(ids)))


def delete_events(connection: Connection, before: datetime, limit: int) -> int:
    """Delete events recorded before this time that no sink waits for; returns how many."""
    # In order of seq, which is that of time: no other index is needed to find the old ones.
    oldest = sa.select(events.c.seq, events.c.recorded_at).order_by(events.c.seq).limit(limit)
    some = oldest.subquery()
    due = sa.select(some.c.seq).where(some.c.recorded_at < before)
    return connection.execute(events.delete().where(events.c.seq.in_(due), ~_awaited())).rowcount


def _awaited() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        deliveries.c.seq == events.c.seq, deliveries.c.state.in_(("pending", "parked"))
    )


def _job_in(*states: str) -> sa.ColumnElement[bool]:
    return sa.exists().where(jobs.c.session_id == sessions.c.id, jobs.c.state.in_(states))


def _oldest(
    connection: Connection, query: sa.Select[Any], limit: int, node: str | None
) -> list[SessionRow]:
    if node is not None:
        query = query.where(sessions.c.node == node)
    query = query.order_by(sessions.c.started_at, sessions.c.id).limit(limit)
    return [row_of(row) for row in connection.execute(query).mappings()]
