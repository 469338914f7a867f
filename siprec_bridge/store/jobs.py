"""Transcription jobs: on disk before a slot is asked for, and until the transcript is committed.

queued → running (`claim`) → done (`finish`), queued again (`reschedule`, `release`) or failed
(`fail`) → queued (`retry`). Times are handed in: the store reads no clock.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.schema import jobs, values_of
from siprec_bridge.transcript import RunFacts

JobState = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class JobRow:
    """One session's transcription, with the facts of its latest run."""

    id: str
    session_id: str
    vendor: str
    audio_seconds: float
    created_at: datetime
    state: JobState = "queued"
    attempts: int = 0  # runs begun, except those handed back by `release`
    not_before: datetime | None = None
    model: str | None = None
    language: str | None = None
    solo: bool = False  # to be run alone: its batch failed, and it may be the reason
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str | None = None
    exit_code: int | None = None
    stderr_tail: str | None = None
    run_seconds: float | None = None
    temp_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is still to be transcribed (queued or running), and what was given up."""

    jobs: int
    audio_seconds: float
    failed: int


# Made once: what SQLAlchemy spends on making a statement is more than SQLite spends on it.
_INSERT = jobs.insert()
_UPDATE = jobs.update().where(jobs.c.id == sa.bindparam("this"))
_GET = jobs.select().where(jobs.c.id == sa.bindparam("this"))
_NOW = sa.bindparam("now", type_=jobs.c.started_at.type)
_CLAIM = (
    jobs.update()
    .where(
        jobs.c.id.in_(
            sa.select(jobs.c.id)
            .where(
                jobs.c.state == "queued",
                sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= _NOW),
            )
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(sa.bindparam("most", type_=sa.Integer))
            .with_for_update(skip_locked=True)  # for databases with several writers
            .scalar_subquery()
        )
    )
    .values(state="running", attempts=jobs.c.attempts + 1, started_at=_NOW, finished_at=None)
    .returning(jobs)
)
_BACKLOG = (
    sa.select(jobs.c.state, sa.func.count(), sa.func.sum(jobs.c.audio_seconds))
    .where(jobs.c.state.in_(("queued", "running", "failed")))
    .group_by(jobs.c.state)
)
_NEXT_DUE = sa.select(
    sa.func.min(
        sa.func.coalesce(jobs.c.not_before, jobs.c.created_at), type_=jobs.c.created_at.type
    )
).where(jobs.c.state == "queued")


def insert(connection: Connection, row: JobRow) -> None:
    """Add a job for a stored session. An id that exists ends in a StoreError."""
    connection.execute(_INSERT, {name: getattr(row, name) for name in JobRow.__slots__})


def get(connection: Connection, job_id: str) -> JobRow | None:
    """The job of this id."""
    return next(map(_row, connection.execute(_GET, {"this": job_id}).mappings()), None)


def claim(connection: Connection, limit: int, now: datetime) -> list[JobRow]:
    """Take the oldest due jobs: they are running from now on, and the attempt is counted."""
    taken = connection.execute(_CLAIM, {"most": limit, "now": now}).mappings()
    return sorted(map(_row, taken), key=lambda job: (job.created_at, job.id))


def finish(connection: Connection, job_id: str, facts: RunFacts, at: datetime) -> None:
    """Note that the transcript is committed: call it in the same transaction."""
    _end_run(connection, job_id, facts, state="done", finished_at=at, reason=facts.reason)


def reschedule(
    connection: Connection,
    job_id: str,
    not_before: datetime,
    reason: str,
    facts: RunFacts | None = None,
    *,
    solo: bool = False,
) -> None:
    """Queue a job again after a failed run that counts. Once solo, it stays solo."""
    _end_run(
        connection,
        job_id,
        facts,
        state="queued",
        not_before=not_before,
        reason=reason,
        **({"solo": True} if solo else {}),
    )


def fail(
    connection: Connection,
    job_id: str,
    reason: str,
    at: datetime,
    facts: RunFacts | None = None,
) -> None:
    """Park a job: no further run until `retry`."""
    _end_run(connection, job_id, facts, state="failed", finished_at=at, reason=reason)


def release(connection: Connection, job_ids: list[str], not_before: datetime | None = None) -> None:
    """Hand back jobs whose run did not come about; the attempt is not counted."""
    connection.execute(
        jobs.update()
        .where(jobs.c.id.in_(job_ids), jobs.c.state == "running")
        .values(state="queued", attempts=jobs.c.attempts - 1, not_before=not_before)
    )


def requeue_running(connection: Connection) -> int:
    """Queue what was running when the process died, uncounted; returns how many there were."""
    return connection.execute(
        jobs.update()
        .where(jobs.c.state == "running")
        .values(state="queued", attempts=jobs.c.attempts - 1, not_before=None)
    ).rowcount


def retry(connection: Connection, job_id: str | None = None) -> int:
    """Queue a failed job, or all of them, with all attempts anew; returns how many there were."""
    query = jobs.update().where(jobs.c.state == "failed")
    if job_id is not None:
        query = query.where(jobs.c.id == job_id)
    return connection.execute(
        query.values(state="queued", attempts=0, not_before=None, finished_at=None)
    ).rowcount


def listing(
    connection: Connection,
    limit: int,
    *,
    state: JobState | None = None,
    session_id: str | None = None,
    before: tuple[datetime, str] | None = None,
) -> list[JobRow]:
    """Jobs, latest first. `before` = (created_at, id) of the last row of the page before."""
    query = jobs.select()
    if state is not None:
        query = query.where(jobs.c.state == state)
    if session_id is not None:
        query = query.where(jobs.c.session_id == session_id)
    if before is not None:
        query = query.where(
            sa.tuple_(jobs.c.created_at, jobs.c.id)
            < sa.tuple_(
                sa.literal(before[0], jobs.c.created_at.type),
                sa.literal(before[1], jobs.c.id.type),
            )
        )
    return _rows(
        connection, query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    )


def backlog(connection: Connection) -> Backlog:
    """How much is still to be done."""
    rows = connection.execute(_BACKLOG).all()
    waiting = [(count, seconds) for state, count, seconds in rows if state != "failed"]
    return Backlog(
        jobs=sum(count for count, _ in waiting),
        audio_seconds=sum(seconds for _, seconds in waiting),
        failed=sum(count for state, count, _ in rows if state == "failed"),
    )


def next_due(connection: Connection) -> datetime | None:
    """When the first queued job may run (perhaps long ago), or None when none is queued."""
    return connection.scalar(_NEXT_DUE)


def _end_run(connection: Connection, job_id: str, facts: RunFacts | None, **values: object) -> None:
    if facts is not None:
        values |= {
            "model": facts.model,
            "exit_code": facts.exit_code,
            "stderr_tail": facts.stderr_tail,
            "run_seconds": facts.duration,
            "temp_bytes": facts.temp_bytes,
        }
    connection.execute(_UPDATE, values | {"this": job_id})


def _rows(connection: Connection, query: sa.Select[Any]) -> list[JobRow]:
    return [_row(row) for row in connection.execute(query).mappings()]


def _row(row: sa.RowMapping) -> JobRow:
    values = values_of(row)
    # SQLite keeps 3.0 as 3 and does not always turn it back in RETURNING.
    return JobRow(**(values | {"audio_seconds": float(values["audio_seconds"])}))
