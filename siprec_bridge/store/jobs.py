"""Transcription jobs: on disk before a slot is asked for, and until the transcript is committed.

queued → running (`claim`) → done (`finish`), queued again (`reschedule`, `release`) or failed
(`fail`) → queued (`retry`). Times are handed in: the store reads no clock.

Where nodes share the database, a running job has a lease, which its runner renews. After it, another
node takes the job, if it can reach the audio; what the first one says of it then is not heard. Leases
are in the server's time.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.dialect import common_time
from siprec_bridge.store.schema import jobs, values_of
from siprec_bridge.transcript import RunFacts

JobState = Literal["queued", "running", "done", "failed"]

LEASE = timedelta(seconds=60)


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
    node: str | None = None  # that has its audio; None: any
    runner: str | None = None  # node that runs it, or did
    lease_until: datetime | None = None


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
_NODE = sa.bindparam("here", type_=jobs.c.node.type)
_WITHIN_REACH = sa.or_(_NODE.is_(None), jobs.c.node.is_(None), jobs.c.node == _NODE)
# Of its own: as a subquery, PostgreSQL might run it again for each row, and take more than asked.
_DUE = (
    sa.select(jobs.c.id)
    .where(
        sa.or_(
            sa.and_(
                jobs.c.state == "queued",
                sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= _NOW),
            ),
            sa.and_(
                jobs.c.state == "running",
                jobs.c.lease_until < sa.bindparam("common", type_=jobs.c.lease_until.type),
            ),
        ),
        _WITHIN_REACH,
    )
    .order_by(jobs.c.created_at, jobs.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("due")
)
_CLAIM = (
    jobs.update()
    .where(jobs.c.id.in_(sa.select(_DUE.c.id)))
    .values(
        state="running",
        attempts=jobs.c.attempts + 1,
        started_at=_NOW,
        finished_at=None,
        runner=_NODE,
        lease_until=sa.bindparam("until", type_=jobs.c.lease_until.type),
    )
    .returning(jobs)
)
_WAITING = sa.select(sa.func.count()).where(jobs.c.state == "queued", _WITHIN_REACH)
_BACKLOG = (
    sa.select(jobs.c.state, sa.func.count(), sa.func.sum(jobs.c.audio_seconds))
    .where(jobs.c.state.in_(("queued", "running", "failed")))
    .group_by(jobs.c.state)
)
_NEXT_DUE = sa.select(
    sa.func.min(
        sa.func.coalesce(jobs.c.not_before, jobs.c.created_at), type_=jobs.c.created_at.type
    )
).where(jobs.c.state == "queued", _WITHIN_REACH)


def insert(connection: Connection, row: JobRow) -> None:
    """Add a job for a stored session. An id that exists ends in a StoreError."""
    connection.execute(_INSERT, {name: getattr(row, name) for name in JobRow.__slots__})


def get(connection: Connection, job_id: str) -> JobRow | None:
    """The job of this id."""
    return next(map(_row, connection.execute(_GET, {"this": job_id}).mappings()), None)


def claim(
    connection: Connection,
    limit: int,
    now: datetime,
    node: str | None = None,
    lease: timedelta = LEASE,
) -> list[JobRow]:
    """Take the oldest due jobs: they are running from now on, and the attempt is counted.

    `node`: who takes them, where there are several; jobs of a runner whose lease is over, too.
    """
    common = common_time(connection, now)
    taken = connection.execute(
        _CLAIM,
        {
            "most": limit,
            "now": now,
            "here": node,
            "common": common,
            "until": common + lease if node is not None else None,
        },
    ).mappings()
    return sorted(map(_row, taken), key=lambda job: (job.created_at, job.id))


def renew(
    connection: Connection, job_ids: list[str], now: datetime, node: str, lease: timedelta = LEASE
) -> set[str]:
    """Go on running these jobs; returns those that are still this node's to run."""
    until = common_time(connection, now) + lease
    kept = connection.execute(
        jobs.update()
        .where(jobs.c.id.in_(job_ids), jobs.c.state == "running", jobs.c.runner == node)
        .values(lease_until=until)
        .returning(jobs.c.id)
    )
    return set(kept.scalars())


def waiting(connection: Connection, node: str | None = None) -> int:
    """How many are queued that this node can run."""
    return connection.scalar(_WAITING, {"here": node}) or 0


def finish(connection: Connection, job_id: str, facts: RunFacts, at: datetime) -> None:
    """Note that the transcript is committed: call it in the same transaction.

    Whoever made it: there is one now.
    """
    _end_run(connection, job_id, facts, None, state="done", finished_at=at, reason=facts.reason)


def reschedule(
    connection: Connection,
    job_id: str,
    not_before: datetime,
    reason: str,
    facts: RunFacts | None = None,
    *,
    solo: bool = False,
    runner: str | None = None,
) -> bool:
    """Queue a job again after a failed run that counts. Once solo, it stays solo.

    False: it is not this runner's any more.
    """
    return _end_run(
        connection,
        job_id,
        facts,
        runner,
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
    *,
    runner: str | None = None,
) -> bool:
    """Park a job: no further run until `retry`. False: it is not this runner's any more."""
    return _end_run(
        connection, job_id, facts, runner, state="failed", finished_at=at, reason=reason
    )


def release(
    connection: Connection,
    job_ids: list[str],
    not_before: datetime | None = None,
    *,
    runner: str | None = None,
) -> None:
    """Hand back jobs whose run did not come about; the attempt is not counted."""
    query = jobs.update().where(jobs.c.id.in_(job_ids), jobs.c.state == "running")
    if runner is not None:
        query = query.where(jobs.c.runner == runner)
    connection.execute(
        query.values(state="queued", attempts=jobs.c.attempts - 1, not_before=not_before)
    )


def requeue_running(connection: Connection, node: str | None = None) -> int:
    """Queue what was running when the process died, uncounted; returns how many there were.

    What this node ran, or all.
    """
    query = jobs.update().where(jobs.c.state == "running")
    if node is not None:
        query = query.where(jobs.c.runner == node)
    return connection.execute(
        query.values(state="queued", attempts=jobs.c.attempts - 1, not_before=None)
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


def next_due(connection: Connection, node: str | None = None) -> datetime | None:
    """When the first queued job may run (perhaps long ago), or None when none is queued."""
    return connection.scalar(_NEXT_DUE, {"here": node})


def _end_run(
    connection: Connection,
    job_id: str,
    facts: RunFacts | None,
    runner: str | None,
    **values: object,
) -> bool:
    if facts is not None:
        values |= {
            "model": facts.model,
            "exit_code": facts.exit_code,
            "stderr_tail": facts.stderr_tail,
            "run_seconds": facts.duration,
            "temp_bytes": facts.temp_bytes,
        }
    query = _UPDATE
    if runner is not None:
        query = query.where(jobs.c.state == "running", jobs.c.runner == runner)
    return connection.execute(query, values | {"this": job_id}).rowcount == 1


def _rows(connection: Connection, query: sa.Select[Any]) -> list[JobRow]:
    return [_row(row) for row in connection.execute(query).mappings()]


def _row(row: sa.RowMapping) -> JobRow:
    values = values_of(row)
    # SQLite keeps 3.0 as 3 and does not always turn it back in RETURNING.
    return JobRow(**(values | {"audio_seconds": float(values["audio_seconds"])}))
