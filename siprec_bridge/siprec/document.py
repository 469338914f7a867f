"""A recording session as it is stored and shown: who, on which stream, from when to when."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from siprec_bridge.transcript import Participant, Value

StreamState = Literal["active", "paused", "closed"]
Verdict = Literal["complete", "incomplete", "nothing"]
FindingCode = Literal[
    "nothing_received",
    "started_late",
    "ended_early",
    "gap",
    "loss",
    "undecoded",
    "damaged",
    "one_way",
    "identical_legs",
    "unequal_legs",
    "bridge_restarted",
    "audio_missing",
]


class Presence(Value):
    """A participant on a stream; `until` None: still there."""

    participant_id: str
    since: datetime
    until: datetime | None = None


class PastPresence(Value):
    """One that is long over, of the stream at this m-line; with the participant, if it is known."""

    index: int
    presence: Presence
    participant: Participant | None = None


class Pause(Value):
    """A time in which a stream was not recorded; `until` None: it still is not.

    `cause`: the SRC's hold, or what somebody told us to pause: the session or the stream
    (`operator`), or a participant on it (`mute`). `by` and `reason` are theirs.
    """

    cause: Literal["hold", "operator", "mute"]
    since: datetime
    until: datetime | None = None
    participant_id: str | None = Field(None, description="who is muted")
    by: str | None = None
    reason: str | None = None


class Span(Value):
    """A stretch of time; `until` None: it goes on."""

    since: datetime
    until: datetime | None = None


class Attendance(Value):
    """A participant in a communication session: since when, until when, by the SRC's clock."""

    participant_id: str
    since: datetime | None = None
    until: datetime | None = None


class CommunicationSession(Value):
    """What the SRC says of a communication session, by its own clock. RFC 7865 §6.3."""

    id: str
    sip_session_ids: tuple[str, ...] = ()
    group_id: str | None = None
    reason: str | None = Field(None, description="why it is recorded")
    started_at: datetime | None = None
    ended_at: datetime | None = None
    participants: tuple[Attendance, ...] = ()


class StreamQuality(Value):
    """How a stream arrived. `mos` by the E-model from codec and loss alone: no delay is known."""

    packets: int
    lost: int
    loss_ratio: float | None = None
    duplicates: int = 0
    unauthenticated: int = Field(0, description="SRTP packets that its keys did not open")
    jitter_ms: float | None = Field(None, description="mean interarrival jitter, RFC 3550 A.8")
    mos: float | None = Field(None, description="1 to 4.41, ITU-T G.107 without delay")

    def after(self, before: "StreamQuality | None") -> "StreamQuality":
        """Both together; jitter and MOS are weighed by packets."""
        if before is None or not before.packets:
            return self
        if not self.packets:
            return before

        def mean(first: float | None, second: float | None) -> float | None:
            if first is None or second is None:
                return first if second is None else second
            total = before.packets + self.packets
            return round((first * before.packets + second * self.packets) / total, 3)

        packets, lost = before.packets + self.packets, before.lost + self.lost
        return StreamQuality(
            packets=packets,
            lost=lost,
            loss_ratio=round(lost / (packets + lost), 6),
            duplicates=before.duplicates + self.duplicates,
            unauthenticated=before.unauthenticated + self.unauthenticated,
            jitter_ms=mean(before.jitter_ms, self.jitter_ms),
            mos=mean(before.mos, self.mos),
        )


class StreamDocument(Value):
    """One labelled stream. `index` is its m-line."""

    index: int
    label: str
    state: StreamState
    codec: str | None = None
    opened_at: datetime
    closed_at: datetime | None = None
    presences: tuple[Presence, ...] = ()
    pauses: tuple[Pause, ...] = ()
    active: tuple[Span, ...] = Field((), description="when it was answered and not paused")
    content_type: str | None = Field(None, description="as the metadata has it, RFC 7865 §6.7")
    record: str | None = Field(
        None, description="what its a=record says: on, off, paused. RFC 7866 §7.2.3"
    )
    recordpref: str | None = Field(None, description="its a=recordpref. RFC 7866 §6.3")
    quality: StreamQuality | None = Field(None, description="once it has ended")

    def expected(self, end: datetime) -> tuple[tuple[datetime, datetime], ...]:
        """When there was something to receive, up to the session's end: disjoint, in order.

        Answered, not paused, and somebody on it, where the metadata ever named anybody.
        """
        active = [(one.since, min(one.until or end, end)) for one in self.active]
        if self.presences:
            present = _union([(one.since, one.until or end) for one in self.presences])
            active = [
                (max(since, there), min(until, gone))
                for since, until in active
                for there, gone in present
            ]
        return tuple(one for one in active if one[0] < one[1])


class StreamAssurance(Value):
    """How much of a stream was recorded. Times in seconds.

    `expected`: how long it was to be received; `captured`: of that, what arrived or was left out by
    a sender that says nothing in silence. `gaps`: stretches of the rest.
    """

    label: str
    verdict: Verdict
    expected: float
    captured: float
    gaps: int = 0
    longest_gap: float = 0.0
    loss_ratio: float | None = Field(None, description="packets lost, of those sent")
    silence: float | None = Field(None, description="share of the audio received, below -50 dBov")


class Finding(Value):
    """Something that was not recorded as it should be. `code` is stable, `detail` is for people."""

    code: FindingCode
    label: str | None = Field(None, description="the stream; none: the session")
    detail: str = ""


class Assurance(Value):
    """Whether a session was recorded: `nothing` at all, `incomplete` with findings, `complete`."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    streams: tuple[StreamAssurance, ...] = ()


class SessionDocument(Value):
    """All that is known of a recording session, in a form that survives versions."""

    session_id: str
    group_id: str | None = None
    communication_sessions: tuple[str, ...] = ()
    sip_session_ids: tuple[str, ...] = ()
    described_sessions: tuple[CommunicationSession, ...] = Field(
        (), description="the communication sessions as the SRC describes them"
    )
    participants: tuple[Participant, ...] = ()
    streams: tuple[StreamDocument, ...] = ()
    call_ids: dict[str, str] = Field({}, description="vendors' names for the call")
    extensions: tuple[str, ...] = Field((), description="vendors' metadata, as XML")
    assurance: Assurance | None = Field(None, description="once the audio is finished")
    warnings: tuple[str, ...] = Field((), description="what was odd in SDP, metadata or recording")

    def stream(self, label: str) -> StreamDocument | None:
        """The stream of this label."""
        return next((one for one in self.streams if one.label == label), None)

    def on_stream(self, label: str) -> tuple[Participant, ...]:
        """Everyone who was ever on a stream, in order of arrival."""
        stream = self.stream(label)
        ids = dict.fromkeys(one.participant_id for one in stream.presences) if stream else {}
        return tuple(one for one in map(self._participant, ids) if one is not None)

    def speaker(self, label: str, at: datetime) -> Participant | None:
        """Who was heard on a stream at a time; None: nobody known, or several at once.

        Audio trails what the SRC says by some seconds: before the first and after the last
        presence, the nearest one counts.
        """
        stream = self.stream(label)
        if stream is None or not stream.presences:
            return None
        there = {
            one.participant_id
            for one in stream.presences
            if one.since <= at and (one.until is None or at < one.until)
        }
        if not there:
            past = [one for one in stream.presences if one.until is not None and one.until <= at]
            near = max(past, key=lambda one: one.until or at) if past else stream.presences[0]
            there = {near.participant_id}
        return self._participant(there.pop()) if len(there) == 1 else None

    def _participant(self, id: str) -> Participant | None:
        return next((one for one in self.participants if one.id == id), None)


def _union(spans: list[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    joined: list[tuple[datetime, datetime]] = []
    for since, until in sorted(spans):
        if joined and since <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], until))
        else:
            joined.append((since, until))
    return joined
