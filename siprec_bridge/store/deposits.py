"""What becomes of a session's files after the call: encrypted, taken to a store, deleted here.

pending → (`kept`) kept → (`drop`, `dropped`) done, or straight to done; anything → deleting
(`forget`) → no row. `again` makes a pending one of any but deleting. Times are handed in.

As of jobs: whoever works at a deposit has a lease, which it renews; what it says after it has lost
it is not heard. All changes that a worker makes therefore name the worker.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.dialect import common_time, insert_new
from siprec_bridge.store.schema import deposits, jobs, sessions, values_of

DepositState = Literal["pending", "kept", "done", "deleting"]
Dropping = Literal["plain", "local"]

LEASE = timedelta(seconds=60)
_ALONE = "-"  # the runner where there is but one node
ALTERING, DELETING = (
    "altering-",
    "deleting-",
)  # how runners are called that have files to themselves
_LENT = "lent"  # the reason of a row that is there for its lease alone: nobody keeps these files
_KEPT = deposits.c.reason.is_distinct_from(_LENT)

# Made once: what SQLAlchemy spends on making a statement is more than SQLite spends on it.
_GET = deposits.select().where(deposits.c.session_id == sa.bindparam("session"), _KEPT)


@dataclass(frozen=True, slots=True)
class DepositRow:
    """One session's. `manifest` is JSON; `stale` are further objects' names that must go.

    `plain_gone_at`, `local_gone_at`: since when nobody may count on the plain files, on any files here;
    `dropping` is set until they are deleted.
    """

    session_id: str
    state: DepositState
    created_at: datetime
    not_before: datetime
    node: str | None = None
    attempts: int = 0
    reason: str | None = None
    place: str | None = None
    prefix: str | None = None
    manifest: str | None = None
    stale: tuple[str, ...] = ()
    octets: int | None = None
    stored_at: datetime | None = None
    sealed_at: datetime | None = None
    plain_gone_at: datetime | None = None
    local_gone_at: datetime | None = None
    dropping: Dropping | None = None
    runner: str | None = None
    lease_until: datetime | None = None

    @property
    def lent(self) -> bool:
        """Whether it is there for its lease alone; see `lend`."""
        return self.reason == _LENT


class DepositFields(TypedDict, total=False):
    """What a worker may change."""

    state: DepositState
    not_before: datetime
    attempts: int
    reason: str | None
    place: str | None
    prefix: str | None
    manifest: str | None
    stale: tuple[str, ...]
    octets: int | None
    stored_at: datetime | None
    sealed_at: datetime | None
    plain_gone_at: datetime | None
    local_gone_at: datetime | None
    dropping: Dropping | None


@dataclass(frozen=True, slots=True)
class DepositBacklog:
    """What is still to be kept, and what to be deleted from stores; `oldest_at` of the former."""

    pending: int
    octets: int
    oldest_at: datetime | None
    deleting: int
    failing: int


def add(connection: Connection, session_id: str, node: str | None, at: datetime) -> None:
    """Enter a session whose audio is finished; nothing happens when it is entered already."""
    connection.execute(
        insert_new(connection, deposits),
        {
            "session_id": session_id,
            "node": node,
            "state": "pending",
            "created_at": at,
            "not_before": at,
            "attempts": 0,
        },
    )
    connection.execute(  # whoever has it to himself keeps his lease
        deposits.update()
        .where(deposits.c.session_id == session_id, ~_KEPT)
        .values(state="pending", node=node, created_at=at, not_before=at, reason=None)
    )


def older(connection: Connection, limit: int) -> list[tuple[str, str | None]]:
    """So many sessions of before, with their node, that have audio and were never entered."""
    rows = connection.execute(
        sa.select(sessions.c.id, sessions.c.node)
        .where(
            sessions.c.state == "finished",
            sessions.c.audio_deleted_at.is_(None),
            ~sa.exists().where(deposits.c.session_id == sessions.c.id, _KEPT),
        )
        .order_by(sessions.c.started_at, sessions.c.id)
        .limit(limit)
    )
    return [(session_id, node) for session_id, node in rows]


def get(connection: Connection, session_id: str) -> DepositRow | None:
    """A session's deposit."""
    found = connection.execute(_GET, {"session": session_id})
    return next(map(_row, found.mappings()), None)


def of_ids(connection: Connection, ids: Sequence[str]) -> dict[str, DepositRow]:
    """Those of these sessions that have one, by session."""
    found = connection.execute(deposits.select().where(deposits.c.session_id.in_(ids), _KEPT))
    return {row.session_id: row for row in map(_row, found.mappings())}


def listing(
    connection: Connection, limit: int, *, state: DepositState | None = None, failing: bool = False
) -> list[DepositRow]:
    """Deposits, oldest first; `failing`: those whose latest try failed."""
    query = deposits.select().where(_KEPT)
    query = query.order_by(deposits.c.created_at, deposits.c.session_id).limit(limit)
    if state is not None:
        query = query.where(deposits.c.state == state)
    if failing:
        query = query.where(deposits.c.state != "done", deposits.c.attempts > 0)
    return [_row(row) for row in connection.execute(query).mappings()]


def claim(
    connection: Connection,
    limit: int,
    now: datetime,
    *,
    node: str | None,
    shared: bool = True,
    early: bool = True,
    plain_before: datetime | None = None,
    but: Collection[str] = (),
) -> list[DepositRow]:
    """Take what is due, oldest first: it is this node's to work at for the time of a lease.

    What has files is due on the node that has them (`shared`: on any). Files are never dropped
    while a job may want them, and not even kept unless `early`; only those of deposits that were
    entered by `plain_before` are, whatever becomes of their jobs. `but`: not these.
    """
    common = common_time(connection, now)
    unheard = sa.exists().where(
        jobs.c.session_id == deposits.c.session_id,
        jobs.c.state.in_(("queued", "running", "failed", "off")),
    )
    ripe = sa.or_(~unheard, deposits.c.dropping.is_not(None), deposits.c.plain_gone_at.is_not(None))
    if plain_before is not None:
        # What was encrypted may lose its plain files then; anything else waits all the same.
        sealing = sa.or_(deposits.c.state == "pending", deposits.c.sealed_at.is_not(None))
        ripe = sa.or_(ripe, sa.and_(sealing, deposits.c.created_at < plain_before))
    if early:
        ripe = sa.or_(deposits.c.state == "pending", ripe)
    here: sa.ColumnElement[bool] = sa.true()
    if not shared:
        here = sa.or_(deposits.c.node.is_(None), deposits.c.node == node)
    due = (
        sa.select(deposits.c.session_id)
        .where(
            deposits.c.state != sa.literal_column("'done'"),
            deposits.c.not_before <= now,
            sa.or_(deposits.c.lease_until.is_(None), deposits.c.lease_until < common),
            sa.or_(deposits.c.state == "deleting", sa.and_(ripe, here)),
            deposits.c.session_id.not_in(list(but)),
        )
        .order_by(deposits.c.not_before, deposits.c.session_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = list(connection.scalars(due))
    if not ids:
        return []
    taken = connection.execute(
        deposits.update()
        .where(deposits.c.session_id.in_(ids))
        .values(runner=node or _ALONE, lease_until=common + LEASE)
        .returning(deposits)
    ).mappings()
    return sorted(map(_row, taken), key=lambda row: (row.not_before, row.session_id))


def renew(
    connection: Connection, ids: Collection[str], now: datetime, node: str | None
) -> set[str]:
    """Go on working at these; returns those that are still this node's."""
    until = common_time(connection, now) + LEASE
    kept = connection.execute(
        deposits.update()
        .where(deposits.c.session_id.in_(list(ids)), deposits.c.runner == (node or _ALONE))
        .values(lease_until=until)
        .returning(deposits.c.session_id)
    )
    return set(kept.scalars())


def release(connection: Connection, node: str | None, session_id: str | None = None) -> int:
    """Give up the lease of one, or of all that this node had when it died; returns how many."""
    theirs = deposits.c.runner == (node or _ALONE)
    if session_id is not None:
        theirs &= deposits.c.session_id == session_id
    lent = connection.execute(deposits.delete().where(theirs, ~_KEPT)).rowcount
    query = deposits.update().where(theirs).values(runner=None, lease_until=None)
    return lent + connection.execute(query).rowcount


def give_up(connection: Connection, session_id: str, now: datetime) -> None:
    """Give up a lease that is over, of whoever had it."""
    over = (deposits.c.session_id == session_id) & (
        deposits.c.lease_until < common_time(connection, now)
    )
    connection.execute(deposits.delete().where(over, ~_KEPT))
    connection.execute(deposits.update().where(over).values(runner=None, lease_until=None))


def note(
    connection: Connection,
    row: DepositRow,
    node: str | None,
    **fields: Unpack[DepositFields],
) -> bool:
    """Change a deposit that this node works at. False: it is another's, or to be deleted by now."""
    values: dict[str, Any] = dict(fields)
    if "stale" in fields:
        values["stale"] = json.dumps(fields["stale"])
    return (
        connection.execute(
            deposits.update()
            .where(
                deposits.c.session_id == row.session_id,
                deposits.c.state == row.state,
                deposits.c.runner == (node or _ALONE),
            )
            .values(**values)
        ).rowcount
        == 1
    )


def remeasure(connection: Connection, session_id: str, octets: int | None) -> None:
    """The session's folder holds so much now; None: it is to be looked at."""
    connection.execute(
        sessions.update().where(sessions.c.id == session_id).values(audio_bytes=octets)
    )


def again(connection: Connection, now: datetime, session_id: str | None = None) -> int:
    """Keep a session's files anew, whose files are here; or try at once all whose try failed.

    Returns how many.
    """
    query = deposits.update().values(attempts=0, not_before=now, reason=None)
    if session_id is None:
        query = query.where(deposits.c.state != "done", deposits.c.attempts > 0)
        return connection.execute(query).rowcount
    open_ = deposits.update().where(deposits.c.session_id == session_id)
    tried = connection.execute(
        open_.where(deposits.c.state.in_(("pending", "deleting"))).values(
            attempts=0, not_before=now, reason=None
        )
    ).rowcount
    if tried:
        return tried
    row = get(connection, session_id)
    if row is None or row.local_gone_at is not None:
        return 0
    values: dict[str, Any] = {"stored_at": None}
    if row.plain_gone_at is None:  # else what was encrypted is all that there is to send
        names = _names(row) if row.stored_at is not None else row.stale
        values |= {"manifest": None, "sealed_at": None, "stale": json.dumps(names)}
    return connection.execute(
        open_.where(deposits.c.dropping.is_(None)).values(
            state="pending", attempts=0, not_before=now, reason=None, **values
        )
    ).rowcount


def changed(connection: Connection, session_id: str, now: datetime) -> None:
    """A session's plain files, which are here, are others now: keep them anew, and nothing else.

    In the transaction that notes their new checksums. Whoever is sending the old ones has lost them.
    """
    row = get(connection, session_id)
    if row is None or row.state == "deleting":
        return
    connection.execute(
        deposits.update()
        .where(deposits.c.session_id == session_id)
        .values(
            state="pending", attempts=0, not_before=now, reason=None, stored_at=None, manifest=None,
            sealed_at=None, dropping=None, stale=json.dumps(_names(row)), runner=None,
            lease_until=None,
        )
    )  # fmt: skip


def take(connection: Connection, session_id: str, runner: str, now: datetime) -> DepositRow | None:
    """Have one to oneself for the time of a lease, as `runner`. None: somebody works at it."""
    common = common_time(connection, now)
    taken = connection.execute(
        deposits.update()
        .where(
            deposits.c.session_id == session_id,
            sa.or_(deposits.c.runner.is_(None), deposits.c.lease_until < common),
        )
        .values(runner=runner, lease_until=common + LEASE)
        .returning(deposits)
    ).mappings()
    return next(map(_row, taken), None)


def lend(connection: Connection, session_id: str, runner: str, now: datetime) -> DepositRow | None:
    """As `take`, also of a session that was never entered: for the time of the lease it has a row.

    Nobody else sees that one, and nothing becomes of its files. A hold that is being set is waited for.
    """
    connection.execute(
        sa.select(sessions.c.id).where(sessions.c.id == session_id).with_for_update()
    )
    connection.execute(
        insert_new(connection, deposits),
        {
            "session_id": session_id,
            "state": "done",
            "created_at": now,
            "not_before": now,
            "attempts": 0,
            "reason": _LENT,
        },
    )
    return take(connection, session_id, runner, now)


def seize(connection: Connection, session_id: str, runner: str, now: datetime) -> bool:
    """As `lend`, for a session that is to be deleted; False: its files are being changed, or deleted.

    Whoever sends them loses them: what he has sent goes, as soon as he has noticed.
    """
    if lend(connection, session_id, runner, now) is not None:
        return True
    if is_busy(connection, session_id, now):
        return False
    forget(connection, [session_id])
    lend(connection, session_id, runner, now)  # where no store has anything, that left no row
    return True


def is_busy(connection: Connection, session_id: str, now: datetime) -> bool:
    """Whether somebody changes or deletes a session's files, who cannot be stopped any more."""
    at_it = sa.or_(deposits.c.runner.like(f"{ALTERING}%"), deposits.c.runner.like(f"{DELETING}%"))
    going = sa.exists().where(
        sessions.c.id == deposits.c.session_id, sessions.c.audio_deleted_at.is_(None)
    )
    query = sa.select(deposits.c.session_id).where(
        deposits.c.session_id == session_id,
        sa.or_(
            at_it & (deposits.c.lease_until >= common_time(connection, now)),
            (deposits.c.state == "deleting") & going,
        ),
    )
    return connection.execute(query).first() is not None


def given_back(connection: Connection, session_id: str, runner: str, now: datetime) -> bool:
    """Files that were lent are others now. False: they are another's by now, or deleted."""
    lent = deposits.delete().where(
        deposits.c.session_id == session_id, deposits.c.runner == runner, ~_KEPT
    )
    if connection.execute(lent).rowcount:
        return True
    entered = get(connection, session_id)  # meanwhile
    return entered is not None and altered(connection, entered, runner, now)


def cut_off(
    connection: Connection, runners: str, now: datetime, *, node: str | None, shared: bool
) -> list[str]:
    """Sessions whose files are here (`shared`: or anywhere) and that a runner LIKE this had when it died."""
    over = deposits.c.runner.like(runners) & (deposits.c.lease_until < common_time(connection, now))
    query = sa.select(deposits.c.session_id).where(over)
    if not shared:
        query = query.where(sa.or_(deposits.c.node.is_(None), deposits.c.node == node))
    return list(connection.scalars(query))


def altered(
    connection: Connection,
    row: DepositRow,
    runner: str,
    now: datetime,
    sealed: str | None = None,
    octets: int | None = None,
) -> bool:
    """Files that somebody had to himself are here, and others now: they replace what a store has.

    `sealed`: the manifest of what is encrypted, and all that there is; None: they are to be listed.
    False: they are another's by now, or to be deleted.
    """
    values: dict[str, Any] = {"manifest": sealed, "octets": octets}
    if sealed is None:
        values["sealed_at"] = None
    return (
        connection.execute(
            deposits.update()
            .where(
                deposits.c.session_id == row.session_id,
                deposits.c.runner == runner,
                deposits.c.state != "deleting",
            )
            .values(
                state="pending", attempts=0, not_before=now, reason=None, stored_at=None,
                local_gone_at=None, dropping=None, stale=json.dumps(_names(row)), runner=None,
                lease_until=None, **values,
            )
        ).rowcount
        == 1
    )  # fmt: skip


def brought_back(connection: Connection, session_id: str, not_before: datetime | None) -> bool:
    """The files are here again, until `not_before`; None: for good."""
    values: dict[str, Any] = {"local_gone_at": None, "dropping": None, "state": "done"}
    if not_before is not None:
        values |= {"state": "kept", "not_before": not_before}
    query = deposits.update().where(
        deposits.c.session_id == session_id, deposits.c.state.in_(("kept", "done"))
    )
    return connection.execute(query.values(**values)).rowcount == 1


def drop_local(connection: Connection, ids: Sequence[str], now: datetime) -> set[str]:
    """Have the local files of these deleted for want of room; returns those that a store has.

    Of the others nothing is changed, nor of those that a job may want or that are worked at.
    """
    unheard = sa.exists().where(
        jobs.c.session_id == deposits.c.session_id,
        jobs.c.state.in_(("queued", "running", "failed")),
    )
    dropped = connection.execute(
        deposits.update()
        .where(
            deposits.c.session_id.in_(ids),
            deposits.c.state.in_(("kept", "done")),
            deposits.c.stored_at.is_not(None),
            deposits.c.local_gone_at.is_(None),
            deposits.c.runner.is_(None),
            ~unheard,
        )
        .values(state="kept", dropping="local", local_gone_at=now, not_before=now)
        .returning(deposits.c.session_id)
    )
    return set(dropped.scalars())


def stored(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of these sessions that a store has as a whole."""
    rows = connection.scalars(
        sa.select(deposits.c.session_id).where(
            deposits.c.session_id.in_(ids), deposits.c.stored_at.is_not(None)
        )
    )
    return set(rows)


def forget(connection: Connection, ids: Sequence[str]) -> None:
    """These sessions' files are deleted: what stores have of them must go as well.

    In the transaction that says so; the objects go afterwards, as soon as their store lets them.
    """
    these = deposits.c.session_id.in_(ids)
    connection.execute(deposits.delete().where(these, deposits.c.place.is_(None)))
    connection.execute(
        deposits.update()
        .where(these)
        .values(
            state="deleting",
            attempts=0,
            reason=None,
            not_before=deposits.c.created_at,
            dropping=None,
        )
    )


def gone(connection: Connection, session_id: str) -> None:
    """No store has anything of this session any more."""
    connection.execute(
        deposits.delete().where(deposits.c.session_id == session_id, deposits.c.state == "deleting")
    )


def backlog(connection: Connection) -> DepositBacklog:
    """How much is still to be done."""

    def count(*conditions: sa.ColumnElement[bool]) -> int:
        query = sa.select(sa.func.count()).select_from(deposits).where(*conditions)
        return connection.scalar(query) or 0

    pending = deposits.c.state == "pending"
    octets = connection.scalar(
        sa.select(sa.func.sum(sa.func.coalesce(deposits.c.octets, sessions.c.audio_bytes)))
        .select_from(deposits.outerjoin(sessions, sessions.c.id == deposits.c.session_id))
        .where(pending)
    )
    return DepositBacklog(
        pending=count(pending),
        octets=int(octets or 0),
        oldest_at=connection.scalar(sa.select(sa.func.min(deposits.c.created_at)).where(pending)),
        deleting=count(deposits.c.state == "deleting"),
        failing=count(deposits.c.state != sa.literal_column("'done'"), deposits.c.attempts > 0),
    )


def _names(row: DepositRow) -> list[str]:
    """Of the objects that its manifest and earlier ones name."""
    manifest = json.loads(row.manifest) if row.manifest else {"files": []}
    return sorted({one["kept_name"] for one in manifest["files"]} | set(row.stale))


def _row(row: sa.RowMapping) -> DepositRow:
    values = values_of(row)
    return DepositRow(**(values | {"stale": tuple(json.loads(values["stale"] or "[]"))}))
