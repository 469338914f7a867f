"""How long what was recorded is kept: by age, by room on the disk, and under hold for ever.

Files go first, then the row says so: killed between the two, the next round does it again.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
from sqlalchemy import Connection

from siprec_bridge.recording.leases import renewed
from siprec_bridge.store import Database, SessionRow, StoreError, deposits, recordings, retention
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_ROUND_S = 60.0
_BATCH = 100
_EVENTS = 1000
_TRIES = 10


class UnderHold(Exception):
    """Somebody keeps the session from being deleted."""


class Elsewhere(Exception):
    """The audio is on another node, which is the argument."""


class InUse(Exception):
    """The session is being recorded, finished or transcribed."""


def why_not(
    row: SessionRow, busy: bool, node: str | None
) -> Literal["held", "in_use", "elsewhere"] | None:
    """Why nothing of a stored session may be deleted or changed now; None: it may.

    `busy`: it has open jobs. `node`: whose audio can be reached; None: everybody's.
    """
    if row.held is not None:
        return "held"
    if busy or row.state not in ("finished", "failed"):
        return "in_use"
    if node is not None and row.node not in (None, node):
        return "elsewhere"
    return None


def still_free(connection: Connection, session_id: str) -> SessionRow:
    """The session as it is in this transaction. Raises UnderHold, InUse: not any more."""
    row = recordings.get(connection, session_id)
    if row is None:
        raise InUse
    if row.held is not None:
        raise UnderHold
    if retention.has_open_jobs(connection, session_id):
        raise InUse
    return row


@dataclass(frozen=True, slots=True)
class Keep:
    """How long things are kept; None: for ever. `audio_size` in octets."""

    audio: timedelta | None = None
    audio_size: int | None = None
    sessions: timedelta | None = None
    events: timedelta | None = None


@dataclass(frozen=True, slots=True)
class _Deleted:
    """Ids of the sessions that were, and why others were not."""

    gone: set[str] = field(default_factory=set)
    error: OSError | None = None


class Retention:
    """Deletes what is too old, or the oldest of what is too much.

    `node`: whose audio it can reach; None: everybody's.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        keep: Keep,
        *,
        clock: Callable[[], datetime],
        node: str | None = None,
    ) -> None:
        self._node = node
        self._database = database
        self._metrics = metrics
        self._keep = keep
        self._clock = clock

    async def run(self) -> None:
        """Go round until cancelled; what cannot be deleted now is tried again."""
        while True:
            try:
                await self.go_round()
            except (StoreError, OSError) as error:
                log.error("retention.failed", cause=str(error))
            await asyncio.sleep(_ROUND_S)

    async def go_round(self) -> None:
        """Delete all that is due. Raises StoreError, OSError."""
        now, keep = self._clock(), self._keep
        await self._measure()
        if keep.sessions is not None:
            before = now - keep.sessions
            while rows := await self._database.read(
                partial(retention.ended, limit=_BATCH, before=before, node=self._node)
            ):
                if not (await self._delete_sessions(rows, "age")).gone:
                    break
        if keep.audio is not None:
            before = now - keep.audio
            while rows := await self._database.read(
                partial(retention.with_audio, limit=_BATCH, before=before, node=self._node)
            ):
                if not (await self._delete_audio(rows, "age")).gone:
                    break
        total = await self._database.read(partial(retention.audio_bytes, node=self._node))
        if keep.audio_size is not None:
            total = await self._make_room(total, keep.audio_size)
        self._metrics.recordings_bytes.set(total)
        if keep.events is not None:
            await self._delete_events(now - keep.events)

    async def delete(
        self, session_id: str, also: Callable[[Connection], None] = lambda _: None
    ) -> bool:
        """Delete a session at once, with all that is known of it; False: there is none.

        `also` is done in the same transaction. Raises UnderHold, InUse, Elsewhere, StoreError, OSError.
        """

        def find(connection: Connection) -> tuple[SessionRow | None, bool]:
            busy = retention.has_open_jobs(connection, session_id)
            return recordings.get(connection, session_id), busy

        row, busy = await self._database.read(find)
        if row is None:
            return False
        match why_not(row, busy, self._node):
            case "held":
                raise UnderHold
            case "in_use":
                raise InUse
            case "elsewhere":
                raise Elsewhere(row.node)
            case None:
                pass
        deleted = await self._delete_sessions([row], "request", also)
        if deleted.error is not None:
            raise deleted.error
        if not deleted.gone:
            row, _ = await self._database.read(find)  # it has changed since
            raise UnderHold if row is not None and row.held is not None else InUse
        return True

    async def _make_room(self, total: int, limit: int) -> int:
        stuck: set[str] = set()  # somebody works at them, or the disk does not let them go
        unheard = False  # where the recogniser is switched off: only once nothing else is left
        while total > limit:
            rows = await self._database.read(
                partial(
                    retention.with_audio,
                    limit=_BATCH + len(stuck),
                    unheard=unheard,
                    node=self._node,
                )
            )
            some: list[SessionRow] = []
            left = total
            for row in rows:
                if left <= limit:
                    break
                if row.id not in stuck:
                    some.append(row)
                    left -= row.audio_bytes or 0
            if not some and not unheard:
                unheard = True
                continue
            if not some:
                log.warning("retention.no_room_to_make", octets=total, limit=limit)
                break
            gone = await self._give_room(some)
            stuck |= {row.id for row in some} - gone
            total -= sum(row.audio_bytes or 0 for row in some if row.id in gone)
        return total

    async def _give_room(self, rows: Sequence[SessionRow]) -> set[str]:
        """What a store has stays there; here it goes, as soon as nothing is under way with it.

        Returns of which.
        """

        def drop(connection: Connection) -> set[str]:
            ids = [row.id for row in rows]
            deposits.drop_local(connection, ids, self._clock())
            return deposits.stored(connection, ids)

        elsewhere = await self._database.write(drop)
        here = [row for row in rows if row.id not in elsewhere]
        return elsewhere | (await self._delete_audio(here, "size")).gone

    async def _measure(self) -> None:
        while rows := await self._database.read(
            partial(retention.unmeasured, limit=_BATCH, node=self._node)
        ):
            sizes = await asyncio.to_thread(
                lambda found: [(row.id, _size(Path(row.folder))) for row in found], rows
            )
            await self._database.write(partial(retention.note_sizes, sizes=sizes))

    async def _delete_audio(self, rows: Sequence[SessionRow], cause: str) -> _Deleted:
        def note(connection: Connection, ids: Sequence[str]) -> None:
            retention.note_audio_deleted(connection, ids, self._clock())

        return await self._delete("audio", rows, cause, note)

    async def _delete_sessions(
        self,
        rows: Sequence[SessionRow],
        cause: str,
        also: Callable[[Connection], None] = lambda _: None,
    ) -> _Deleted:
        def note(connection: Connection, ids: Sequence[str]) -> None:
            retention.delete_sessions(connection, ids)
            also(connection)

        return await self._delete("session", rows, cause, note)

    async def _delete(
        self,
        what: str,
        rows: Sequence[SessionRow],
        cause: str,
        note: Callable[[Connection, Sequence[str]], None],
    ) -> _Deleted:
        """Delete the files of those that may be deleted still, and note it.

        One that the disk does not let go holds up no other.
        """
        runner = deposits.DELETING + secrets.token_hex(4)
        ids = [row.id for row in rows]
        take = partial(retention.take, ids=ids, runner=runner, now=self._clock())
        taken = await self._database.write(take)
        free = [row for row in rows if row.id in taken]
        if not free:
            return _Deleted()
        async with renewed(self._database, taken, runner, self._clock):
            left = await asyncio.to_thread(_remove, [row.folder for row in free])
            gone = [row for row in free if row.folder not in left]

            def finish(connection: Connection) -> None:
                if gone:
                    note(connection, [row.id for row in gone])
                deposits.release(connection, runner)

            await self._database.write(finish)
        self._note(what, cause, gone)
        for row in free:
            if row.folder in left:
                log.error(
                    "retention.not_deleted",
                    session_id=row.id,
                    sip_call_id=row.sip_call_id,
                    cause=str(left[row.folder]),
                )
        return _Deleted({row.id for row in gone}, next(iter(left.values()), None))

    async def _delete_events(self, before: datetime) -> None:
        while True:
            gone = await self._database.write(
                partial(retention.delete_events, before=before, limit=_EVENTS)
            )
            self._metrics.retention_deleted_total.labels(what="event").inc(gone)
            if not gone:
                return

    def _note(self, what: str, cause: str, rows: Sequence[SessionRow]) -> None:
        self._metrics.retention_deleted_total.labels(what=what).inc(len(rows))
        for row in rows:
            log.info(
                f"retention.{what}_deleted",
                session_id=row.id,
                sip_call_id=row.sip_call_id,
                cause=cause,
                started_at=row.started_at.isoformat(),
                octets=row.audio_bytes,
            )


def _size(folder: Path) -> int:
    """Octets of the files in a folder; 0 where there is none."""
    try:
        return sum(one.stat().st_size for one in folder.iterdir() if one.is_file())
    except FileNotFoundError:
        return 0


def _remove(folders: Sequence[str]) -> dict[str, OSError]:
    """Delete folders; returns those that are still there, and why."""
    left: dict[str, OSError] = {}
    for folder in folders:
        try:
            # Gone already: an earlier round was cut off after this. Or another node is at it, too.
            for _ in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(folder)
                if not Path(folder).exists():
                    break
            else:
                left[folder] = OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), folder)
        except OSError as error:
            left[folder] = error
    return left
