"""Jobs that this process has claimed: their leases are kept until they end, wait again, or go to others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog

from siprec_bridge.provider import ProviderError
from siprec_bridge.store import Database, JobRow, StoreError, jobs
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts, Transcript

log = structlog.get_logger()

OnDone = Callable[[JobRow, Mapping[str, Transcript], RunFacts], Awaitable[None]]
OnFailed = Callable[[JobRow, ProviderError, RunFacts | None], Awaitable[None]]

_LONGEST_DELAY_S = 3600.0


class JobsInHand:
    """Holds them, and puts each down in its own way. What cannot be stored now is tried again."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        on_done: OnDone,
        on_failed: OnFailed,
        clock: Callable[[], datetime],
        max_attempts: int,
        retry_delay: float,
        lease: timedelta,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._on_done = on_done
        self._on_failed = on_failed
        self._clock = clock
        self._max_attempts = max_attempts
        self._retry_delay = retry_delay
        self._lease = lease
        self._held: set[str] = set()

    def hold(self, batch: Iterable[JobRow]) -> None:
        """They run here from now on."""
        self._held.update(row.id for row in batch)

    def let_go(self, batch: Iterable[JobRow]) -> None:
        """They do not any more, whatever became of them."""
        self._held.difference_update(row.id for row in batch)

    def holds(self, row: JobRow) -> bool:
        """Whether nothing has become of it yet."""
        return row.id in self._held

    async def keep_leases(self) -> None:
        """Tell the other nodes, if any, that what runs here runs; until cancelled."""
        node = self._database.node
        while node is not None:
            await asyncio.sleep(self._lease.total_seconds() / 4)
            ids = sorted(self._held)
            if not ids:
                continue
            try:
                kept = await self._database.write(
                    partial(
                        jobs.renew, job_ids=ids, now=self._clock(), node=node, lease=self._lease
                    )
                )
            except StoreError as error:
                log.error("jobs.leases_not_renewed", cause=str(error))
                continue
            if lost := set(ids) & self._held - kept:
                # It goes on: whose result is first counts, and the other's changes nothing.
                log.warning("jobs.taken_by_others", jobs=sorted(lost))

    async def finish(self, row: JobRow, heard: Mapping[str, Transcript], facts: RunFacts) -> None:
        """It is done."""
        # A result may have cost minutes of a GPU: a full disk makes it wait, not vanish.
        await _persist(lambda: self._on_done(row, heard, facts), "jobs.result_not_stored")
        self._held.discard(row.id)
        self._metrics.jobs_total.labels(outcome="done").inc()

    async def fail(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        """It is given up."""
        await _persist(lambda: self._on_failed(row, error, facts), "jobs.failure_not_stored")
        self._held.discard(row.id)
        self._metrics.jobs_total.labels(outcome="failed").inc()

    async def hand_over(
        self, row: JobRow, error: ProviderError, facts: RunFacts | None, *, of: str, to: str
    ) -> None:
        """One vendor cannot do it: another one gets it."""

        async def store() -> None:
            await self._database.write(
                partial(jobs.hand_over, row=row, vendor=to, facts=facts, runner=row.runner)
            )

        await _persist(store, "jobs.fallback_not_stored")
        self._held.discard(row.id)
        self._metrics.fallbacks_total.labels(vendor=of, to=to).inc()
        log.warning(
            "job.handed_over",
            job=row.id,
            session_id=row.session_id,
            vendor=of,
            to=to,
            reason=error.reason,
        )

    async def try_later(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        """It is tried again after a while that grows with its attempts; given up after the last one."""
        if row.attempts >= self._max_attempts:
            await self.fail(row, error, facts)
            return
        delay = min(self._retry_delay * 2 ** max(0, row.attempts - 1), _LONGEST_DELAY_S)
        await self._put_back(row, error, facts, delay)

    async def try_alone(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        """Another job of its run may be the reason: it gets a run alone, at once."""
        await self._put_back(row, error, facts, 0.0, solo=True)

    async def give_back(self, rows: Sequence[JobRow], delay: float | None = None) -> None:
        """They wait again as they did, `delay` seconds at least; the attempt does not count."""
        ids = [row.id for row in rows]
        due = None if delay is None else self._clock() + timedelta(seconds=delay)
        try:
            await self._database.write(
                partial(jobs.release, job_ids=ids, not_before=due, runner=self._database.node)
            )
        except StoreError as error:  # the next start queues them again
            log.error("jobs.not_given_back", jobs=ids, cause=str(error))

    async def refund(self, attempts: Mapping[str, int]) -> None:
        """Take back attempts, by job, that were not their fault."""
        try:
            await self._database.write(partial(jobs.refund, attempts=attempts))
        except StoreError as error:
            log.error("jobs.store_failed", jobs=list(attempts), cause=str(error))

    async def _put_back(
        self,
        row: JobRow,
        error: ProviderError,
        facts: RunFacts | None,
        delay: float,
        *,
        solo: bool = False,
    ) -> None:
        not_before = self._clock() + timedelta(seconds=delay)

        async def store() -> None:
            await self._database.write(
                partial(
                    jobs.reschedule,
                    job_id=row.id,
                    not_before=not_before,
                    reason=error.reason,
                    facts=facts,
                    solo=solo,
                    runner=row.runner,
                )
            )

        await _persist(store, "jobs.retry_not_stored")
        self._held.discard(row.id)
        self._metrics.jobs_total.labels(outcome="retried").inc()
        log.info("job.retried_later", job=row.id, session_id=row.session_id, in_s=delay)


async def _persist(store: Callable[[], Awaitable[None]], complaint: str) -> None:
    delay = 0.5
    while True:
        try:
            await store()
            return
        except StoreError as error:
            log.error(complaint, cause=str(error), retry_in_s=delay)
        await asyncio.sleep(delay)
        delay = min(2 * delay, 30.0)
