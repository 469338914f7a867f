"""What has been negotiated in a recording session so far, in a form that can be taken back."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from siprec_bridge.sdp import (
    Codec,
    DtlsParameters,
    Fingerprint,
    SessionDescription,
    StreamKeys,
    StreamPlan,
)
from siprec_bridge.sip import readable
from siprec_bridge.siprec.document import (
    CommunicationSession,
    Pause,
    Presence,
    Span,
    StreamQuality,
    StreamState,
)
from siprec_bridge.transcript import Participant

_MAX_WARNINGS = 50
LONGEST_WARNING = 512
_MAX_SPANS = 1000  # the newest ones of a stream


@dataclass(frozen=True, slots=True)
class StreamToRecord:
    """What the media side needs to know of a stream."""

    index: int
    label: str
    codecs: tuple[Codec, ...]
    keys: StreamKeys | None = None  # with no fingerprint either: plain RTP
    fingerprints: tuple[Fingerprint, ...] = ()  # of the certificate that its keys are made with
    rtcp: tuple[str, int] | None = None  # where the SRC receives it; None: not known yet
    rtcp_mux: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What an offer or an order asks of the media side, and whether the answer carries SDP.

    `opened` need a port each before `answer` is called.
    """

    opened: tuple[StreamToRecord, ...] = ()
    changed: tuple[StreamToRecord, ...] = ()
    closed: tuple[int, ...] = ()
    paused: tuple[int, ...] = ()
    resumed: tuple[int, ...] = ()
    pauses_changed: bool = False  # also of streams that were paused already
    metadata_changed: bool = False
    needs_answer: bool = False

    @property
    def any(self) -> bool:
        """Whether there is anything to tell a listener."""
        return bool(self.opened or self.closed or self.pauses_changed or self.metadata_changed)


@dataclass(slots=True)
class Stream:
    """A stream of the recording session, as it is now."""

    index: int
    label: str
    codecs: tuple[Codec, ...]
    state: StreamState
    opened_at: datetime
    signalled: str  # the label that metadata knows it by: another one once its slot was reused
    closed_at: datetime | None = None
    on_hold: bool = False
    presences: list[Presence] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    active: list[Span] = field(default_factory=list)
    keys: StreamKeys | None = None
    dtls: DtlsParameters | None = None
    tls_id: str | None = None  # ours
    rtcp: tuple[str, int] | None = None
    rtcp_mux: bool = False
    quality: StreamQuality | None = None
    record: str | None = None
    recordpref: str | None = None

    def turn(self, state: StreamState, at: datetime) -> None:
        """Note that it is in this state from now on."""
        self.state = state
        going_on = bool(self.active) and self.active[-1].until is None
        if state == "active" and not going_on:
            self.active = [*self.active[-_MAX_SPANS:], Span(since=at)]
        elif state != "active" and going_on:
            self.active[-1] = self.active[-1].model_copy(update={"until": at})


@dataclass(slots=True)
class Negotiated:
    """What `withdraw` has to bring back."""

    offer: SessionDescription | None = None
    plans: tuple[StreamPlan, ...] = ()
    streams: dict[int, Stream] = field(default_factory=dict)
    participants: dict[str, Participant] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # stream id of the metadata -> its label
    sends: dict[str, tuple[str, ...]] = field(default_factory=dict)  # participant -> stream ids
    stream_sessions: dict[str, str] = field(default_factory=dict)  # stream id -> session id
    content_types: dict[str, str] = field(default_factory=dict)  # label -> content type
    described: tuple[str, ...] = ()  # participants in the order in which they were described
    groups: tuple[str, ...] = ()
    sessions: dict[str, CommunicationSession] = field(default_factory=dict)  # by their ids
    sip_session_ids: tuple[str, ...] = ()
    call_ids: dict[str, str] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()
    late: bool = False  # the peer has made no offer yet: what we send is ours
    awaits_answer: bool = False  # an offer of ours is out: the ACK brings the answer
    metadata_lost: bool = False  # what we know is not all that the SRC has told
    warnings: list[str] = field(default_factory=list)

    def copy(self) -> "Negotiated":
        """What changes in place is copied, what is replaced is shared."""
        return replace(
            self,
            streams={
                index: replace(
                    one,
                    presences=list(one.presences),
                    pauses=list(one.pauses),
                    active=list(one.active),
                )
                for index, one in self.streams.items()
            },
            participants=dict(self.participants),
            labels=dict(self.labels),
            sends=dict(self.sends),
            stream_sessions=dict(self.stream_sessions),
            content_types=dict(self.content_types),
            call_ids=dict(self.call_ids),
            warnings=list(self.warnings),
        )

    def warn(self, text: str) -> None:
        """Note once that something is odd."""
        text = readable(text)[:LONGEST_WARNING]
        if text not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)

    def same_people(self, other: "Negotiated") -> bool:
        """Whether the metadata of both says the same."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in (
                "participants", "labels", "sends", "groups", "sessions", "sip_session_ids",
                "content_types", "call_ids", "extensions",
            )
        )  # fmt: skip


def to_record(stream: Stream) -> StreamToRecord:
    return StreamToRecord(
        stream.index,
        stream.label,
        stream.codecs,
        stream.keys,
        stream.dtls.fingerprints if stream.dtls is not None else (),
        stream.rtcp,
        stream.rtcp_mux,
    )


def leave(stream: Stream, ids: set[str], at: datetime) -> None:
    stream.presences[:] = [
        one.model_copy(update={"until": at})
        if one.participant_id in ids and one.until is None
        else one
        for one in stream.presences
    ]
