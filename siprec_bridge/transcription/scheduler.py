"""Jobs on disk to runs of the providers, and back: order, pace, batches, retries, outages, fallback.

A job is claimed only when a run may start, so that what waits, waits in the database. The
scheduler puts jobs back (retry, outage, stop, another vendor); what ends a job is its owner's
business, who commits the result and the job's end in one transaction (`on_done`, `on_failed`).
"""

import asyncio
import errno
import secrets
import shutil
import tempfile
import time
import wave
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from sqlalchemy import Connection

from siprec_bridge.provider import AudioFile, Job, Provider, ProviderError, ProviderUnavailable, Run
from siprec_bridge.store import Backlog, Database, JobRow, StoreError, jobs
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import RunFacts, Transcript
from siprec_bridge.transcription.circuit import Circuit
from siprec_bridge.transcription.guard import Guard
from siprec_bridge.transcription.pace import Pace
from siprec_bridge.transcription.packing import PackingPolicy, transcribe_packed
from siprec_bridge.transcription.prepare import Preparation, PreparedJob
from siprec_bridge.transcription.speech import SpeechOptions

log = structlog.get_logger()

OnDone = Callable[[JobRow, Mapping[str, Transcript], RunFacts], Awaitable[None]]
OnFailed = Callable[[JobRow, ProviderError, RunFacts | None], Awaitable[None]]

_NO_LIMIT = 64  # runs at once where the provider sets no limit
_LOOK_S = 5.0  # jobs may be queued by another process: `siprec-bridge jobs retry`
_LONGEST_DELAY_S = 3600.0
_OUTAGE_FIRST_S, _OUTAGE_LONGEST_S = 0.5, 15.0
_PROBE_S = 1.0  # length of the tone that a recogniser is probed with
_MOST_MODELS = 50  # with metrics of their own
# What is not the audio's fault, and passes: no disk, memory or descriptor is left.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OURS = ("audio_missing", "internal_error")  # reasons that are no vendor's


@dataclass(eq=False)
class _Lane:
    """A vendor with its runs, and what is known of it."""

    provider: Provider
    preparation: Preparation
    circuit: Circuit
    pace: Pace = field(default_factory=Pace)
    runs: set[asyncio.Task[Any]] = field(default_factory=set)
    outage_s: float = 0.0
    away: str | None = None  # why it cannot be run
    try_at: float | None = None  # it is away by what a run said, and only a run can tell otherwise
    down_since: float | None = None  # away or broken
    probe: asyncio.Lock = field(default_factory=asyncio.Lock)
    probed_at: float = -1e9  # when it was last found to work, whoever asked

    @property
    def name(self) -> str:
        return self.provider.name

    @property
    def limit(self) -> int:
        return self.provider.max_concurrent or _NO_LIMIT

    @property
    def trouble(self) -> str | None:
        """Why no job is started, or None."""
        if self.away is not None:
            return self.away
        return f"broken: {self.circuit.cause}" if self.circuit.is_open else None


@dataclass(frozen=True, slots=True)
class VendorState:
    """A vendor as operators see it."""

    name: str
    state: Literal["working", "away", "broken"]
    cause: str | None
    running: int  # runs
    slots: int | None  # None: no limit
    pace: float | None  # seconds of audio in a second of a run; None: not known yet


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
        self._on_done = on_done
        self._on_failed = on_failed
        self._clock = clock
        self._now = monotonic
        self._guard = guard or Guard("off")
        self._max_attempts = max_attempts
        self._retry_delay = retry_delay
        self._lease = lease
        self._fallback_after = fallback_after
        self._conceal = conceal
        self._packing = packing
        self._lanes = {
            one.name: _Lane(one, Preparation(one.sample_rate, speech), Circuit(circuit_failures))
            for one in providers
        }
        self._default = next(iter(self._lanes))
        self._news = asyncio.Event()
        self._models: set[str] = set()
        self._measure_again = 0.0  # time.monotonic()
        self._backlog = Backlog(0, 0.0, 0)  # as it was a moment ago
        self._running: set[str] = set()  # jobs, whose leases are to be renewed

    def wake(self) -> None:
        """There may be a job to run."""
        self._news.set()

    async def trouble(self, vendor: str) -> str | None:
        """Why no job of this vendor can be run now (one line), or None."""
        lane = self._lanes[vendor]
        return await lane.provider.unavailable() or lane.trouble

    def vendors(self) -> list[VendorState]:
        """All vendors, the default one first."""
        return [
            VendorState(
                name=lane.name,
                state="away" if lane.away else "broken" if lane.circuit.is_open else "working",
                cause=lane.trouble,
                running=len(lane.runs),
                slots=lane.provider.max_concurrent,
                pace=lane.pace.ratio,
            )
            for lane in self._lanes.values()
        ]

    def speed(self, waiting: int) -> float | None:
        """Seconds of audio that are transcribed in a second when so many jobs wait; None: unknown."""
        rates = [
            lane.pace.ratio * min(lane.limit, max(1, waiting))
            for lane in self._lanes.values()
            if lane.pace.ratio is not None and lane.trouble is None
        ]
        return sum(rates) or None

    async def run(self) -> None:
        """Serve jobs until cancelled."""
        renewal = asyncio.create_task(self._keep_leases(), name="leases")
        try:
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

    async def _take_over(self) -> None:
        """What an earlier bridge left behind: jobs of vendors that are gone, and how fast runs were."""
        names = list(self._lanes)
        try:
            orphans = await self._database.write(
                partial(jobs.adopt, vendors=names, default=self._default, node=self._database.node)
            )
            runs = await self._database.read(jobs.recent_runs)
        except StoreError as error:
            log.error("jobs.store_failed", cause=str(error))
            return
        if orphans:
            log.warning("jobs.adopted", count=orphans, vendor=self._default)
        for vendor, audio, seconds in runs:
            if vendor in self._lanes:
                self._lanes[vendor].pace.note(audio, seconds)

    async def _start_runs(self) -> float:
        """Start what may run; returns the seconds until there may be more to do."""
        patience = [_LOOK_S]
        for lane in self._lanes.values():
            cause = await lane.provider.unavailable()
            if cause is not None or lane.try_at is None:
                self._note_availability(lane, cause)
        for lane in self._lanes.values():
            patience.append(await self._start_runs_of(lane))
        patience.append(await self._measure())
        return min(patience)

    async def _start_runs_of(self, lane: _Lane) -> float:
        while True:
            if lane.away is not None:
                wait = lane.outage_s if lane.try_at is None else lane.try_at - self._now()
                if wait > 0 or lane.probe.locked():
                    return max(wait, 0.05)
                self._start(lane, self._look_again(lane))
                return _LOOK_S
            if len(lane.runs) >= lane.limit or lane.circuit.is_suspicious:
                return _LOOK_S
            if lane.circuit.is_open:
                wait = lane.circuit.wait(self._now())
                if not wait and not lane.probe.locked():
                    self._start(lane, self._verify(lane))
                return min(max(wait, 0.05), _LOOK_S)
            batch, due, left = await self._claim(lane)
            if not batch:
                if due is None:
                    return _LOOK_S
                return min(_LOOK_S, max(0.01, (due - self._clock()).total_seconds()))
            self._start(lane, self._serve(lane, batch))
            if not left:
                return _LOOK_S

    def _start(self, lane: _Lane, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work, name=f"transcription run of {lane.name}")
        lane.runs.add(task)
        task.add_done_callback(partial(self._forget, lane))
        self._count_runs(lane)

    def _forget(self, lane: _Lane, task: asyncio.Task[Any]) -> None:
        lane.runs.discard(task)
        self._count_runs(lane)
        self._news.set()

    def _count_runs(self, lane: _Lane) -> None:
        self._metrics.vendor_runs_active.labels(vendor=lane.name).set(len(lane.runs))
        self._metrics.whisper_runs_active.set(sum(len(one.runs) for one in self._lanes.values()))

    def _note_availability(self, lane: _Lane, cause: str | None) -> None:
        if cause is None:
            if lane.away is not None:
                log.info("recogniser.available_again", vendor=lane.name)
            lane.outage_s = 0.0
        else:
            if lane.away is None:
                log.error("recogniser.unavailable", vendor=lane.name, cause=cause)
            lane.outage_s = min(max(2 * lane.outage_s, _OUTAGE_FIRST_S), _OUTAGE_LONGEST_S)
        lane.away, lane.try_at = cause, None
        self._note_state(lane)

    def _note_away(self, lane: _Lane, cause: ProviderError) -> None:
        """A run found nobody, though the provider sees nothing amiss: a server is down, say."""
        self._note_availability(lane, cause.detail or cause.reason)
        lane.try_at = self._now() + lane.outage_s

    def _note_state(self, lane: _Lane) -> None:
        if lane.trouble is None:
            lane.down_since = None
        elif lane.down_since is None:
            lane.down_since = self._now()
        self._metrics.vendor_available.labels(vendor=lane.name).set(lane.trouble is None)
        self._metrics.vendor_circuit_open.labels(vendor=lane.name).set(lane.circuit.is_open)
        if lane.name == self._default:
            self._metrics.recogniser_available.set(lane.trouble is None)

    def _is_down_for_long(self, lane: _Lane) -> bool:
        return (
            self._fallback_after is not None
            and lane.down_since is not None
            and self._now() - lane.down_since >= self._fallback_after
        )

    def _after(self, vendor: str) -> list[_Lane]:
        """The other vendors, in the order in which they are asked for this one's jobs."""
        lanes = list(self._lanes.values())
        place = next((n for n, lane in enumerate(lanes) if lane.name == vendor), -1)
        return lanes[place + 1 :] + lanes[: max(place, 0)]

    def _stands_in_for(self, lane: _Lane) -> list[str]:
        """Vendors that are down for so long that this one takes their jobs."""
        return [
            other.name
            for other in self._lanes.values()
            if other is not lane
            and self._is_down_for_long(other)
            and next((one for one in self._after(other.name) if one.trouble is None), None) is lane
        ]

    async def _claim(self, lane: _Lane) -> tuple[list[JobRow], datetime | None, int]:
        """The jobs of the next run; if none, when the first is due; and how many are left."""
        free = max(1, lane.limit - len(lane.runs))
        others = self._stands_in_for(lane)
        vendors, node = [lane.name, *others], self._database.node

        def claim(connection: Connection) -> tuple[list[JobRow], datetime | None, int]:
            count = jobs.ready(connection, vendors, free * lane.provider.max_batch, node)
            if not (count or node):  # with others, there are their leases
                return [], None, 0
            # Free slots share what waits; only what is beyond them goes into batches.
            fair = max(1, min(-(-count // free), lane.provider.max_batch // 2))
            taken = jobs.claim(
                connection,
                fair,
                self._clock(),
                vendor=lane.name,
                instead_of=others,
                node=node,
                lease=self._lease,
            )
            due = None if taken else jobs.next_due(connection, vendors, node)
            return taken, due, max(0, count - len(taken))

        claimed, due, left = await self._database.write(claim)
        for job in claimed if others else ():
            log.info("job.stand_in", job=job.id, session_id=job.session_id, vendor=lane.name)
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

    async def _serve(self, lane: _Lane, batch: list[JobRow]) -> None:
        """One run, from claimed jobs to their ends; nothing that goes wrong gets past it."""
        self._running.update(job.id for job in batch)
        try:
            await self._run_batch(lane, batch)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(batch))
            raise
        except StoreError as error:
            log.error("jobs.store_failed", jobs=[job.id for job in batch], cause=str(error))
            await self._give_back(batch)
        except Exception:  # our fault: these jobs are tried again, and the others go on
            # What has ended by now stays so.
            left = [job for job in batch if job.id in self._running]
            log.exception("jobs.run_failed", jobs=[job.id for job in left])
            ours = ProviderError("internal_error")
            if len(batch) > 1:  # one of them may be the reason: each gets a run alone
                for job in left:
                    await self._put_back(job, ours, None, 0.0, solo=True)
            else:
                await self._reschedule(left, ours, None)
        finally:
            self._running.difference_update(job.id for job in batch)

    async def _run_batch(self, lane: _Lane, batch: list[JobRow]) -> None:
        # Folders of files that most jobs do not need: their making and removal is told in ms.
        name = f"siprec-prepare-{secrets.token_hex(8)}"
        folders = [Path(tempfile.gettempdir()) / f"{name}-{number}" for number in range(len(batch))]
        try:
            ready: dict[str, PreparedJob] = {}
            for row, folder in zip(batch, folders, strict=True):
                prepared = await self._prepare(lane, row, folder)
                if prepared is not None:
                    ready[row.id] = prepared
            rows = {row.id: row for row in batch if row.id in ready}
            for row in [row for row in rows.values() if not ready[row.id].job.audio]:
                reason = "no_speech" if ready[row.id].maps else "no_audio"
                await self._finish(
                    row, ready[row.id].restore({}), _nothing_to_hear(lane.provider, reason)
                )
                del rows[row.id]
            if not rows:
                return
            folders.append(Path(tempfile.gettempdir()) / f"{name}-packed")
            result = await self._transcribe(
                lane, list(rows.values()), [ready[id].job for id in rows], folders[-1]
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
        await self._take(lane, list(rows.values()), replace(result, outcomes=outcomes))

    async def _transcribe(
        self, lane: _Lane, rows: Sequence[JobRow], sent: Sequence[Job], folder: Path
    ) -> Run:
        """A run for all, with short legs in one file where that is wanted and the language known."""
        language = sent[0].language or getattr(lane.provider, "language", None)
        known = language is not None and language.lower() != "auto"
        if self._packing == "off" or not lane.preparation.finds_speech or not known or rows[0].solo:
            return await lane.provider.transcribe(sent)
        run, packed, again = await transcribe_packed(
            lane.provider, sent, self._packing, lambda files: lane.preparation.join(files, folder)
        )
        self._metrics.packed_legs_total.labels(heard="together").inc(packed - again)
        self._metrics.packed_legs_total.labels(heard="again").inc(again)
        return run

    async def _prepare(self, lane: _Lane, row: JobRow, folder: Path) -> PreparedJob | None:
        try:
            prepared = await lane.preparation.prepare(await self._load(row), folder)
        except (OSError, ValueError, LookupError) as error:
            code = error.errno if isinstance(error, OSError) else None
            missing = ProviderError("audio_missing", str(error))
            if code in _NO_ROOM:
                self._note_away(
                    lane, ProviderError("no_room", f"no audio can be prepared: {error}")
                )
                await self._give_back([row], 6 * self._retry_delay)  # a smaller one may have room
            elif code is None or isinstance(error, FileNotFoundError):
                await self._fail(row, missing, None)
            else:  # a disk or mount in trouble, which may be well again
                await self._reschedule([row], missing, None)
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

    async def _take(self, lane: _Lane, rows: Sequence[JobRow], result: Run) -> None:
        outcomes = {
            row.id: result.outcomes.get(row.id, ProviderError("no_outcome")) for row in rows
        }
        broken = await self._draw_conclusions(lane, rows, outcomes, result.facts)
        away: list[JobRow] = []
        for row in rows:
            outcome = outcomes[row.id]
            match outcome:
                case ProviderError() if broken and outcome.retryable:
                    away.append(row)  # not its fault: the attempt does not count
                case ProviderError():
                    if len(rows) > 1:
                        # Another job of the batch may be the reason: each gets a run alone.
                        await self._put_back(row, outcome, result.facts, 0.0, solo=True)
                    elif outcome.retryable and row.attempts < self._max_attempts:
                        await self._reschedule([row], outcome, result.facts)
                    else:
                        await self._give_up(lane, row, outcome, result.facts)
                case _:
                    await self._finish(row, outcome, result.facts)
        if away:
            await self._give_back(away)

    async def _draw_conclusions(
        self,
        lane: _Lane,
        rows: Sequence[JobRow],
        outcomes: Mapping[str, Mapping[str, Transcript] | ProviderError],
        facts: RunFacts,
    ) -> bool:
        """Whether the recogniser is away or broken, so that no job is to blame."""
        errors = [one for one in outcomes.values() if isinstance(one, ProviderError)]
        if len(errors) < len(rows):
            lane.pace.note(sum(row.audio_seconds for row in rows), facts.duration)
            if lane.pace.ratio is not None:
                self._metrics.vendor_pace_ratio.labels(vendor=lane.name).set(lane.pace.ratio)
            self._note_works(lane)
            return False
        begun = self._now() - facts.duration
        if isinstance(errors[0], ProviderUnavailable):
            return await self._is_away(lane, errors[0], since=begun)
        if not errors[0].retryable:
            return False
        if lane.circuit.is_open:
            return True
        lane.circuit.failed(errors[0].reason, [row.id for row in rows])
        last_try = len(rows) == 1 and rows[0].attempts >= self._max_attempts
        if not lane.circuit.is_suspicious and not (last_try and lane.circuit.is_used):
            return False
        return not await self._verify(lane, [row.id for row in rows], since=begun)

    def _note_works(self, lane: _Lane) -> None:
        if lane.circuit.is_open:
            log.info("recogniser.works_again", vendor=lane.name)
        lane.circuit.worked()
        lane.probed_at = self._now()
        self._note_state(lane)

    async def _verify(
        self, lane: _Lane, failed: Sequence[str] = (), *, since: float | None = None
    ) -> bool:
        """Whether the recogniser transcribes audio that is known to be good.

        It is not asked if it was found to do so after `since`, or found broken meanwhile. `failed`:
        the jobs that were run last, whose attempt their owner takes back.
        """
        async with lane.probe:
            if since is not None and lane.circuit.is_open:
                return False
            if since is not None and lane.probed_at > since:
                lane.circuit.worked()
                return True
            was_open = lane.circuit.is_open
            error = await self._probe(lane)
            if error is None:
                self._note_works(lane)
                return True
            cause = str(error)
            spent = lane.circuit.broke(cause, self._now())
            for job in failed:
                spent[job] = spent.get(job, 1) - 1
            self._note_state(lane)
            report = log.info if was_open else log.error
            report(
                "recogniser.still_broken" if was_open else "recogniser.broken",
                vendor=lane.name,
                cause=cause,
                next_probe_s=lane.circuit.wait(self._now()),
                effect="calls are recorded, jobs wait",
            )
        if spent:
            try:
                await self._database.write(partial(jobs.refund, attempts=spent))
            except StoreError as error:
                log.error("jobs.store_failed", jobs=list(spent), cause=str(error))
        return False

    async def _is_away(self, lane: _Lane, error: ProviderUnavailable, *, since: float) -> bool:
        """Whether it is away for all, as a run said, or only for this job: of a model it lacks, say.

        One such job would else wait at the head of the queue for ever, and all others behind it.
        """
        async with lane.probe:
            if lane.away is not None or lane.circuit.is_open:
                return True
            if lane.probed_at > since:
                return False
            if await self._probe(lane) is None:
                lane.probed_at = self._now()
                return False
            self._note_away(lane, error)
            return True

    async def _look_again(self, lane: _Lane) -> None:
        """Whether a recogniser that was away, as a run said, is there again."""
        async with lane.probe:
            if lane.try_at is None:
                return
            error = await self._probe(lane)
            if error is not None:
                self._note_away(lane, error)
            else:
                self._note_availability(lane, None)

    async def _probe(self, lane: _Lane) -> ProviderError | None:
        """Have a tone transcribed; returns what went wrong, or None."""
        error = await self._hear_tone(lane)
        self._metrics.vendor_probes_total.labels(
            vendor=lane.name, result="works" if error is None else "fails"
        ).inc()
        return error

    async def _hear_tone(self, lane: _Lane) -> ProviderError | None:
        try:
            with tempfile.TemporaryDirectory(prefix="siprec-probe-") as folder:
                path = Path(folder) / "tone.wav"
                await asyncio.to_thread(_write_tone, path, lane.provider.sample_rate)
                job = Job("probe", (AudioFile("probe", path, _PROBE_S),))
                run = await lane.provider.transcribe([job])
        except Exception as error:  # noqa: BLE001  a full disk, or anyone's plug-in
            return ProviderError(type(error).__name__, str(error))
        self._observe(run.facts)
        outcome = run.outcomes.get(job.id, ProviderError("no_outcome"))
        return outcome if isinstance(outcome, ProviderError) else None

    async def _give_up(
        self, lane: _Lane, row: JobRow, error: ProviderError, facts: RunFacts | None
    ) -> None:
        """The vendor cannot do it: hand the job to the next one that has not tried, or park it."""
        tried = {lane.name, *row.tried.split(",")}
        heir = next((one for one in self._after(lane.name) if one.name not in tried), None)
        if self._fallback_after is None or heir is None or error.reason in _OURS:
            await self._fail(row, error, facts)
            return

        async def store() -> None:
            await self._database.write(
                partial(jobs.hand_over, row=row, vendor=heir.name, facts=facts, runner=row.runner)
            )

        await self._persist(store, "jobs.fallback_not_stored")
        self._running.discard(row.id)
        self._metrics.fallbacks_total.labels(vendor=lane.name, to=heir.name).inc()
        log.warning(
            "job.handed_over",
            job=row.id,
            session_id=row.session_id,
            vendor=lane.name,
            to=heir.name,
            reason=error.reason,
        )

    async def _finish(self, row: JobRow, heard: Mapping[str, Transcript], facts: RunFacts) -> None:
        # A result may have cost minutes of a GPU: a full disk makes it wait, not vanish.
        await self._persist(lambda: self._on_done(row, heard, facts), "jobs.result_not_stored")
        self._running.discard(row.id)
        self._metrics.jobs_total.labels(outcome="done").inc()

    async def _fail(self, row: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        await self._persist(lambda: self._on_failed(row, error, facts), "jobs.failure_not_stored")
        self._running.discard(row.id)
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
        self._running.discard(row.id)
        self._metrics.jobs_total.labels(outcome="retried").inc()
        log.info("job.retried_later", job=row.id, session_id=row.session_id, in_s=delay)

    async def _give_back(self, rows: Sequence[JobRow], delay: float | None = None) -> None:
        ids = [row.id for row in rows]
        due = None if delay is None else self._clock() + timedelta(seconds=delay)
        try:
            await self._database.write(
                partial(jobs.release, job_ids=ids, not_before=due, runner=self._database.node)
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
        runs = [task for lane in self._lanes.values() for task in lane.runs]
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


def _write_tone(path: Path, rate: int) -> None:
    """A second of 440 Hz, as loud as speech."""
    tone = 3000 * np.sin(2 * np.pi * 440 * np.arange(round(_PROBE_S * rate)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(tone.astype("<i2").tobytes())
