"""Jobs on disk to runs of the providers, and back: order, pace, batches, retries, outages, fallback.

A job is claimed only when a run may start, so that what waits, waits in the database. The
scheduler puts jobs back (retry, outage, stop, another vendor); what ends a job is its owner's
business, who commits the result and the job's end in one transaction (`on_done`, `on_failed`).
"""

import asyncio
import errno
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from siprec_bridge.provider import Job, Provider, ProviderError, Run
from siprec_bridge.store import Backlog, Database, JobRow, StoreError, jobs
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts, Transcript
from siprec_bridge.transcription.circuit import Circuit
from siprec_bridge.transcription.guard import Guard
from siprec_bridge.transcription.in_hand import JobsInHand, OnDone, OnFailed
from siprec_bridge.transcription.packing import PackingPolicy, transcribe_packed
from siprec_bridge.transcription.prepare import Preparation, PreparedJob
from siprec_bridge.transcription.speech import SpeechOptions
from siprec_bridge.transcription.vendor import Vendor, VendorState
from siprec_bridge.transcription.workroom import Workroom

log = structlog.get_logger()

_LOOK_S = 5.0  # jobs may be queued by another process: `siprec-bridge jobs retry`
_MOST_MODELS = 50  # with metrics of their own
# What is not the audio's fault, and passes: no disk, memory or descriptor is left.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OURS = ("audio_missing", "internal_error")  # reasons that are no vendor's


class Scheduler:
    """Runs jobs until cancelled; jobs that were running are queued again then.

    The first provider is the default one. A job that its vendor gave up, or whose vendor has been
    away or broken for `fallback_after` seconds, goes to the next one; None: to none. `conceal` is
    given what recognisers say on stderr, before anybody sees it.
    """

    def __init__(
        self,
        database: Database,
        providers: Sequence[Provider],
        metrics: Metrics,
        *,
        load: Callable[[JobRow], Awaitable[Job]],
        on_done: OnDone,
        on_failed: OnFailed,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
        speech: SpeechOptions | None = None,
        guard: Guard | None = None,
        max_attempts: int = 5,
        retry_delay: float = 5.0,
        lease: timedelta = jobs.LEASE,
        circuit_failures: int = 5,
        fallback_after: float | None = None,
        conceal: Callable[[str], str] | None = None,
        packing: PackingPolicy = "off",
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._load = load
        self._clock = clock
        self._guard = guard or Guard("off")
        self._max_attempts = max_attempts
        self._retry_delay = retry_delay
        self._lease = lease
        self._fallback_after = fallback_after
        self._conceal = conceal
        self._packing = packing
        self._in_hand = JobsInHand(
            database,
            metrics,
            on_done=on_done,
            on_failed=on_failed,
            clock=clock,
            max_attempts=max_attempts,
            retry_delay=retry_delay,
            lease=lease,
        )
        self._vendors = {
            one.name: Vendor(
                one,
                Preparation(one.sample_rate, speech),
                Circuit(circuit_failures),
                metrics,
                default=number == 0,
                now=monotonic,
                observe=self._observe,
                refund=self._in_hand.refund,
                changed=self.wake,
            )
            for number, one in enumerate(providers)
        }
        self._workroom = Workroom()
        self._news = asyncio.Event()
        self._models: set[str] = set()
        self._measure_again = 0.0  # time.monotonic()
        self._backlog = Backlog(0, 0.0, 0)  # as it was a moment ago

    def wake(self) -> None:
        """There may be a job to run."""
        self._news.set()

    async def trouble(self, vendor: str) -> str | None:
        """Why no job of this vendor can be run now (one line), or None."""
        one = self._vendors[vendor]
        return await one.provider.unavailable() or one.trouble

    def vendors(self) -> list[VendorState]:
        """All vendors, the default one first."""
        return [vendor.state for vendor in self._vendors.values()]

    def speed(self, waiting: int) -> float | None:
        """Seconds of audio that are transcribed in a second when so many jobs wait; None: unknown."""
        rates = [
            vendor.pace.ratio * min(vendor.limit, max(1, waiting))
            for vendor in self._vendors.values()
            if vendor.pace.ratio is not None and vendor.trouble is None
        ]
        return sum(rates) or None

    async def run(self) -> None:
        """Serve jobs until cancelled."""
        renewal = asyncio.create_task(self._in_hand.keep_leases(), name="leases")
        try:
            await asyncio.to_thread(self._workroom.open)
            await self._take_over()
            while True:
                self._news.clear()
                try:
                    wait = await self._start_runs()
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
            await asyncio.to_thread(self._workroom.close)

    async def _take_over(self) -> None:
        """What an earlier bridge left behind: jobs of vendors that are gone, and how fast runs were."""
        names = list(self._vendors)
        try:
            orphans = await self._database.write(
                partial(jobs.adopt, vendors=names, default=names[0], node=self._database.node)
            )
            on = [name for name in names if not self._is_shelved(self._vendors[name])]
            again = await self._database.write(
                partial(jobs.unshelve, vendors=on, node=self._database.node)
            )
            runs = await self._database.read(jobs.recent_runs)
        except StoreError as error:
            log.error("jobs.store_failed", cause=str(error))
            return
        if orphans:
            log.warning("jobs.adopted", count=orphans, vendor=names[0])
        if again:
            log.info("jobs.unshelved", count=again)
        for vendor, audio, seconds in runs:
            if vendor in self._vendors:
                self._vendors[vendor].pace.note(audio, seconds)

    async def _start_runs(self) -> float:
        """Start what may run; returns the seconds until there may be more to do."""
        patience = [_LOOK_S]
        for vendor in self._vendors.values():
            await vendor.look()
        for vendor in self._vendors.values():
            patience.append(await self._start_runs_of(vendor))
        patience.append(await self._measure())
        return min(patience)

    async def _start_runs_of(self, vendor: Vendor) -> float:
        if self._is_shelved(vendor):
            node = self._database.node
            await self._database.write(partial(jobs.shelve, vendor=vendor.name, node=node))
            return _LOOK_S
        while True:
            wait = vendor.wait()
            if wait is not None:
                return wait
            batch, due, left = await self._claim(vendor)
            if not batch:
                if due is None:
                    return _LOOK_S
                return min(_LOOK_S, max(0.01, (due - self._clock()).total_seconds()))
            vendor.start(self._serve(vendor, batch))
            if not left:
                return _LOOK_S

    def _is_shelved(self, vendor: Vendor) -> bool:
        """Whether nobody is to run its jobs: it is switched off, and no other stands in."""
        others = any(not one.off for one in self._vendors.values())
        return vendor.off and (self._fallback_after is None or not others)

    def _after(self, name: str) -> list[Vendor]:
        """The other vendors, in the order in which they are asked for this one's jobs."""
        vendors = list(self._vendors.values())
        place = next((n for n, one in enumerate(vendors) if one.name == name), -1)
        return vendors[place + 1 :] + vendors[: max(place, 0)]

    def _stands_in_for(self, vendor: Vendor) -> list[str]:
        """Vendors that are down for so long that this one takes their jobs."""
        if self._fallback_after is None:
            return []
        return [
            other.name
            for other in self._vendors.values()
            if other is not vendor
            and other.trouble is not None
            and other.down_for() >= self._fallback_after
            and next((one for one in self._after(other.name) if one.trouble is None), None)
            is vendor
        ]

    async def _claim(self, vendor: Vendor) -> tuple[list[JobRow], datetime | None, int]:
        """The jobs of the next run; if none, when the first is due; and how many are left."""
        free = max(1, vendor.limit - len(vendor.runs))
        others = self._stands_in_for(vendor)
        vendors, node = [vendor.name, *others], self._database.node

        def claim(connection: Connection) -> tuple[list[JobRow], datetime | None, int]:
            count = jobs.ready(connection, vendors, free * vendor.provider.max_batch, node)
            if not (count or node):  # with others, there are their leases
                return [], None, 0
            # Free slots share what waits; only what is beyond them goes into batches.
            fair = max(1, min(-(-count // free), vendor.provider.max_batch // 2))
            taken = jobs.claim(
                connection,
                fair,
                self._clock(),
                vendor=vendor.name,
                instead_of=others,
                node=node,
                lease=self._lease,
            )
            due = None if taken else jobs.next_due(connection, vendors, node)
            return taken, due, max(0, count - len(taken))

        claimed, due, left = await self._database.write(claim)
        for job in claimed if others else ():
            log.info("job.stand_in", job=job.id, session_id=job.session_id, vendor=vendor.name)
        return claimed, due, left

    async def _measure(self) -> float:
        """Let the metrics tell of what waits; returns the seconds until that is to be done again.

        Where much waits, it takes long: it is done seldom.
        """
        begun = time.monotonic()
        if begun < self._measure_again:
            return self._measure_again - begun
        backlog = self._backlog = await self._database.read(jobs.backlog)
        ended = time.monotonic()
        self._measure_again = ended + min(20 * (ended - begun), _LOOK_S)
        self._metrics.jobs_backlog.set(backlog.jobs)
        self._metrics.jobs_backlog_audio_seconds.set(backlog.audio_seconds)
        self._metrics.jobs_failed.set(backlog.failed)
        eta = self.eta(backlog)
        self._metrics.jobs_backlog_eta_seconds.set(float("nan") if eta is None else eta)
        return _LOOK_S

    def eta(self, backlog: Backlog) -> float | None:
        """Seconds until all that waits or runs is transcribed, at the present pace; None: unknown."""
        if not backlog.jobs:
            return 0.0
        speed = self.speed(backlog.jobs)
        return backlog.audio_seconds / speed if speed else None

    def eta_of_next(self, audio_seconds: float) -> float | None:
        """Seconds until a job that comes now is done, from what waited a moment ago; None: unknown."""
        known = self._backlog
        return self.eta(Backlog(known.jobs + 1, known.audio_seconds + audio_seconds, 0))

    async def _serve(self, vendor: Vendor, batch: list[JobRow]) -> None:
        """One run, from claimed jobs to their ends; nothing that goes wrong gets past it."""
        self._in_hand.hold(batch)
        try:
            await self._run_batch(vendor, batch)
        except asyncio.CancelledError:
            await asyncio.shield(self._in_hand.give_back(batch))
            raise
        except StoreError as error:
            log.error("jobs.store_failed", jobs=[job.id for job in batch], cause=str(error))
            await self._in_hand.give_back(batch)
        except Exception:  # our fault: these jobs are tried again, and the others go on
            # What has ended by now stays so.
            left = [job for job in batch if self._in_hand.holds(job)]
            log.exception("jobs.run_failed", jobs=[job.id for job in left])
            # One of several may be the reason: each gets a run alone.
            put = self._in_hand.try_alone if len(batch) > 1 else self._in_hand.try_later
            for job in left:
                await put(job, ProviderError("internal_error"), None)
        finally:
            self._in_hand.let_go(batch)

    async def _run_batch(self, vendor: Vendor, batch: list[JobRow]) -> None:
        # Folders of files that most jobs do not need: their making and removal is told in ms.
        name, room = secrets.token_hex(8), self._workroom.folder
        folders = [room / f"{name}-{number}" for number in range(len(batch))]
        try:
            ready: dict[str, PreparedJob] = {}
            for row, folder in zip(batch, folders, strict=True):
                prepared = await self._prepare(vendor, row, folder)
                if prepared is not None:
                    ready[row.id] = prepared
            rows = {row.id: row for row in batch if row.id in ready}
            for row in [row for row in rows.values() if not ready[row.id].job.audio]:
                reason = "no_speech" if ready[row.id].maps else "no_audio"
                await self._in_hand.finish(
                    row, ready[row.id].restore({}), _nothing_to_hear(vendor.provider, reason)
                )
                del rows[row.id]
            if not rows:
                return
            folders.append(room / f"{name}-packed")
            result = await self._transcribe(
                vendor, list(rows.values()), [ready[id].job for id in rows], folders[-1]
            )
            if self._conceal is not None:
                tail = self._conceal(result.facts.stderr_tail)
                facts = result.facts.model_copy(update={"stderr_tail": tail})
                result = replace(result, facts=facts)
        finally:
            for folder in folders:
                if folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)
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
        await self._take(vendor, list(rows.values()), replace(result, outcomes=outcomes))

    async def _transcribe(
        self, vendor: Vendor, rows: Sequence[JobRow], sent: Sequence[Job], folder: Path
    ) -> Run:
        """A run for all, with short legs in one file where that is wanted and the language known."""
        language = sent[0].language or getattr(vendor.provider, "language", None)
        known = language is not None and language.lower() != "auto"
        if (
            self._packing == "off"
            or not vendor.preparation.finds_speech
            or not known
            or rows[0].solo
        ):
            return await vendor.provider.transcribe(sent)
        run, packed, again = await transcribe_packed(
            vendor.provider,
            sent,
            self._packing,
            lambda files: vendor.preparation.join(files, folder),
        )
        self._metrics.packed_legs_total.labels(heard="together").inc(packed - again)
        self._metrics.packed_legs_total.labels(heard="again").inc(again)
        return run

    async def _prepare(self, vendor: Vendor, row: JobRow, folder: Path) -> PreparedJob | None:
        try:
            prepared = await vendor.preparation.prepare(await self._load(row), folder)
        except (OSError, ValueError, LookupError) as error:
            code = error.errno if isinstance(error, OSError) else None
            missing = ProviderError("audio_missing", str(error))
            if code in _NO_ROOM:
                vendor.note_away(ProviderError("no_room", f"no audio can be prepared: {error}"))
                # A smaller one may have room.
                await self._in_hand.give_back([row], 6 * self._retry_delay)
            elif code is None or isinstance(error, FileNotFoundError):
                await self._in_hand.fail(row, missing, None)
            else:  # a disk or mount in trouble, which may be well again
                await self._in_hand.try_later(row, missing, None)
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

    async def _take(self, vendor: Vendor, rows: Sequence[JobRow], result: Run) -> None:
        outcomes = {
            row.id: result.outcomes.get(row.id, ProviderError("no_outcome")) for row in rows
        }
        errors = [one for one in outcomes.values() if isinstance(one, ProviderError)]
        blamed = False
        if len(errors) < len(rows):
            vendor.note_run(sum(row.audio_seconds for row in rows), result.facts)
        else:
            last_try = len(rows) == 1 and rows[0].attempts >= self._max_attempts
            failed = [row.id for row in rows]
            blamed = await vendor.is_to_blame(errors[0], failed, result.facts, last_try=last_try)
        away: list[JobRow] = []
        for row in rows:
            outcome = outcomes[row.id]
            match outcome:
                case ProviderError() if blamed and outcome.retryable:
                    away.append(row)  # not its fault: the attempt does not count
                case ProviderError():
                    if len(rows) > 1:
                        # Another job of the batch may be the reason: each gets a run alone.
                        await self._in_hand.try_alone(row, outcome, result.facts)
                    elif outcome.retryable and row.attempts < self._max_attempts:
                        await self._in_hand.try_later(row, outcome, result.facts)
                    else:
                        await self._give_up(vendor, row, outcome, result.facts)
                case _:
                    await self._in_hand.finish(row, outcome, result.facts)
        if away:
            await self._in_hand.give_back(away)

    async def _give_up(
        self, vendor: Vendor, row: JobRow, error: ProviderError, facts: RunFacts | None
    ) -> None:
        """The vendor cannot do it: hand the job to the next one that has not tried, or park it."""
        tried = {vendor.name, *row.tried.split(",")}
        heir = next((one for one in self._after(vendor.name) if one.name not in tried), None)
        if self._fallback_after is None or heir is None or error.reason in _OURS:
            await self._in_hand.fail(row, error, facts)
        else:
            await self._in_hand.hand_over(row, error, facts, of=vendor.name, to=heir.name)

    async def _stop_runs(self) -> None:
        runs = [task for vendor in self._vendors.values() for task in vendor.runs]
        for task in runs:
            task.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    def _observe(self, facts: RunFacts) -> None:
        metrics = self._metrics
        if len(self._models) < _MOST_MODELS:
            self._models.add(facts.model)
        model = facts.model if facts.model in self._models else "other"  # anyone may ask for any
        metrics.whisper_runs_total.labels(model=model, reason=facts.reason).inc()
        if facts.reason == "unavailable":
            return  # nothing ran
        metrics.whisper_cli_duration_seconds.labels(model=model, status=facts.status).observe(
            facts.duration
        )
        metrics.whisper_temp_file_bytes.observe(facts.temp_bytes)
        if facts.status == "timeout":
            metrics.whisper_timeouts_total.labels(model=model).inc()
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


def _nothing_to_hear(provider: Provider, reason: str) -> RunFacts:
    return RunFacts(
        provider=provider.name, model=provider.model, status="success", reason=reason, files=0
    )
