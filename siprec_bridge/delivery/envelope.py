"""Events made from what has happened, and their ways of being written: structured, or in parts.

Ids are deterministic: an event that is built or sent again has the id it had, so a consumer
drops duplicates by `id` alone. `sequence` rises with every event of a bridge and may leave gaps.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from siprec_bridge.delivery.events import (
    CONTENT_TYPE,
    SCHEMA,
    SOURCE,
    AnyEvent,
    Data,
    GroupTranscribedData,
    JoinedVersion,
    PausedStream,
    Reference,
    SessionData,
    SessionEndedData,
    SessionErasedData,
    SessionLabelsData,
    SessionPausedData,
    SessionRedactedData,
    SessionVconData,
    Stream,
    TranscriptFailedData,
    TranscriptFinalData,
    TranscriptPartialData,
    TranscriptSegmentData,
)
from siprec_bridge.siprec import Assurance
from siprec_bridge.store import Event
from siprec_bridge.transcript import Conversation, Participant, Redaction

_NAMESPACE = uuid.UUID("6f2b4c1e-52f0-5b8e-9a53-0f4d3f1f7a10")
_ANY_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session as it is at this time: what the `session.*` events are made from."""

    session_id: str
    sip_call_id: str
    at: datetime
    group_id: str | None = None
    call_ids: Mapping[str, str] = field(default_factory=dict)
    participants: tuple[Participant, ...] = ()
    streams: tuple[Stream, ...] = ()
    warnings: tuple[str, ...] = ()


def session_started(facts: SessionFacts) -> Event:
    """The event of a session that is being recorded from `facts.at` on."""
    return _event("session.started", "", facts.at, SessionData(**_session(facts)))


def session_updated(facts: SessionFacts, number: int) -> Event:
    """The event of a change; `number` counts the changes of this session."""
    return _event("session.updated", number, facts.at, SessionData(**_session(facts)))


def session_paused(facts: SessionFacts, number: int, pauses: Sequence[PausedStream]) -> Event:
    """The event of streams not being recorded any more by change `number`."""
    labels = tuple(dict.fromkeys(one.label for one in pauses))
    data = SessionPausedData(**_session(facts), labels=labels, pauses=tuple(pauses))
    return _event("session.paused", number, facts.at, data)


def session_resumed(facts: SessionFacts, number: int, labels: Sequence[str]) -> Event:
    """The event of streams being recorded again by change `number`."""
    data = SessionLabelsData(**_session(facts), labels=tuple(labels))
    return _event("session.resumed", number, facts.at, data)


def session_ended(
    facts: SessionFacts, *, started_at: datetime, cause: str, transcript_eta: float | None = None
) -> Event:
    """The event of a session that ended at `facts.at`; `transcript_eta` in seconds from then."""
    data = SessionEndedData(
        **_session(facts),
        cause=cause,
        started_at=started_at,
        ended_at=facts.at,
        duration=(facts.at - started_at).total_seconds(),
        transcript_eta=transcript_eta,
    )
    return _event("session.ended", "", facts.at, data)


def session_erased(
    session_id: str,
    sip_call_id: str,
    *,
    group_id: str | None,
    participant_ids: Sequence[str],
    labels: Sequence[str],
    whole: bool,
    at: datetime,
) -> Event:
    """The event of an erasure at this time."""
    data = SessionErasedData(
        session_id=session_id,
        sip_call_id=sip_call_id,
        group_id=group_id,
        participant_ids=tuple(participant_ids),
        labels=tuple(labels),
        whole=whole,
    )
    return _event("session.erased", at.astimezone(UTC).isoformat(), at, data)


def session_redacted(
    conversation: Conversation,
    versions: Sequence[int],
    redactions: Sequence[Redaction],
    at: datetime,
) -> Event:
    """The event of something taken out at this time of what was stored before."""
    data = SessionRedactedData(
        session_id=conversation.session_id,
        sip_call_id=conversation.sip_call_id,
        group_id=conversation.group_id,
        call_ids=conversation.call_ids,
        versions=tuple(versions),
        redactions=tuple(redactions),
    )
    return _event("session.redacted", at.astimezone(UTC).isoformat(), at, data)


def transcript_partial(data: TranscriptPartialData, state: int) -> Event:
    """The event of an utterance as it is known; `state` counts what is told of the session."""
    which = f"{data.label}/{data.utterance}" + ("" if data.settled else f"/{state}")
    return _event("transcript.partial", which, data.ends_at, data)


def transcript_events(
    conversation: Conversation, version: int, assurance: Assurance | None = None
) -> list[Event]:
    """One event per utterance, then one for the whole; all of it follows from the conversation."""
    call = {
        "session_id": conversation.session_id,
        "sip_call_id": conversation.sip_call_id,
        "group_id": conversation.group_id,
        "call_ids": conversation.call_ids,
        "version": version,
        "provider": conversation.provider,
        "model": conversation.model,
    }
    segments = [
        _event(
            "transcript.segment",
            f"{version}/{index}",
            utterance.ends_at,
            TranscriptSegmentData(
                **call,
                index=index,
                label=utterance.label,
                participant=utterance.participant,
                language=utterance.language,
                start=utterance.start,
                end=utterance.end,
                starts_at=utterance.starts_at,
                ends_at=utterance.ends_at,
                text=utterance.text,
                words=utterance.words,
                doubt=utterance.doubt,
            ),
        )
        for index, utterance in enumerate(conversation.utterances)
    ]
    whole = TranscriptFinalData(
        **call,
        started_at=conversation.started_at,
        ended_at=conversation.ended_at,
        duration=conversation.duration,
        participants=conversation.participants,
        legs=conversation.legs,
        language=conversation.language,
        text=conversation.text,
        utterances=conversation.utterances,
        redactions=conversation.redactions,
        assurance=assurance,
    )
    return [*segments, _event("transcript.final", version, conversation.ended_at, whole)]


def session_vcon(
    conversation: Conversation, version: int, container: dict[str, Any], at: datetime
) -> Event:
    """The event of a container that was made for this version of the transcript."""
    data = SessionVconData(
        session_id=conversation.session_id,
        sip_call_id=conversation.sip_call_id,
        group_id=conversation.group_id,
        call_ids=conversation.call_ids,
        version=version,
        participants=conversation.participants,
        vcon=container,
    )
    return _event("session.vcon", version, at, data)


def transcript_failed(
    session_id: str,
    sip_call_id: str,
    *,
    group_id: str | None,
    call_ids: Mapping[str, str] | None = None,
    version: int = 1,
    job_id: str,
    attempts: int,
    reason: str,
    at: datetime,
) -> Event:
    """The event of a job that was given up at this time; given up again, it is another event."""
    data = TranscriptFailedData(
        session_id=session_id,
        sip_call_id=sip_call_id,
        group_id=group_id,
        call_ids=dict(call_ids or {}),
        version=version,
        job_id=job_id,
        attempts=attempts,
        reason=reason,
    )
    return _event("transcript.failed", f"{job_id}/{at.astimezone(UTC).isoformat()}", at, data)


def group_transcribed(
    session_id: str,
    sip_call_id: str,
    *,
    group_id: str,
    call_ids: Mapping[str, str],
    sessions: Sequence[tuple[str, int]],
    at: datetime,
) -> Event:
    """The event of a group whose sessions have these versions, `session_id` being the last."""
    data = GroupTranscribedData(
        session_id=session_id,
        sip_call_id=sip_call_id,
        group_id=group_id,
        call_ids=dict(call_ids),
        sessions=tuple(JoinedVersion(session_id=id, version=number) for id, number in sessions),
    )
    which = "/".join(f"{id}.{number}" for id, number in sessions)
    return _event("group.transcribed", which, at, data)


def by_reference(event: Event, limit: int, public_url: str) -> str:
    """The body of a transcript or vCon of more than `limit` octets without it; others as they are.

    What the reference is to is the event's body as it is stored: see `api.events`.
    """
    if event.type not in ("transcript.final", "session.vcon"):
        return event.body
    whole = event.body.encode()
    reference = Reference(
        url=f"{public_url.rstrip('/')}/api/events/{event.id}/data",
        size=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
    )
    if event.type == "session.vcon":
        told = SessionVconData.model_validate_json(whole)
        return told.model_copy(update={"vcon": None, "reference": reference}).model_dump_json()
    data = TranscriptFinalData.model_validate_json(whole)
    data = data.model_copy(update={"utterances": (), "reference": reference})
    body = data.model_dump_json()
    if len(body.encode()) > limit:
        body = data.model_copy(update={"text": ""}).model_dump_json()
    return body


def sessions_named(event: Event) -> set[str]:
    """Ids of the sessions that an event names: who sees one of a group does not see all of them."""
    if event.type != "group.transcribed":
        return {event.session_id}
    told = GroupTranscribedData.model_validate_json(event.body)
    return {event.session_id, *(one.session_id for one in told.sessions)}


def attributes(event: Event) -> dict[str, str | int]:
    """The event's CloudEvents attributes, all but `data`."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": SOURCE,
        "type": event.type,
        "subject": event.session_id,
        "time": event.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": CONTENT_TYPE,
        "dataschema": SCHEMA.format(event.type),
        "sequence": event.seq,
    }


def structured(event: Event) -> str:
    """The event as one JSON text, in CloudEvents' structured mode."""
    # The body is JSON already: parsing and writing it again would cost most of the time.
    return f'{json.dumps(attributes(event))[:-1]}, "data": {event.body}}}'


def parse(text: str | bytes) -> AnyEvent:
    """Read a structured event back. Raises ValueError for what is none of ours."""
    return _ANY_EVENT.validate_json(text)


def _session(facts: SessionFacts) -> dict[str, Any]:
    return {
        "session_id": facts.session_id,
        "sip_call_id": facts.sip_call_id,
        "group_id": facts.group_id,
        "call_ids": dict(facts.call_ids),
        "participants": facts.participants,
        "streams": facts.streams,
        "warnings": facts.warnings,
    }


def _event(kind: str, discriminator: str | int, at: datetime, data: Data) -> Event:
    return Event(
        id=str(uuid.uuid5(_NAMESPACE, f"{data.session_id}/{kind}/{discriminator}")),
        session_id=data.session_id,
        type=kind,
        at=at,
        body=data.model_dump_json(),
    )
