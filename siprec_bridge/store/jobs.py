"""Transcription jobs: on disk before a slot is asked for, and until the transcript is committed.

queued → running (`claim`) → done (`finish`), queued again (`reschedule`, `release`) or failed
(`fail`) → queued (`retry`, `hand_over`). Where the recogniser is switched off, queued ones are off
(`shelve`) until it is not (`unshelve`). Times are handed in: the store reads no clock.

Jobs run in the order of `order_at`, which is fixed when a job is queued: the time at which it would be
done if its source had a recogniser of its own, at the pace of speech, that took short calls first. So
short ones go before long ones, a source's backlog does not get in the way of others, and nothing
starves: what is queued after that time comes later. Priorities differ by a day.

Where nodes share the database, a running job has a lease, which its runner renews. After it, another
node takes the job, if it can reach the audio; what the first one says of it then is not heard. Leases
are in the server's time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.dialect import common_time
from siprec_bridge.store.schema import jobs, values_of
from siprec_bridge.transcript import RunFacts

JobState = Literal["queued", "running", "done", "failed", "off"]
Priority = Literal["urgent", "normal", "low"]

# A job of low priority is treated as if it had come a day later, an urgent one a day earlier.
PRIORITIES: Final[Mapping[Priority, timedelta]] = {
    "urgent": timedelta(days=-1),
    "normal": timedelta(0),
    "low": timedelta(days=1),
}
LONGEST_HEAD_START_S: Final = 3600.0  # what a call's own length may cost it
LONGEST_BATCH_S: Final = 900.0  # of audio: no job waits for the end of a long one in its run

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
    priority: Priority = "normal"
    source: str = ""  # who shares the recogniser fairly with others: the peer's address
    prompt: str | None = None  # what the recogniser is told to expect
    tried: str = ""  # vendors that gave it up, by commas
    order_at: datetime | None = None  # its place in the queue; `insert` finds it


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job's place: jobs and seconds of audio that are before it."""

    position: int  # from 1
    audio_before: float


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
_HERE = sa.bindparam("here", type_=jobs.c.node.type)
_WITHIN_REACH = sa.or_(_HERE.is_(None), jobs.c.node.is_(None), jobs.c.node == _HERE)
_QUEUED_AND_DUE = sa.and_(
    jobs.c.state == "queued",
    sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= _NOW),
    _WITHIN_REACH,
)
_LEASE_IS_OVER = sa.and_(
    jobs.c.state == "running",
    jobs.c.lease_until < sa.bindparam("common", type_=jobs.c.lease_until.type),
    _WITHIN_REACH,
)
_VENDOR: sa.BindParameter[str] = sa.bindparam("vendor", type_=sa.String)
_MOST = sa.bindparam("most", type_=sa.Integer)
_ORDER = (jobs.c.order_at, jobs.c.id)
_NEAREST: Final = 1000  # of the queue are looked at, where all of it would take too long
# What one run may have in common: it is given to the recogniser once.
_ALIKE = ("vendor", "model", "language", "prompt")
# A query for each state and vendor: only then does the index give what is first, however long the queue.
_FIRST = {
    state: sa.select(
        jobs.c.order_at,
        jobs.c.id,
        jobs.c.audio_seconds,
        jobs.c.solo,
        *(jobs.c[name] for name in _ALIKE),
    )
    .where(due, jobs.c.vendor == _VENDOR)
    .order_by(*_ORDER)
    .limit(1)
    .with_for_update(skip_locked=True)  # for databases with several writers
    for state, due in (("queued", _QUEUED_AND_DUE), ("running", _LEASE_IS_OVER))
}
_SAME = tuple(
    jobs.c[name].is_not_distinct_from(sa.bindparam(f"same_{name}", type_=sa.String))
    for name in _ALIKE
)
_NEAR = (
    sa.select(jobs.c.id)
    .where(jobs.c.state == "queued", jobs.c.vendor == _VENDOR)
    .order_by(*_ORDER)
    .limit(_NEAREST)
)
_COMPANY = {
    state: sa.select(jobs.c.order_at, jobs.c.id, jobs.c.audio_seconds)
    .where(*due, ~jobs.c.solo, jobs.c.id != sa.bindparam("first"), *_SAME)
    .order_by(*_ORDER)
    .limit(_MOST)
    .with_for_update(skip_locked=True)
    for state, due in (
        ("queued", (_QUEUED_AND_DUE, jobs.c.id.in_(_NEAR.scalar_subquery()))),
        ("running", (_LEASE_IS_OVER,)),
    )
}
_TAKE = (
    jobs.update()
    .where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)))
    .values(
        state="running",
        attempts=jobs.c.attempts + 1,
        started_at=_NOW,
        finished_at=None,
        runner=_HERE,
        lease_until=sa.bindparam("until", type_=jobs.c.lease_until.type),
        # A model is one of its vendor's.
        model=sa.case((jobs.c.vendor == sa.bindparam("taker"), jobs.c.model), else_=None),
        vendor=sa.bindparam("taker", type_=sa.String),
    )
    .returning(jobs)
)
_AHEAD = sa.select(
    sa.func.sum(
        sa.select(jobs.c.audio_seconds)
        .where(
            jobs.c.state == "queued",
            jobs.c.source == sa.bindparam("source"),
            jobs.c.priority == sa.bindparam("priority"),
            jobs.c.audio_seconds <= sa.bindparam("audio_seconds"),
        )
        .order_by(jobs.c.audio_seconds.desc())
        .limit(_NEAREST)
        .subquery()
        .c.audio_seconds
    )
)
_BACKLOG = (
    sa.select(jobs.c.state, sa.func.count(), sa.func.sum(jobs.c.audio_seconds))
    .where(jobs.c.state.in_(("queued", "running", "failed")))
    .group_by(jobs.c.state)
)
_WAITING = (
    sa.select(jobs.c.vendor, sa.func.count(), sa.func.sum(jobs.c.audio_seconds))
    .where(jobs.c.state == "queued", _WITHIN_REACH)
    .group_by(jobs.c.vendor)
)
_READY = sa.select(
    sa.func.count(),
).select_from(
    sa.select(jobs.c.id)
    .where(jobs.c.state == "queued", jobs.c.vendor == _VENDOR, _WITHIN_REACH)
    .limit(_MOST)
    .subquery()
)
_NEXT = (
    sa.select(sa.func.coalesce(jobs.c.not_before, jobs.c.created_at).label("at"))
    .where(jobs.c.state == "queued", jobs.c.vendor == _VENDOR, _WITHIN_REACH)
    .order_by(*_ORDER)
    .limit(_NEAREST)
    .subquery()
)
_NEXT_DUE = sa.select(sa.func.min(_NEXT.c.at, type_=jobs.c.created_at.type))


def insert(connection: Connection, row: JobRow) -> None:
    """Add a job for a stored session. An id that exists ends in a StoreError."""
    values = {name: getattr(row, name) for name in JobRow.__slots__}
    if row.order_at is None:
        ahead = connection.scalar(_AHEAD, values) or 0.0
        own = min(row.audio_seconds, LONGEST_HEAD_START_S)
        in_line = timedelta(seconds=ahead + own)
        values["order_at"] = row.created_at + in_line + PRIORITIES[row.priority]
    connection.execute(_INSERT, values)


def get(connection: Connection, job_id: str) -> JobRow | None:
    """The job of this id."""
    return next(map(_row, connection.execute(_GET, {"this": job_id}).mappings()), None)


def claim(
    connection: Connection,
    limit: int,
    now: datetime,
    *,
    vendor: str,
    instead_of: Sequence[str] = (),
    node: str | None = None,
    lease: timedelta = LEASE,
) -> list[JobRow]:
    """Take what this vendor is to run next: they are running from now on, the attempt is counted.

    That is the first due job, and up to `limit` in all that differ in nothing the recogniser is told,
    as long as they are short. A solo one comes alone. Jobs `instead_of` other vendors become its own.
    `node`: who takes them, where there are several; jobs of a runner whose lease is over, too.
    """
    common = common_time(connection, now)
    here = {"now": now, "here": node, "common": common}
    states = ("queued",) if node is None else ("queued", "running")
    found = [
        row
        for one in (vendor, *instead_of)
        for state in states
        for row in connection.execute(_FIRST[state], here | {"vendor": one}).mappings()
    ]
    if not found:
        return []
    first = min(found, key=_place)
    ids, seconds = [first["id"]], first["audio_seconds"]
    if limit > 1 and not first["solo"]:
        alike = {f"same_{name}": first[name] for name in _ALIKE} | {"vendor": first["vendor"]}
        wanted = here | alike | {"first": first["id"], "most": limit - 1}
        company = [
            row
            for state in states
            for row in connection.execute(_COMPANY[state], wanted).mappings()
        ]
        for row in sorted(company, key=_place)[: limit - 1]:
            seconds += row["audio_seconds"]
            if seconds > LONGEST_BATCH_S:
                break
            ids.append(row["id"])
    until = common + lease if node is not None else None
    taken = connection.execute(
        _TAKE, {"ids": ids, "now": now, "taker": vendor, "here": node, "until": until}
    ).mappings()
    return sorted(map(_row, taken), key=lambda job: (job.order_at or job.created_at, job.id))


def latest_number(connection: Connection, session_id: str) -> int:
    """The highest number at the end of an id of a session's jobs; 0 when it has none."""
    ids = connection.scalars(sa.select(jobs.c.id).where(jobs.c.session_id == session_id))
    numbers = [id.rpartition(".")[2] for id in ids]
    return max((int(one) for one in numbers if one.isdecimal()), default=0)


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


def refund(connection: Connection, attempts: Mapping[str, int]) -> None:
    """Take back attempts that were not the jobs' fault, by job; they need no run alone either."""
    for job_id, count in attempts.items():
        connection.execute(
            jobs.update()
            .where(jobs.c.id == job_id, jobs.c.state.in_(("queued", "running")))
            .values(
                attempts=sa.case((jobs.c.attempts > count, jobs.c.attempts - count), else_=0),
                solo=False,
            )
        )


def hand_over(
    connection: Connection,
    row: JobRow,
    vendor: str,
    facts: RunFacts | None = None,
    *,
    runner: str | None = None,
) -> bool:
    """Queue a running job again for another vendor, with all attempts anew and its own model.

    False: it is not this runner's any more.
    """
    tried = ",".join([*filter(None, row.tried.split(",")), row.vendor])
    return _end_run(
        connection,
        row.id,
        facts,
        runner,
        state="queued",
        vendor=vendor,
        model=None,
        tried=tried,
        attempts=0,
        solo=False,
        not_before=None,
    )


def adopt(
    connection: Connection, vendors: Sequence[str], default: str, node: str | None = None
) -> int:
    """Give jobs of vendors that there are no longer to the default one; returns how many.

    Of several nodes, another may have the vendor: only jobs that no other can run are taken.
    """
    orphans = jobs.c.vendor.not_in(vendors) & jobs.c.state.in_(("queued", "failed", "off"))
    if node is not None:
        orphans &= jobs.c.node == node
    return connection.execute(
        jobs.update().where(orphans).values(vendor=default, model=None)
    ).rowcount


def shelve(connection: Connection, vendor: str, node: str | None = None) -> int:
    """Have queued jobs of a vendor that is switched off wait for nothing; returns how many.

    They keep nobody from deleting what they are about. Of several nodes, another may have it
    switched on: only jobs that no other can run are shelved.
    """
    queued = (jobs.c.state == "queued") & (jobs.c.vendor == vendor)
    if node is not None:
        queued &= jobs.c.node == node
    return connection.execute(jobs.update().where(queued).values(state="off")).rowcount


def unshelve(connection: Connection, vendors: Sequence[str], node: str | None = None) -> int:
    """Queue what was shelved, and whose vendor is switched on now; returns how many there were."""
    shelved = (jobs.c.state == "off") & jobs.c.vendor.in_(vendors)
    if node is not None:
        shelved &= sa.or_(jobs.c.node.is_(None), jobs.c.node == node)
    return connection.execute(jobs.update().where(shelved).values(state="queued")).rowcount


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
        query.values(state="queued", attempts=0, not_before=None, finished_at=None, tried="")
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


def places(connection: Connection, limit: int = 10_000) -> dict[str, Waiting]:
    """The first so many queued jobs with their places, in order."""
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.audio_seconds)
        .where(jobs.c.state == "queued")
        .order_by(*_ORDER)
        .limit(limit)
    )
    found: dict[str, Waiting] = {}
    before = 0.0
    for position, (id, seconds) in enumerate(rows, 1):
        found[id] = Waiting(position, before)
        before += seconds
    return found


def waiting(connection: Connection, node: str | None = None) -> dict[str, tuple[int, float]]:
    """Queued jobs that this node can run and their seconds of audio, by vendor."""
    rows = connection.execute(_WAITING, {"here": node})
    return {vendor: (count, float(seconds)) for vendor, count, seconds in rows}


def ready(
    connection: Connection, vendors: Sequence[str], most: int, node: str | None = None
) -> int:
    """How many of these vendors' queued jobs this node can run, counted up to `most` for each."""
    return sum(
        connection.scalar(_READY, {"vendor": vendor, "here": node, "most": most}) or 0
        for vendor in vendors
    )


def recent_runs(connection: Connection, limit: int = 100) -> list[tuple[str, float, float]]:
    """Vendor, seconds of audio and of time of the latest runs, oldest first; from so many jobs."""
    latest = (
        sa.select(jobs.c.vendor, jobs.c.started_at, jobs.c.audio_seconds, jobs.c.run_seconds)
        .where(jobs.c.state == "done", jobs.c.run_seconds > 0)
        .order_by(jobs.c.created_at.desc())
        .limit(limit)
        .subquery()
    )
    # Jobs of one run were started at once.
    runs = connection.execute(
        sa.select(
            latest.c.vendor,
            sa.func.sum(latest.c.audio_seconds),
            sa.func.max(latest.c.run_seconds),
        )
        .group_by(latest.c.vendor, latest.c.started_at)
        .order_by(latest.c.started_at)
    )
    return [(vendor, float(audio), float(seconds)) for vendor, audio, seconds in runs]


def recent_speed(connection: Connection) -> float | None:
    """Seconds of audio done in a second, as the latest runs did and as many as run now; or None."""
    runs = recent_runs(connection)
    running = connection.scalar(
        sa.select(sa.func.count(jobs.c.started_at.distinct())).where(jobs.c.state == "running")
    )
    audio, seconds = sum(one[1] for one in runs), sum(one[2] for one in runs)
    return max(1, running or 0) * audio / seconds if audio else None


def next_due(
    connection: Connection, vendors: Sequence[str], node: str | None = None
) -> datetime | None:
    """When the first of these vendors' jobs may run (perhaps long ago); None: none is queued.

    Of a long queue, only its beginning is looked at.
    """
    times = (connection.scalar(_NEXT_DUE, {"vendor": vendor, "here": node}) for vendor in vendors)
    return min((at for at in times if at is not None), default=None)


def _place(row: sa.RowMapping) -> tuple[datetime, str]:
    return row["order_at"], row["id"]


def _end_run(
    connection: Connection,
    job_id: str,
    facts: RunFacts | None,
    runner: str | None,
    **values: object,
) -> bool:
    if facts is not None:
        values |= {
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
