"""WHO IS ON WHICH STREAM: what the SRC's documents say, taken over into what is known so far.

RFC 7865 §6, RFC 7866 §9.1.
"""

from datetime import datetime

from siprec_bridge.siprec.described import described
from siprec_bridge.siprec.document import Presence
from siprec_bridge.siprec.forks import Fork
from siprec_bridge.siprec.metadata import Metadata
from siprec_bridge.siprec.negotiated import Negotiated, leave
from siprec_bridge.transcript import Participant

_MAX_SESSION_IDS = 500  # the newest ones of a recording session that never ends


def take(now: Negotiated, metadata: Metadata, fork: Fork, at: datetime) -> bool:
    """Take a document over; whether it changed anything. `fork` holds where no metadata comes."""
    before = now.copy()
    if metadata.mode == "complete":
        now.metadata_lost = False
        # Who has left is not in the document any more, but what he said still needs his name.
        heard = {one.participant_id for stream in now.streams.values() for one in stream.presences}
        now.participants = {id: one for id, one in now.participants.items() if id in heard}
        now.labels, now.sends, now.stream_sessions, now.described = {}, {}, {}, ()
        now.groups = ()
        now.extensions = ()
    for one in metadata.participants:
        old = now.participants.get(one.id)
        now.participants[one.id] = Participant(
            id=one.id,
            name=one.name or (old.name if old else None),
            aor=one.aor or (old.aor if old else None),
            name_language=one.language or (old.name_language if old else None),
        )
    now.described = _joined(now.described, tuple(one.id for one in metadata.participants))
    labels = {one.id: one.label for one in metadata.streams if one.label}
    # One that a new stream bears is not the old one's any more. RFC 7865 §6.7
    claimed = set(labels.values())
    now.labels = {id: one for id, one in now.labels.items() if one not in claimed} | labels
    now.content_types |= {
        one.label: one.content_type for one in metadata.streams if one.content_type
    }
    now.stream_sessions |= {one.id: one.session_id for one in metadata.streams}
    now.sends |= {one.participant_id: one.sends for one in metadata.associations}
    for left in (one for one in metadata.attendances if one.over):
        if left.participant_id in now.sends:
            session = left.session_id
            now.sends[left.participant_id] = tuple(
                stream
                for stream in now.sends[left.participant_id]
                if session and now.stream_sessions.get(stream, session) != session
            )
    now.groups = _joined(
        now.groups, metadata.groups + tuple(one.group_id for one in metadata.sessions)
    )
    # Also those that are over, which a complete document leaves out: they are recorded here.
    now.sessions = described(now.sessions, metadata)
    now.sip_session_ids = _joined(
        now.sip_session_ids,
        tuple(id for one in metadata.sessions for id in one.sip_session_ids),
    )[-_MAX_SESSION_IDS:]
    now.call_ids |= metadata.call_ids
    now.extensions = _joined(now.extensions, metadata.extensions)
    if any(one.participant_id not in now.participants for one in metadata.associations):
        now.metadata_lost = True
        now.warn("metadata names participants that it has never described")
    place(now, fork, at)
    return not now.same_people(before)


def place(now: Negotiated, fork: Fork, at: datetime) -> None:
    """Note on each open stream who joined and who left."""
    senders = _senders(now, fork)
    for stream in now.streams.values():
        if stream.state == "closed":
            continue
        wanted = senders.get(stream.signalled, {})
        there = {one.participant_id for one in stream.presences if one.until is None}
        leave(stream, there - set(wanted), at)
        stream.presences += [
            Presence(participant_id=id, since=at) for id in wanted if id not in there
        ]


def _senders(now: Negotiated, fork: Fork) -> dict[str, dict[str, None]]:
    """Participants by the label of the stream that they send on, in order of the document."""
    if not now.participants and fork.speaker is not None and 0 in now.streams:
        return {now.streams[0].signalled: {fork.speaker: None}}
    named = {one.signalled for one in now.streams.values() if one.state != "closed"}
    labels = dict(now.labels)
    if labels and not named & set(labels.values()):
        # Some SRCs number the metadata's labels in their own way, but in the same order.
        lines = sorted(now.streams.values(), key=lambda one: one.index)
        order = [one.signalled for one in lines]
        if len(order) == len(labels):
            now.warn("labels of metadata and SDP differ: matched by order")
            labels = dict(zip(labels, order, strict=True))
    senders: dict[str, dict[str, None]] = {}
    if not now.sends and len(labels) == len(now.described) > 0:
        # A guess, but the one that holds for the SRCs that leave the association out.
        now.warn("metadata names no sender: participants matched to streams by order")
        for name, id in zip(labels.values(), now.described, strict=True):
            senders.setdefault(name, {})[id] = None
    for participant, streams in now.sends.items():
        for stream in streams:
            if (label := labels.get(stream)) is not None and participant in now.participants:
                senders.setdefault(label, {})[participant] = None
    for name in senders:
        if name not in named:
            now.warn(f"metadata names label {name}, SDP does not")
    return senders


def _joined(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for one in old + new if one))
