"""Jobs on disk to runs of the provider, and back: pace, batches, retries, outages.

A job is claimed only when a run may start, so that what waits, waits in the database. The
scheduler puts jobs back (retry, outage, stop); what ends a job is its owner's business, who
commits the result and the job's end in one transaction (`on_done`, `on_failed`).
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from siprec_bridge.provider import Job, Provider, ProviderError, ProviderUnavailable, Run
from siprec_bridge.store import Database, JobRow, StoreError, jobs
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts, Transcript
from siprec_bridge.transcription.guard import Guard
from siprec_bridge.transcription.prepare import Preparation, PreparedJob

log = structlog.get_logger()

OnDone = Callable[[JobRow, Mapping[str, Transcript], RunFacts], Awaitable[None]]
OnFailed = Callable[[JobRow, ProviderError, RunFacts | None], Awaitable[None]]

_NO_LIMIT = 64  # runs at once where the provider sets no limit
_LOOK_S = 5.0  # jobs may be queued by another process: `siprec-bridge jobs retry`
_LONGEST_DELAY_S = 3600.0
_OUTAGE_FIRST_S, _OUTAGE_LONGEST_S = 0.5, 15.0


class Scheduler:
    """Runs jobs until cancelled; jobs that were running are queued again then."""

    def __init__(
        self,
        database: Database,
        provider: Provider,
        metrics: Metrics,
        *,
        load: Callable[[JobRow], Awaitable[Job]],
        on_done: OnDone,
        on_failed: OnFailed,
        clock: Callable[[], datetime],
        preparation: Preparation | None = None,
        guard: Guard | None = None,
        max_attempts: int = 5,
        retry_delay: float = 5.0,
        lease: timedelta = jobs.LEASE,
    ) -> None:
        self._database = database
        self._provider = provider
        self._metrics = metrics
        self._load = load
        self._on_done = on_done
        self._on_failed = on_failed
        self._clock = clock
        self._preparation = preparation or Preparation(provider.sample_rate)
        self._guard = guard or Guard("off")
        self._max_attempts = max_attempts
        self._retry_delay = retry_delay
        self._lease = lease
        self._limit = provider.max_concurrent or _NO_LIMIT
        self._news = asyncio.Event()
        self._runs: set[asyncio.Task[None]] = set()
        self._running: set[str] = set()  # jobs in these runs
        self._outage_s = 0.0

    def wake(self) -> None:
        """There may be a job to run."""
        self._news.set()

    async def run(self) -> None:
        """Serve jobs until cancelled."""
        renewal = asyncio.create_task(self._keep_leases(), name="leases")
        try:
            while True:
                self._news.clear()
                try:
                    wait = self._patience(await self._start_runs())
                except StoreError as error:
                    log.error("jobs.store_failed", cause=str(error))
                    wait = _LOOK_S
                try:
                    async with asyncio.timeout(wait):
                        await self._news.wait()
                except TimeoutError:
                    pass
        finally:
            await self._stop_runs()
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    async def _keep_leases(self) -> None:
        """Tell the other nodes, if any, that what runs here runs."""
        node = self._database.node
        while node is not None:
            await asyncio.sleep(self._lease.total_seconds() / 4)
            ids = sorted(self._running)
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
            if lost := set(ids) & self._running - kept:
                # It goes on: whose result is first counts, and the other's changes nothing.
                log.warning("jobs.taken_by_others", jobs=sorted(lost))

    async def _start_runs(self) -> datetime | None:
        """Start what may run; returns when the next job is due, if one waits."""
        while True:
            cause = await self._provider.unavailable()
            self._note_availability(cause)
            full = cause is not None or len(self._runs) >= self._limit
            batch, due = await self._claim(full=full)
            if not batch:
                return due
            task = asyncio.create_task(self._serve(batch), name="transcription run")
            self._runs.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._metrics.whisper_runs_active.set(len(self._runs))
        self._news.set()

    def _note_availability(self, cause: str | None) -> None:
        was_out = self._outage_s > 0
        if cause is None:
            if was_out:
                log.info("recogniser.available_again")
            self._outage_s = 0.0
        else:
            if not was_out:
                log.error("recogniser.unavailable", cause=cause)
            self._outage_s = min(max(2 * self._outage_s, _OUTAGE_FIRST_S), _OUTAGE_LONGEST_S)
        self._metrics.recogniser_available.set(cause is None)

    def _patience(self, due: datetime | None) -> float:
        """Seconds until there may be something to do without anybody's call."""
        if self._outage_s:
            return self._outage_s
        if due is None or len(self._runs) >= self._limit:
            return _LOOK_S
        return min(_LOOK_S, max(0.01, (due - self._clock()).total_seconds()))

    async def _claim(self, *, full: bool) -> tuple[list[JobRow], datetime | None]:
        """The jobs of the next run: one that must run alone, or as many as fit; none if `full`.

        Also when the first of those that still wait is due.
        """
        free = max(1, self._limit - len(self._runs))
        node = self._database.node

        def claim(connection: Connection) -> tuple[list[JobRow], jobs.Backlog, datetime | None]:
            backlog = jobs.backlog(connection)
            waiting = jobs.waiting(connection, node)
            if full or not (waiting or node):  # with others, there are their leases
                return [], backlog, jobs.next_due(connection, node)
            # Free slots share what waits; only what is beyond them goes into batches.
            fair = min(-(-waiting // free), self._provider.max_batch // 2)
            taken = jobs.claim(connection, max(1, fair), self._clock(), node, self._lease)
            return taken, backlog, jobs.next_due(connection, node)

        claimed, backlog, due = await self._database.write(claim)
        self._metrics.jobs_backlog.set(backlog.jobs)
        self._metrics.jobs_backlog_audio_seconds.set(backlog.audio_seconds)
        self._metrics.jobs_failed.set(backlog.failed)
        if not claimed:
            return [], due
        alone = next((job for job in claimed if job.solo), None)
        batch = [alone] if alone is not None else claimed
        others = [job.id for job in claimed if job not in batch]
        if others:
            await self._database.write(partial(jobs.release, job_ids=others, runner=node))
        self._running.update(job.id for job in batch)
        self._metrics.whisper_runs_active.set(len(self._runs) + 1)
        return batch, due

    async def _serve(self, batch: list[JobRow]) -> None:
        """One run, from claimed jobs to their ends; nothing that goes wrong gets past it."""
        try:
            await self._run_batch(batch)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(batch))
            raise
        except StoreError as error:
            log.error("jobs.store_failed", jobs=[job.id for job in batch], cause=str(error))
            await self._give_back(batch)
        except Exception:  # our fault: these jobs are tried again, and the others go on
            log.exception("jobs.run_failed", jobs=[job.id for job in batch])
            await self._reschedule(batch, ProviderError("internal_error"), None)
        finally:
            self._running.difference_update(job.id for job in batch)

    async def _run_batch(self, batch: list[JobRow]) -> None:
        with tempfile.TemporaryDirectory(prefix="siprec-prepare-") as folder:
            ready: dict[str, PreparedJob] = {}
            for row in batch:
                prepared = await self._prepare(row, Path(folder) / str(len(ready)))
                if prepared is not None:
                    ready[row.id] = prepared
            rows = {row.id: row for row in batch if row.id in ready}
            for row in [row for row in rows.values() if not ready[row.id].job.audio]:
                reason = "no_speech" if ready[row.id].maps else "no_audio"
                await self._finish(row, ready[row.id].restore({}), self._nothing_to_hear(reason))
                del rows[row.id]
            if not rows:
                return
            result = await self._provider.transcribe([ready[id].job for id in rows])
        self._observe(result.facts)
        outcomes = dict(result.outcomes)
        for id, row in rows.items():
            match outcomes.get(id):
                case ProviderError() as error:
                    self._log_failure(row, ready[id].job, error, result.facts)
                case Mapping() as heard:
                    # Of a long call there are a hundred thousand words.
                    outcomes[id] = await asyncio.to_thread(self._judge, ready[id], heard)
                case None:
                    pass  # it is told of below
        await self._take(list(rows.values()), replace(result, outcomes=outcomes))

    async def _prepare(self, row: JobRow, folder: Path) -> PreparedJob | None:
        try:
            prepared = await self._preparation.prepare(await self._load(row), folder)
        except (OSError, ValueError, LookupError) as error:
            await self._fail(row, ProviderError("audio_missing", str(error)), None)
            return None
        for found in prepared.maps.values():
            kept = found.packed
            cut = found.total / found.rate - kept
            self._metrics.vad_audio_seconds_total.labels(verdict="kept").inc(kept)
            self._metrics.vad_audio_seconds_total.labels(verdict="cut").inc(cut)
        return prepared

    def _judge(
        self, prepared: PreparedJob, heard: Mapping[str, Transcript]
    ) -> Mapping[str, Transcript]:
        """What was heard, on the call's time line, without what was hardly said."""
        judged = {
            key: self._guard.judge(one, prepared.maps.get(key))
            for key, one in prepared.restore(heard).items()
        }
        for one in judged.values():
            for reason in [
                *(text.reason for text in one.suppressed),
                *(segment.doubt for segment in one.segments if segment.doubt),
            ]:
                self._metrics.doubtful_segments_total.labels(reason=reason).inc()
        return judged

    async def _take(self, rows: Sequence[JobRow], result: Run) -> None:
        away: list[JobRow] = []
        for row in rows:
            outcome = result.outcomes.get(row.id, ProviderError("no_outcome"))
            match outcome:
                case ProviderUnavailable():
                    self._note_availability(outcome.detail or outcome.reason)
                    away.append(row)
                case ProviderError():
                    if len(rows) > 1:
                        # Another job of the batch may be the reason: each gets a run alone.
                        await self._put_back(row, outcome, result.facts, 0.0, solo=True)
                    elif outcome.retryable and row.attempts < self._max_attempts:
                        await self._reschedule([row], outcome, result.facts)
                    else:
                        await self._fail(row, outcome, result.facts)
                case _:
                    await self._finish(row, outcome, result.facts)
        if away:
            await self._give_back(away)

    async def _finish(self, row: JobRow, heard: Mapping[str, Transcript], facts: RunFacts) -> None:
        # A result may have cost minutes of a GPU: a full disk makes it wait, not vanish.
        await self._persist(lambda: self._on_done(row, heard, facts), "jobs.result_not_stored")
        self._metrics.jobs_total.labels(outcome="done").inc()

    async def _fail(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        await self._persist(lambda: self._on_failed(row, error, facts), "jobs.failure_not_stored")
        self._metrics.jobs_total.labels(outcome="failed").inc()

    async def _reschedule(
        self, rows: Sequence[JobRow], error: ProviderError, facts: RunFacts | None
    ) -> None:
        for row in rows:
            if row.attempts >= self._max_attempts:
                await self._fail(row, error, facts)
                continue
            delay = min(self._retry_delay * 2 ** max(0, row.attempts - 1), _LONGEST_DELAY_S)
            await self._put_back(row, error, facts, delay)

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

        await self._persist(store, "jobs.retry_not_stored")
        self._metrics.jobs_total.labels(outcome="retried").inc()
        log.info("job.retried_later", job=row.id, session_id=row.session_id, in_s=delay)

    async def _give_back(self, rows: Sequence[JobRow]) -> None:
        ids = [row.id for row in rows]
        try:
            await self._database.write(
                partial(jobs.release, job_ids=ids, runner=self._database.node)
            )
        except StoreError as error:  # the next start queues them again
            log.error("jobs.not_given_back", jobs=ids, cause=str(error))

    async def _persist(self, store: Callable[[], Awaitable[None]], complaint: str) -> None:
        delay = 0.5
        while True:
            try:
                await store()
                return
            except StoreError as error:
                log.error(complaint, cause=str(error), retry_in_s=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, 30.0)

    async def _stop_runs(self) -> None:
        for task in self._runs:
            task.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)

    def _nothing_to_hear(self, reason: str) -> RunFacts:
        provider = self._provider
        return RunFacts(
            provider=provider.name,
            model=provider.model,
            status="success",
            reason=reason,
            files=0,
        )

    def _observe(self, facts: RunFacts) -> None:
        metrics = self._metrics
        metrics.whisper_runs_total.labels(model=facts.model, reason=facts.reason).inc()
        if facts.reason == "unavailable":
            return  # nothing ran
        metrics.whisper_cli_duration_seconds.labels(model=facts.model, status=facts.status).observe(
            facts.duration
        )
        metrics.whisper_temp_file_bytes.observe(facts.temp_bytes)
        if facts.status == "timeout":
            metrics.whisper_timeouts_total.labels(model=facts.model).inc()
        if facts.status == "success":
            metrics.whisper_output_format_total.labels(format=facts.output_format).inc()

    def _log_failure(self, row: JobRow, job: Job, error: ProviderError, facts: RunFacts) -> None:
        log.warning(
            "job.run_failed",
            job=row.id,
            attempt=row.attempts,
            of=self._max_attempts,
            reason=error.reason,
            detail=error.detail,
            exit_code=facts.exit_code,
            stderr=facts.stderr_tail[-500:],
            seconds=round(facts.duration, 3),
            **job.log_fields,
        )
