"""From what is known of a recording session to its container.

There is a dialog for each file. Where one file holds all of the call, it stands for the call;
else a recording-set behind them does. the participants, in the order of the session document, then those of whom nothing is known: on
a stream, and whoever has begun the call, which SIPREC does not tell. The last one is the recorder,
who attaches what the draft has no parameter for.
"""

import hashlib
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from siprec_bridge.sip import MalformedMessage, Uri, parse_uri
from siprec_bridge.siprec import SessionDocument, StreamDocument
from siprec_bridge.transcript import Conversation, KeyPress, Participant
from siprec_bridge.vcon.container import (
    Analysis,
    Attachment,
    Dialog,
    OnChannel,
    Party,
    PartyEvent,
    PartyEventName,
    Redacted,
    SessionId,
    Vcon,
)
from siprec_bridge.vcon.transcript import SCHEMA, body_of

_DOMAIN = "siprec-bridge.invalid"  # RFC 6761: nobody else's
_LOCAL = re.compile(r"([0-9a-f]{32})\s*(;|$)", re.I)
_REMOTE = re.compile(r";\s*remote=([0-9a-f]{32})\s*(;|$)", re.I)
_NIL = "0" * 32  # RFC 7989 §7
_NUMBER = re.compile(r"\+[0-9.() -]*[0-9][0-9.() -]*")


@dataclass(frozen=True, slots=True)
class Recording:
    """A finished file. `channels`: for each, the labels of the streams that are heard on it.

    Its octets come along (`inline`), are at `url` with this `content_hash`, or nowhere.
    `keys` by label; their times count from the first sample.
    """

    file: str
    media_type: str
    started_at: datetime
    duration: float
    channels: tuple[tuple[str, ...], ...]
    keys: tuple[tuple[str, KeyPress], ...] = ()
    inline: bool = False
    url: str | None = None
    content_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """A version of the session's transcript, and since when it is there."""

    conversation: Conversation
    version: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Call:
    """A recording session that is over. `redaction`: what was taken out of all of this, if so."""

    document: SessionDocument
    sip_call_id: str
    started_at: datetime
    ended_at: datetime
    end_cause: str | None = None
    audio_deleted_at: datetime | None = None
    recordings: tuple[Recording, ...] = ()
    spoken: Spoken | None = None
    redaction: str | None = None


def build(call: Call) -> Vcon:
    """The container. The same call gives the same one, to the octet."""
    people = _People(call)
    dialogs = _dialogs(call, people)
    changes = [call.ended_at, call.audio_deleted_at, call.spoken.at if call.spoken else None]
    return Vcon(
        uuid=str(uuid_of(call.document.session_id, call.started_at)),
        created_at=call.started_at,
        updated_at=max(one for one in changes if one is not None),
        subject=_subject(call.document.participants),
        redacted=Redacted(type=call.redaction) if call.redaction is not None else None,
        parties=tuple(people.parties),
        dialog=dialogs,
        analysis=_analysis(call, call.spoken, people) if call.spoken else None,
        attachments=_attachments(call, people),
    )


def uuid_of(session_id: str, started_at: datetime) -> uuid.UUID:
    """A version 8 UUID as §4.1.2 lays it out, of the time and a domain name of the session's own.

    Nothing in it is random, so that a session has one for ever.
    """
    name = f"{session_id}.{_DOMAIN}".encode()
    digest = hashlib.sha1(name, usedforsecurity=False).digest()
    milliseconds = int(started_at.timestamp() * 1000) & (1 << 48) - 1
    further = int.from_bytes(digest[8:10]) >> 4
    node = int.from_bytes(digest[:8]) >> 2
    return uuid.UUID(int=milliseconds << 80 | 8 << 76 | further << 64 | 2 << 62 | node)


@dataclass
class _People:
    """The parties, and where each of them stands."""

    call: Call
    parties: list[Party] = field(default_factory=list)
    _by_id: dict[str, int] = field(default_factory=dict)
    _by_label: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        document = self.call.document
        for one in document.participants:
            self._by_id.setdefault(one.id, len(self.parties))
            self.parties.append(_party(one))
        heard = (label for file in self.call.recordings for label in _labels(file))
        for label in dict.fromkeys((*(one.label for one in document.streams), *heard)):
            known = tuple(self._by_id[one.id] for one in document.on_stream(label))
            self._by_label[label] = known or (self._add(Party()),)
        self.originator = self._add(Party())
        self.recorder = self._add(Party(name="siprec-bridge", validation="none", type="bot"))

    def _add(self, party: Party) -> int:
        self.parties.append(party)
        return len(self.parties) - 1

    def of_id(self, id: str) -> int | None:
        """The party of a participant's id."""
        return self._by_id.get(id)

    def on(self, labels: Iterable[str]) -> tuple[int, ...]:
        """All who were ever on one of these streams, in order of arrival."""
        return tuple(dict.fromkeys(one for label in labels for one in self._by_label[label]))

    def in_call(self) -> tuple[int, ...]:
        """All but the recorder and whoever has begun it."""
        return tuple(range(self.originator))

    def speaking(self, participant: Participant | None, label: str) -> int | None:
        """Who that is; of a stream whose only party is not known, that one."""
        if participant is not None:
            return self.of_id(participant.id)
        there = self._by_label.get(label, ())
        return there[0] if len(there) == 1 else None


def _party(one: Participant) -> Party:
    """Its address as URI; a number within a SIP URI as number, too."""
    tel = sip = mailto = None
    aor = (one.aor or "").strip()
    uri = _uri(aor)
    if uri is None:
        if aor.lower().startswith("mailto:") and "@" in aor:
            mailto = aor
    elif uri.scheme == "tel":
        tel = aor
    else:
        sip = aor
        if _NUMBER.fullmatch(uri.user):
            tel = f"tel:{uri.user.replace(' ', '')}"
    # What no URI can be read from still says who it is.
    name = one.name or (aor if aor and not (tel or sip or mailto) else None)
    return Party(
        tel=tel,
        sip=sip,
        mailto=mailto,
        name=name,
        validation="none" if name else None,
        uuid=one.id,
    )


def _uri(aor: str) -> Uri | None:
    try:
        uri = parse_uri(aor)
    except MalformedMessage:
        return None
    return None if re.search(r"\s", aor) or not (uri.user or uri.host) else uri


def _subject(participants: Sequence[Participant]) -> str | None:
    names = list(dict.fromkeys(filter(None, (one.name or one.aor for one in participants))))
    if not names:
        return None
    *first, last = names
    return f"Call of {', '.join(first)} and {last}" if first else f"Call of {last}"


def _labels(recording: Recording) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for channel in recording.channels for label in channel))


def _whole(call: Call) -> int:
    """The dialog that stands for the call."""
    return 0 if len(call.recordings) == 1 else len(call.recordings)


def _dialogs(call: Call, people: _People) -> tuple[Dialog, ...]:
    # Streams of which nothing was recorded have no dialog of their own for what happened on them.
    heard = {label for one in call.recordings for label in _labels(one)}
    silent = [one for one in call.document.streams if one.label not in heard]
    of_all = [*_attendances(call.document, people), *_happened(silent, call.document, people)]
    session_id = _session_id(call.document.sip_session_ids)
    recordings = tuple(_recording(one, call, people) for one in call.recordings)
    if len(recordings) == 1:
        (only,) = recordings
        history = _in_order((*(only.party_history or ()), *of_all))
        return (only.model_copy(update={"session_id": session_id, "party_history": history}),)
    return (
        *(one.model_copy(update={"recording_set": _whole(call)}) for one in recordings),
        Dialog(
            type="recording-set",
            start=call.started_at,
            duration=_seconds(call.ended_at - call.started_at),
            parties=people.in_call(),
            originator=people.originator,
            recordings=tuple(range(len(recordings))),
            session_id=session_id,
            party_history=_in_order(of_all),
        ),
    )


def _recording(one: Recording, call: Call, people: _People) -> Dialog:
    labels = _labels(one)
    streams = [stream for stream in call.document.streams if stream.label in labels]
    history = [*_happened(streams, call.document, people), *_keys(one, call.document, people)]
    there = call.audio_deleted_at is None
    return Dialog(
        type="recording",
        start=one.started_at,
        duration=round(one.duration, 6),
        parties=_on_channels(one.channels, people),
        originator=people.originator,
        mediatype=one.media_type if there else None,
        filename=one.file if there else None,
        party_history=_in_order(history),
        encoding="base64url" if one.inline else None,
        url=one.url,
        content_hash=one.content_hash,
    )


def _on_channels(channels: Sequence[Sequence[str]], people: _People) -> tuple[OnChannel, ...]:
    """Of one channel all its parties, of more an entry for each.

    Never a number alone, which the draft allows: there are readers that want a list.
    """
    heard = [people.on(labels) for labels in channels]
    if len(heard) == 1:
        return heard[0]
    return tuple((one[0] if len(one) == 1 else one) if one else None for one in heard)


def _happened(
    streams: Iterable[StreamDocument], document: SessionDocument, people: _People
) -> Iterable[PartyEvent]:
    """Who came, left, was on hold or muted on these streams.

    What an operator has paused is nothing that happened to a party: it stands in the attachment.
    """
    for stream in streams:
        for presence in stream.presences:
            party = people.of_id(presence.participant_id)
            yield from _span(party, presence.since, presence.until, "join", "drop")
        for pause in stream.pauses:
            match pause.cause:
                case "mute":
                    party = people.of_id(pause.participant_id or "")
                    yield from _span(party, pause.since, pause.until, "mute", "unmute")
                case "hold":
                    for party in _there(stream, pause.since, people):
                        yield from _span(party, pause.since, pause.until, "hold", "unhold")
                case "operator":
                    pass


def _there(stream: StreamDocument, at: datetime, people: _People) -> tuple[int, ...]:
    """The parties on a stream at a time; all of them, where nobody is said to be there."""
    now = tuple(
        party
        for one in stream.presences
        if one.since <= at and (one.until is None or at < one.until)
        and (party := people.of_id(one.participant_id)) is not None
    )  # fmt: skip
    return tuple(dict.fromkeys(now)) or people.on((stream.label,))


def _attendances(document: SessionDocument, people: _People) -> Iterable[PartyEvent]:
    """Who came to the communication sessions and left them, by the SRC's clock."""
    for session in document.described_sessions:
        for one in session.participants:
            yield from _span(people.of_id(one.participant_id), one.since, one.until, "join", "drop")


def _span(
    party: int | None,
    since: datetime | None,
    until: datetime | None,
    begin: PartyEventName,
    end: PartyEventName,
) -> Iterable[PartyEvent]:
    if party is None:
        return
    if since is not None:
        yield PartyEvent(party=party, time=since, event=begin)
    if until is not None:
        yield PartyEvent(party=party, time=until, event=end)


def _keys(one: Recording, document: SessionDocument, people: _People) -> Iterable[PartyEvent]:
    for label, press in one.keys:
        down = one.started_at + timedelta(seconds=press.start)
        party = people.speaking(document.speaker(label, down), label)
        if party is None:  # one of several: the first is as good as any
            party = people.on((label,))[0]
        up = down + timedelta(seconds=press.duration)
        yield PartyEvent(party=party, time=down, event="keydown", button=press.key)
        yield PartyEvent(party=party, time=up, event="keyup", button=press.key)


def _in_order(events: Iterable[PartyEvent]) -> tuple[PartyEvent, ...] | None:
    return tuple(sorted(events, key=lambda one: one.time)) or None


def _session_id(texts: Sequence[str]) -> SessionId | None:
    """The SIP Session-ID of the call; several are no one's, so they stand in the attachment."""
    if len(texts) != 1 or (local := _LOCAL.match(texts[0].strip())) is None:
        return None
    remote = _REMOTE.search(texts[0])
    return SessionId(local=local[1].lower(), remote=remote[1].lower() if remote else _NIL)


def _analysis(call: Call, spoken: Spoken, people: _People) -> tuple[Analysis, ...]:
    dialog_of = {
        label: index for index, one in enumerate(call.recordings) for label in _labels(one)
    }
    heard = {dialog_of[leg.label] for leg in spoken.conversation.legs if leg.label in dialog_of}
    return (
        Analysis(
            type="transcript",
            dialog=tuple(sorted(heard)) or (_whole(call),),
            mediatype="application/json",
            vendor=spoken.conversation.provider,
            product=spoken.conversation.model,
            schema_=SCHEMA,
            body=body_of(spoken.conversation, spoken.version, people.speaking, dialog_of),
        ),
    )


def _attachments(call: Call, people: _People) -> tuple[Attachment, ...]:
    """What SIPREC knows and the draft does not; vendors' metadata as it came."""
    document = call.document

    def attached(purpose: str, at: datetime, body: Any, mediatype: str) -> Attachment:
        return Attachment(
            purpose=purpose,
            start=at,
            party=people.recorder,
            dialog=_whole(call),
            mediatype=mediatype,
            encoding="none" if isinstance(body, str) else "json",
            body=body,
        )

    told = document.model_dump(
        mode="json", exclude_none=True, exclude={"participants", "assurance", "extensions"}
    )
    session = {
        "sip_call_id": call.sip_call_id,
        "end_cause": call.end_cause,
        "audio_deleted_at": call.audio_deleted_at.isoformat() if call.audio_deleted_at else None,
    }
    known = {name: value for name, value in session.items() if value is not None}
    found = [attached("recording session", call.ended_at, told | known, "application/json")]
    if document.assurance is not None:
        body = document.assurance.model_dump(mode="json", exclude_none=True)
        found.append(attached("recording assurance", call.ended_at, body, "application/json"))
    found += [
        attached("vendor metadata", call.started_at, one, "application/xml")
        for one in document.extensions
    ]
    return tuple(found)


def _seconds(span: timedelta) -> float:
    return max(0.0, round(span.total_seconds(), 6))
