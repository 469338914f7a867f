"""When what becomes of a session's files is done, and again where it failed.

Nothing here is deleted before the store has proven that it has it, nor what a transcription may want;
nothing is given up, however long a store is away.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import Connection

from siprec_bridge.recording.alteration import clear_up
from siprec_bridge.recording.custody import Custody, Lost
from siprec_bridge.recording.safekeeping import Safekeeping, Stores
from siprec_bridge.store import (
    Database,
    DepositRow,
    StoreError,
    deposits,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.vault import (
    Damaged,
    ObjectError,
)

log = structlog.get_logger()

_AT_ONCE = 3  # sessions; each holds about 50 MB while it is sent
_PAUSE_S = 1.0
_MEASURE_S = 10.0
_RENEW_S = 20.0
_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 900.0
_BATCH = 500


class Custodian:
    """Has it done, a few sessions at a time. `node`: who we are; `shared`: all nodes have all files."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        keeping: Safekeeping,
        stores: Stores,
        *,
        clock: Callable[[], datetime],
        node: str | None = None,
        shared: bool = False,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._keeping = keeping
        self._custody = Custody(database, metrics, keeping, stores, clock=clock, node=node)
        self._clock = clock
        self._node = node
        self._shared = shared or node is None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures = 0  # of stores, in a row
        self._resume_at: datetime | None = None

    async def run(self) -> None:
        """Go on until cancelled; what cannot be done now is tried again."""
        # What we were at when we died is ours again; that of others has leases that end.
        await self._until_stored(partial(deposits.release, node=self._node))
        measured = renewed = asyncio.get_running_loop().time() - _MEASURE_S
        entered = not self._keeping.wanted
        # Again once the leases of those are over that were killed just before.
        clearings = [measured, measured + _MEASURE_S + 2 * deposits.LEASE.total_seconds()]
        try:
            while True:
                now = asyncio.get_running_loop().time()
                try:
                    if clearings and now >= clearings[0]:
                        await clear_up(
                            self._database, clock=self._clock, node=self._node, shared=self._shared
                        )
                        del clearings[0]
                    if not entered:
                        entered = await self._enter_older()
                    if now - measured >= _MEASURE_S:
                        await self._measure()
                        measured = now
                    if self._tasks and now - renewed >= _RENEW_S:
                        await self._renew()
                        renewed = now
                    await self._begin()
                except StoreError as error:
                    log.error("archive.database_failed", cause=str(error))
                await self._wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def go_round(self) -> None:
        """Do all that is due now, once. Raises StoreError."""
        if self._keeping.wanted:
            while not await self._enter_older():
                pass
        while True:
            await self._begin()
            if not self._tasks:
                break
            await asyncio.gather(*self._tasks.values())
            self._tasks.clear()
        await self._measure()

    async def _until_stored(self, work: Callable[[Connection], object]) -> None:
        while True:
            try:
                await self._database.write(work)
                return
            except StoreError as error:
                log.error("archive.database_failed", cause=str(error))
            await asyncio.sleep(_FIRST_RETRY_S)

    async def _wait(self) -> None:
        if self._tasks:
            await asyncio.wait(
                self._tasks.values(), timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED
            )
            for session_id in [one for one, task in self._tasks.items() if task.done()]:
                del self._tasks[session_id]
            if self._failures:
                await asyncio.sleep(_PAUSE_S)
        else:
            await asyncio.sleep(_PAUSE_S)

    async def _enter_older(self) -> bool:
        """Recordings that were finished before anybody wanted this; True: that was all."""
        found = await self._database.read(partial(deposits.older, limit=_BATCH))
        now = self._clock()

        def enter(connection: Connection) -> None:
            for session_id, node in found:
                deposits.add(connection, session_id, node, now)

        if found:
            await self._database.write(enter)
        return not found

    async def _measure(self) -> None:
        found = await self._database.read(deposits.backlog)
        metrics, now = self._metrics, self._clock()
        metrics.archive_pending.labels(what="keep").set(found.pending)
        metrics.archive_pending.labels(what="delete").set(found.deleting)
        metrics.archive_pending_bytes.set(found.octets)
        metrics.archive_failing.set(found.failing)
        age = (now - found.oldest_at).total_seconds() if found.oldest_at is not None else 0.0
        metrics.archive_oldest_age_seconds.set(max(0.0, age))

    async def _renew(self) -> None:
        ids = list(self._tasks)
        ours = await self._database.write(
            partial(deposits.renew, ids=ids, now=self._clock(), node=self._node)
        )
        for session_id in set(ids) - ours:
            log.warning("archive.lease_lost", session_id=session_id)
            self._tasks[session_id].cancel()

    async def _begin(self) -> None:
        """Start what is due; while a store fails, one session alone, to see whether it still does."""
        now = self._clock()
        room = _AT_ONCE - len(self._tasks)
        if self._failures:
            if self._tasks or (self._resume_at is not None and now < self._resume_at):
                return
            room = 1
        if room <= 0:
            return
        keeping = self._keeping
        rows = await self._database.write(
            partial(
                deposits.claim,
                limit=room,
                now=now,
                node=self._node,
                shared=self._shared,
                # Nothing is encrypted ahead of its transcription for the disk alone.
                early=keeping.store is not None and not keeping.after_transcription,
                plain_before=now - keeping.plain_for if keeping.plain_for is not None else None,
                but=self._tasks.keys(),
            )
        )
        for row in rows:
            self._tasks[row.session_id] = asyncio.create_task(
                self._work(row), name=f"archive {row.session_id}"
            )

    async def _work(self, row: DepositRow) -> None:
        structlog.contextvars.bind_contextvars(session_id=row.session_id)
        what = {"pending": "keep", "kept": "drop"}.get(row.state, "delete")
        try:
            match row.state:
                case "deleting":
                    await self._custody.delete(row)
                case "pending":
                    await self._custody.keep(row)
                case _:
                    await self._custody.drop(row)
        except (OSError, StoreError, LookupError) as error:
            await self._put_off(row, what, error)
        except Lost:
            pass
        except Exception as error:  # our own mistake: it costs this session's try, and no other's
            log.exception("archive.fault", what=what)
            await self._put_off(row, what, error)
        else:
            self._metrics.archive_tries_total.labels(what=what, result="done").inc()
            self._failures = 0
        finally:
            with contextlib.suppress(StoreError):  # then the lease ends by itself
                await self._database.write(
                    partial(deposits.release, node=self._node, session_id=row.session_id)
                )

    async def _put_off(self, row: DepositRow, what: str, error: Exception) -> None:
        """For as long as it has failed already, in doublings; whatever is the matter, we go on."""
        now, attempts = self._clock(), row.attempts + 1
        delay = min(_FIRST_RETRY_S * 2 ** min(row.attempts, 20), _LONGEST_RETRY_S)
        cause = " ".join(str(error).split()) or type(error).__name__
        self._metrics.archive_tries_total.labels(what=what, result="failed").inc()
        if isinstance(error, ObjectError) and not isinstance(error, Damaged):
            self._failures += 1
            pause = min(_FIRST_RETRY_S * 2 ** min(self._failures - 1, 20), 60.0)
            self._resume_at = now + timedelta(seconds=pause)
        log.error("archive.failed", what=what, cause=cause, tries=attempts, again_in_s=delay)
        with contextlib.suppress(StoreError):
            await self._database.write(
                partial(
                    deposits.note,
                    row=row,
                    node=self._node,
                    attempts=attempts,
                    reason=cause,
                    not_before=now + timedelta(seconds=delay),
                )
            )
