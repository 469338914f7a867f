"""From a closed recording to audio files and a queued transcription job.

Each step can be repeated: a bridge that was killed between two of them does the same work
again at the next start and comes to the same result.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import Stream
from siprec_bridge.media import Finisher
from siprec_bridge.recording import long_past
from siprec_bridge.recording.assurance import NO_AUDIO, assure
from siprec_bridge.recording.full_disk import FullDisk
from siprec_bridge.recording.orders import AUDIO, Orders
from siprec_bridge.recording.redactor import Redactor
from siprec_bridge.siprec import Assurance, SessionDocument
from siprec_bridge.store import (
    Database,
    Event,
    SessionRow,
    StoreError,
    deposits,
    jobs,
    outbox,
    recordings,
)
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

T = TypeVar("T")

_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0


class Archive:
    """Writes each session's end: audio files, the job, and the events that tell of it."""

    def __init__(
        self,
        database: Database,
        finisher: Finisher,
        orders: Orders,
        metrics: Metrics,
        *,
        sample_rate: int,
        sinks: Sequence[outbox.Recipient],
        clock: Callable[[], datetime],
        transcribe: Callable[[], None],
        redactor: Redactor | None = None,
        keep_safe: bool = False,
        eta: Callable[[float], float | None] = lambda audio_seconds: None,
    ) -> None:
        self._database = database
        self._finisher = finisher
        self._orders = orders
        self._sample_rate = sample_rate  # Hz, of finished audio
        self._metrics = metrics
        self._sinks = sinks
        self._clock = clock
        self._redactor = redactor
        self._transcribe = transcribe  # tells the scheduler that a job waits
        self._keep_safe = keep_safe  # there is a custodian who wants the files
        self._eta = eta  # seconds until so much more audio is transcribed

    async def end(
        self,
        session: SessionRow,
        cause: str,
        at: datetime,
        document: SessionDocument,
        untold: Sequence[Event] = (),
    ) -> None:
        """Note the session's end and finish its audio; retried until the disk takes it.

        `session` is its row, as stored or as its owner knows it; `untold` are its earlier events
        that are not stored yet.
        """
        folder, whole = Path(session.folder), document
        if session.state == "recording":
            whole = await until_taken(lambda: asyncio.to_thread(long_past.joined, document, folder))
            await until_taken(lambda: self._note_end(session, cause, at, whole, untold))
        await until_taken(lambda: asyncio.to_thread(long_past.remove, folder, session.id))
        full: FullDisk | None = None

        async def finish() -> None:
            nonlocal full
            if full is not None:  # to decode hours of audio for nothing costs all others' CPU
                await asyncio.to_thread(full.complain)
                full = None
            try:
                await self._finish(session, session.end_cause or cause, at, whole)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    full = await asyncio.to_thread(FullDisk, folder)
                raise

        await until_taken(finish)

    async def give_up(self, session: SessionRow, at: datetime, document: SessionDocument) -> None:
        """Note that there is no audio; retried until the disk takes it."""
        if session.state == "recording":
            note = partial(self._note_end, session, "bridge_restarted", at, document, ())
            await until_taken(lambda: note(outcome="failed"))

        def store(connection: Connection) -> None:
            recordings.update(
                connection,
                session.id,
                state="failed",
                document=document.model_copy(update={"assurance": NO_AUDIO}).model_dump_json(),
                assurance=NO_AUDIO.verdict,
            )

        await until_taken(lambda: self._database.write(store))
        self.count(NO_AUDIO)

    async def _finish(
        self, session: SessionRow, cause: str, at: datetime, document: SessionDocument
    ) -> None:
        """Make the audio files from the spool, judge them, and queue the job.

        Raises OSError or StoreError when the disk or the database does not take it.
        """
        audio = await self._finisher.finish(
            Path(session.folder),
            session.id,
            self._sample_rate,
            {one.index: one.expected(at) for one in document.streams},
        )
        if self._redactor is not None:
            audio = self._redactor.mark(audio, document, session.peer)
        assurance = assure(document, audio, at, cause)
        judged = document.model_copy(update={"assurance": assurance}).model_dump_json()
        seconds = sum(leg.duration for leg in audio.legs)
        now = self._clock()
        job = self._orders.first(session, document, seconds, now)
        summary = AUDIO.dump_json(audio).decode()

        def store(connection: Connection) -> None:
            recordings.update(
                connection,
                session.id,
                state="finished",
                audio=summary,
                document=judged,
                assurance=assurance.verdict,
            )
            if jobs.get(connection, job.id) is None:
                jobs.insert(connection, job)
            if self._keep_safe:
                deposits.add(connection, session.id, session.node, now)

        await self._database.write(store)
        undecoded = sum(leg.undecoded for leg in audio.legs)
        self._metrics.rtp_packets_undecoded_total.inc(undecoded)
        self.count(assurance)
        log.info(
            "session.archived",
            audio_seconds=round(seconds, 3),
            legs=len(audio.legs),
            codecs=sorted({name for leg in audio.legs for name in leg.codecs}),
            undecoded=undecoded,
            assurance=assurance.verdict,
        )
        if assurance.findings:
            log.warning(
                "session.not_complete",
                verdict=assurance.verdict,
                findings=[
                    {"code": one.code, "label": one.label, "detail": one.detail}
                    for one in assurance.findings
                ],
            )
        self._transcribe()

    def count(self, assurance: Assurance) -> None:
        """Let the metrics tell of a session that was judged."""
        metrics = self._metrics
        metrics.sessions_assured_total.labels(verdict=assurance.verdict).inc()
        for code in {one.code for one in assurance.findings}:
            metrics.assurance_findings_total.labels(code=code).inc()
        metrics.audio_expected_seconds_total.inc(sum(one.expected for one in assurance.streams))
        metrics.audio_captured_seconds_total.inc(sum(one.captured for one in assurance.streams))

    async def _note_end(
        self,
        session: SessionRow,
        cause: str,
        at: datetime,
        document: SessionDocument,
        untold: Sequence[Event],
        *,
        outcome: str | None = None,
    ) -> None:
        started_at = session.started_at
        seconds = sum(
            (until - since).total_seconds()
            for stream in document.streams
            for since, until in stream.expected(at)
        )

        def store(connection: Connection) -> None:
            eta = self._eta(seconds)
            ended = envelope.session_ended(
                facts_of(document, session.sip_call_id, at),
                started_at=started_at,
                cause=cause,
                transcript_eta=round(eta, 1) if eta is not None else None,
            )
            recordings.update(
                connection,
                session.id,
                state="finishing",
                ended_at=at,
                end_cause=cause,
                document=document.model_dump_json(),
                warnings=document.warnings,
                group_id=document.group_id,
            )
            outbox.append(connection, [*untold, ended], self._sinks)

        await self._database.write(store)
        self._metrics.session_duration_seconds.observe((at - started_at).total_seconds())
        self._metrics.sessions_total.labels(outcome=outcome or _outcome(cause)).inc()


async def until_taken(work: Callable[[], Awaitable[T]]) -> T:
    """Do what belongs to a session's end, again and again until disk and database take it."""
    delay = _FIRST_RETRY_S
    while True:
        try:
            return await work()
        except (StoreError, OSError) as error:
            log.error("session.not_archived", cause=str(error), retry_in_s=delay)
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_RETRY_S)


def facts_of(document: SessionDocument, sip_call_id: str, at: datetime) -> envelope.SessionFacts:
    """What the `session.*` events tell of a session."""
    return envelope.SessionFacts(
        session_id=document.session_id,
        sip_call_id=sip_call_id,
        at=at,
        group_id=document.group_id,
        call_ids=document.call_ids,
        participants=document.participants,
        streams=tuple(
            Stream(
                label=one.label,
                participants=document.on_stream(one.label),
                codec=one.codec,
                state=one.state,
            )
            for one in document.streams
        ),
        warnings=document.warnings,
    )


def _outcome(cause: str) -> str:
    match cause:
        case "bye" | "terminated":
            return "completed"
        case "bridge_restarted":
            return "recovered"
        case "failed":
            return "failed"
        case _:
            return "abandoned"
