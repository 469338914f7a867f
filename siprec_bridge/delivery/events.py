"""The events that consumers get, as they are published: CloudEvents 1.0 in JSON.

Changes only add: a consumer that was written for an older bridge reads a newer one's events.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from siprec_bridge.siprec import Assurance
from siprec_bridge.transcript import Leg, Participant, Redaction, Utterance, Word

SOURCE: Final = "/siprec-bridge"
CONTENT_TYPE: Final = "application/json"
SCHEMA: Final = "urn:siprec-bridge:event:{}:1"


class Stream(BaseModel):
    """One labelled stream of the recording session and who sends on it."""

    model_config = ConfigDict(frozen=True)

    label: str
    participants: tuple[Participant, ...] = ()
    codec: str | None = None
    state: Literal["active", "paused", "closed"] = "active"


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
EVENT_MODELS: dict[str, type[CloudEvent]] = {
    model.model_fields["type"].default: model for model in get_args(get_args(AnyEvent)[0])
}


def beginnings_of_types(names: Sequence[str]) -> tuple[str, ...]:
    """Types as they begin: `transcript.*` may be written too. Raises ValueError for no event's."""
    found = tuple(one.removesuffix("*") for one in names)
    for one in found:
        if not any(kind.startswith(one) for kind in EVENT_MODELS):
            raise ValueError(f"{one}: there are {', '.join(EVENT_MODELS)}")
    return found
