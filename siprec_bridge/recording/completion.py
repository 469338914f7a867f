"""What a transcription run leads to: the conversation, or the note that there will be none.

Transcript, events and the job's end are one transaction: consumers hear of a transcript if
and only if it is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
from siprec_bridge.media import FinishedAudio
from siprec_bridge.provider import AudioFile, Job, ProviderError
from siprec_bridge.recording.orders import AUDIO, version_of, why_away
from siprec_bridge.recording.redactor import Redactor
from siprec_bridge.recording.vcons import VconEvents
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    JobRow,
    SessionRow,
    deposits,
    groups,
    jobs,
    outbox,
    recordings,
    transcripts,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Conversation, RunFacts, Transcript
from siprec_bridge.transcription import RecordedLeg, merge
from siprec_bridge.vcon import Spoken

log = structlog.get_logger()


class Completion:
    """The scheduler's other side: gives it a job's audio and takes what came of it."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        sinks: Sequence[outbox.Recipient],
        clock: Callable[[], datetime],
        deliver: Callable[[], None],
        redactor: Redactor | None = None,
        vcons: VconEvents | None = None,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._sinks = sinks
        self._clock = clock
        self._redactor = redactor
        self._deliver = deliver  # tells the relays that events wait
        self._vcons = vcons

    async def load(self, job: JobRow) -> Job:
        """The job's audio, leg by leg; streams that carried nothing are left out."""
        row, away = await self._database.read(
            lambda connection: (_session_of(connection, job), why_away(connection, job.session_id))
        )
        if away is not None:
            raise LookupError(away)
        audio = AUDIO.validate_json(row.audio or "")
        files = tuple(
            AudioFile(key=leg.label, path=Path(row.folder) / leg.file, duration=leg.duration)
            for leg in audio.legs
            if leg.duration > 0
        )
        call = {"session_id": row.id, "sip_call_id": row.sip_call_id}
        return Job(
            id=job.id,
            audio=files,
            model=job.model,
            language=job.language,
            prompt=job.prompt,
            log_fields=call,
        )

    async def done(self, job: JobRow, heard: Mapping[str, Transcript], facts: RunFacts) -> None:
        """Commit the conversation, its events and the job's end together."""
        row = await self._session(job)
        now = self._clock()
        version = version_of(job)
        document = SessionDocument.model_validate_json(row.document)
        conversation = _conversation(row, document, heard, facts)
        audio: FinishedAudio | None = None
        sealed = False
        if self._redactor is not None:
            said = conversation
            conversation, audio = await self._redactor.redact(row, said)
            if (conversation.utterances, conversation.suppressed) != (
                said.utterances,
                said.suppressed,
            ):
                sealed = await self._redactor.keep_original(row, said, version)
            facts = conversation.run or facts
        events = envelope.transcript_events(conversation, version, document.assurance)
        if self._vcons is not None:
            told = replace(row, audio=AUDIO.dump_json(audio).decode()) if audio is not None else row
            events.append(await self._vcons.event(told, Spoken(conversation, version, now)))

        def store(connection: Connection) -> None:
            text, whole = conversation.text, conversation.model_dump_json()
            if transcripts.save(connection, row.id, version, job.id, text, whole, now):
                outbox.append(connection, events, self._sinks)
                # After them: from there on no other node tells of another session of the group.
                outbox.append(
                    connection, self._of_group(connection, document, row, now), self._sinks
                )
            summary = row.audio
            if audio is not None:
                summary = AUDIO.dump_json(audio).decode()
                recordings.update(connection, row.id, audio=summary)
            if sealed or (audio is not None and summary != row.audio):
                deposits.changed(connection, row.id, now)
            jobs.finish(connection, job.id, facts, now)

        await self._database.write(store)
        if row.ended_at is not None:
            self._metrics.transcription_delay_seconds.observe((now - row.ended_at).total_seconds())
        log.info(
            "transcript.stored",
            job=job.id,
            session_id=row.id,
            sip_call_id=row.sip_call_id,
            utterances=len(conversation.utterances),
            run_seconds=round(facts.duration, 3),
        )
        self._deliver()

    def _of_group(
        self, connection: Connection, document: SessionDocument, row: SessionRow, now: datetime
    ) -> list[outbox.Event]:
        """That all sessions of the group have a transcript now, if they have."""
        if document.group_id is None:
            return []
        sessions = groups.transcribed(connection, document.group_id)
        if not sessions:
            return []
        return [
            envelope.group_transcribed(
                row.id,
                row.sip_call_id,
                group_id=document.group_id,
                call_ids=document.call_ids,
                sessions=sessions,
                at=now,
            )
        ]

    async def failed(self, job: JobRow, error: ProviderError, facts: RunFacts | None) -> None:
        """Park the job and tell the consumers that no transcript comes, until someone retries."""
        row = await self._session(job)
        now = self._clock()
        document = SessionDocument.model_validate_json(row.document)
        event = envelope.transcript_failed(
            row.id,
            row.sip_call_id,
            group_id=document.group_id,
            call_ids=document.call_ids,
            version=version_of(job),
            job_id=job.id,
            attempts=job.attempts,
            reason=error.reason,
            at=now,
        )

        def store(connection: Connection) -> None:
            if jobs.fail(connection, job.id, error.reason, now, facts, runner=job.runner):
                outbox.append(connection, [event], self._sinks)

        await self._database.write(store)
        log.error(
            "transcript.failed",
            session_id=row.id,
            sip_call_id=row.sip_call_id,
            job=job.id,
            attempts=job.attempts,
            reason=error.reason,
            detail=error.detail,
        )
        self._deliver()

    async def _session(self, job: JobRow) -> SessionRow:
        return await self._database.read(partial(_session_of, job=job))


def _session_of(connection: Connection, job: JobRow) -> SessionRow:
    row = recordings.get(connection, job.session_id)
    if row is None:
        raise LookupError(f"job {job.id} belongs to no session")
    return row


def _conversation(
    row: SessionRow,
    document: SessionDocument,
    heard: Mapping[str, Transcript],
    facts: RunFacts,
) -> Conversation:
    audio = AUDIO.validate_json(row.audio or "")
    legs = [
        RecordedLeg(
            label=leg.label,
            started_at=leg.started_at,
            duration=leg.duration,
            audio=leg.file,
            participants=document.on_stream(leg.label),
            keys=leg.keys,
        )
        for leg in audio.legs
    ]
    return merge(
        legs,
        heard,
        document.speaker,
        session_id=row.id,
        sip_call_id=row.sip_call_id,
        group_id=document.group_id,
        call_ids=document.call_ids,
        participants=document.participants,
        started_at=row.started_at,
        ended_at=row.ended_at or row.started_at,
        facts=facts,
    )
