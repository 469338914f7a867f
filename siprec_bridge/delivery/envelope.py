"""What consumers get: CloudEvents 1.0 over WebSocket (structured) and AMQP (binary).

Ids are deterministic: an event that is built or sent again has the id it had, so a consumer
drops duplicates by `id` alone. `sequence` rises with every event of a bridge and may leave gaps.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from siprec_bridge.siprec import Assurance
from siprec_bridge.store import Event
from siprec_bridge.transcript import Conversation, Leg, Participant, Redaction, Utterance, Word

SOURCE: Final = "/siprec-bridge"
CONTENT_TYPE: Final = "application/json"
_NAMESPACE = uuid.UUID("6f2b4c1e-52f0-5b8e-9a53-0f4d3f1f7a10")
SCHEMA: Final = "urn:siprec-bridge:event:{}:1"


class Stream(BaseModel):
    """One labelled stream of the recording session and who sends on it."""

    model_config = ConfigDict(frozen=True)

    label: str
    participants: tuple[Participant, ...] = ()
    codec: str | None = None
    state: Literal["active", "paused", "closed"] = "active"


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


class Data(BaseModel):
    """What every event says: which call it belongs to."""

    model_config = ConfigDict(frozen=True)

    session_id: str = Field(description="the bridge's id of the recording session")
    sip_call_id: str = Field(description="Call-ID of the recording session's dialog")
    group_id: str | None = Field(None, description="communication session group, RFC 7865 §6.2")
    call_ids: dict[str, str] = Field({}, description="vendors' names for the call, such as ucid")


class SessionData(Data):
    """The session as it was when the event happened."""

    participants: tuple[Participant, ...] = ()
    streams: tuple[Stream, ...] = ()
    warnings: tuple[str, ...] = Field(
        (), description="what was odd so far: in SDP or metadata, or with the recording itself"
    )


class SessionLabelsData(SessionData):
    """The streams that are recorded again."""

    labels: tuple[str, ...]


class PausedStream(BaseModel):
    """Why a stream is not recorded: the SRC's hold, somebody's order, or a muted participant."""

    model_config = ConfigDict(frozen=True)

    label: str
    cause: Literal["hold", "operator", "mute"]
    participant_id: str | None = Field(None, description="who is muted")
    by: str | None = None
    reason: str | None = None


class SessionPausedData(SessionData):
    """The streams that are no longer recorded, and why."""

    labels: tuple[str, ...]
    pauses: tuple[PausedStream, ...] = ()


class SessionEndedData(SessionData):
    """How the session ended; `duration` in seconds."""

    cause: str
    started_at: datetime
    ended_at: datetime
    duration: float
    transcript_eta: float | None = Field(
        None,
        description="seconds until its transcript, if all that waits goes first, at the present pace",
    )


class SessionErasedData(Data):
    """What consumers are to erase, too: these participants, as they were known, or the whole."""

    participant_ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = Field((), description="streams with their voice")
    whole: bool = Field(description="true: the whole session was erased")


class SessionRedactedData(Data):
    """These versions of the transcript were changed, and are to be had anew; nothing was added."""

    versions: tuple[int, ...]
    redactions: tuple[Redaction, ...] = Field((), description="where something was taken out")


class TranscriptSegmentData(Data):
    """One utterance. `start` and `end` are seconds from the start of the session."""

    version: int = Field(description="rises when a session is transcribed again")
    index: int = Field(description="place in the conversation, from 0")
    label: str
    participant: Participant | None = None
    language: str | None = None
    start: float
    end: float
    starts_at: datetime
    ends_at: datetime
    text: str
    words: tuple[Word, ...] = ()
    doubt: str | None = Field(None, description="why it may never have been said")
    provider: str
    model: str
    final: Literal[True] = True


class Reference(BaseModel):
    """Where the data is that was too large to be sent. GET, with a token of scope `read`."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(description="without HTTP_PUBLIC_URL a path below the bridge's address")
    size: int = Field(description="octets")
    sha256: str = Field(description="of these octets, in hexadecimal digits")
    media_type: Literal["application/json"] = CONTENT_TYPE


class TranscriptPartialData(Data):
    """What is being said while the call is on. The transcript that follows the call replaces it."""

    label: str
    participant: Participant | None = None
    utterance: int = Field(description="of this stream, rises; the same again: more of it is known")
    settled: bool = Field(description="true: the utterance is over, this is the last of it")
    language: str | None = None
    start: float
    end: float
    starts_at: datetime
    ends_at: datetime
    text: str
    words: tuple[Word, ...] = ()
    model: str | None = None
    final: Literal[False] = False


class TranscriptFinalData(Data):
    """The whole conversation. No speech is a conversation without utterances."""

    version: int
    started_at: datetime
    ended_at: datetime
    duration: float
    participants: tuple[Participant, ...] = ()
    legs: tuple[Leg, ...] = ()
    language: str | None = None
    text: str
    utterances: tuple[Utterance, ...] = ()
    provider: str
    model: str
    final: Literal[True] = True
    redactions: tuple[Redaction, ...] = Field((), description="where something was taken out")
    assurance: Assurance | None = Field(None, description="whether the whole call was recorded")
    reference: Reference | None = Field(
        None,
        description="AMQP: the utterances are left out, and the text if that alone is too large; "
        "this same data with them is there",
    )


class SessionVconData(Data):
    """The session as an IETF vCon, `draft-ietf-vcon-vcon-core-04`, with this transcript."""

    version: int = Field(description="of the transcript in it")
    participants: tuple[Participant, ...] = ()
    vcon: dict[str, Any] | None = Field(
        description="the container, signed where that is wanted; see docs/vcon.md"
    )
    final: Literal[True] = True
    reference: Reference | None = Field(
        None, description="AMQP: the container is left out; this same data with it is there"
    )


class TranscriptFailedData(Data):
    """There is no transcript, until an operator retries the job."""

    version: int = Field(1, description="of the transcript that does not come")
    job_id: str
    attempts: int
    reason: str


class JoinedVersion(BaseModel):
    """A session of the group, and the version of its transcript."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    version: int


class GroupTranscribedData(Data):
    """Of a call that was recorded in several sessions, each has its transcript. This is the last.

    GET `/api/groups/GROUP/transcript` joins them.
    """

    sessions: tuple[JoinedVersion, ...] = Field(description="in the order in which they began")


class CloudEvent(BaseModel):
    """The attributes of every event. CloudEvents 1.0 §3, and its `sequence` as an extension."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: Literal["/siprec-bridge"] = SOURCE
    subject: str = Field(description="the session's id")
    time: datetime
    datacontenttype: Literal["application/json"] = CONTENT_TYPE
    dataschema: str
    sequence: int = Field(0, description="cursor for `since`; rises, with gaps")
    subscriptions: str | None = Field(
        None, description="WebSocket: by commas, which of the listener's subscriptions it is for"
    )


class SessionStarted(CloudEvent):
    """The call was answered and is being recorded."""

    type: Literal["session.started"] = "session.started"
    data: SessionData


class SessionUpdated(CloudEvent):
    """Participants or streams changed, or audio is missing."""

    type: Literal["session.updated"] = "session.updated"
    data: SessionData


class SessionPaused(CloudEvent):
    """Streams were put on hold: nothing of them is recorded."""

    type: Literal["session.paused"] = "session.paused"
    data: SessionPausedData


class SessionResumed(CloudEvent):
    """Streams are recorded again."""

    type: Literal["session.resumed"] = "session.resumed"
    data: SessionLabelsData


class SessionEnded(CloudEvent):
    """The recording ended; its transcript follows."""

    type: Literal["session.ended"] = "session.ended"
    data: SessionEndedData


class SessionErased(CloudEvent):
    """A person was erased from the session, or the session as a whole; copies are to follow."""

    type: Literal["session.erased"] = "session.erased"
    data: SessionErasedData


class SessionRedacted(CloudEvent):
    """Of a session whose transcript was delivered more was taken out; copies are to follow."""

    type: Literal["session.redacted"] = "session.redacted"
    data: SessionRedactedData


class TranscriptPartial(CloudEvent):
    """What is being said while the call is on; the segments replace it."""

    type: Literal["transcript.partial"] = "transcript.partial"
    data: TranscriptPartialData


class TranscriptSegment(CloudEvent):
    """One utterance of the transcript."""

    type: Literal["transcript.segment"] = "transcript.segment"
    data: TranscriptSegmentData


class TranscriptFinal(CloudEvent):
    """The whole transcript, after its segments."""

    type: Literal["transcript.final"] = "transcript.final"
    data: TranscriptFinalData


class SessionVcon(CloudEvent):
    """The session as a vCon, after its transcript, where that is wanted (VCON_EVENTS)."""

    type: Literal["session.vcon"] = "session.vcon"
    data: SessionVconData


class TranscriptFailed(CloudEvent):
    """The transcription was given up."""

    type: Literal["transcript.failed"] = "transcript.failed"
    data: TranscriptFailedData


class GroupTranscribed(CloudEvent):
    """All sessions of a group have a transcript; told again when another or a newer one follows."""

    type: Literal["group.transcribed"] = "group.transcribed"
    data: GroupTranscribedData


AnyEvent = Annotated[
    SessionStarted
    | SessionUpdated
    | SessionPaused
    | SessionResumed
    | SessionEnded
    | SessionErased
    | SessionRedacted
    | TranscriptPartial
    | TranscriptSegment
    | TranscriptFinal
    | SessionVcon
    | TranscriptFailed
    | GroupTranscribed,
    Field(discriminator="type"),
]
_ANY_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
EVENT_MODELS: dict[str, type[CloudEvent]] = {
    model.model_fields["type"].default: model for model in get_args(get_args(AnyEvent)[0])
}


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
