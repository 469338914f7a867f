"""THE RECORDING SESSION: what each offer changes, what to answer, who is on which stream when.

RFC 7866 §7 and §8. An offer is taken as a whole: `withdraw` undoes the last one when the media
side could not follow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from siprec_bridge import sdp
from siprec_bridge.sdp import (
    SUITES,
    Fingerprint,
    MalformedSdp,
    MediaPolicy,
    SessionDescription,
    StreamKeys,
    StreamPlan,
)
from siprec_bridge.sip import Refused, readable
from siprec_bridge.siprec import people
from siprec_bridge.siprec.body import Body
from siprec_bridge.siprec.document import (
    PastPresence,
    SessionDocument,
    StreamDocument,
    StreamQuality,
)
from siprec_bridge.siprec.forks import Fork
from siprec_bridge.siprec.metadata import MalformedMetadata, parse_metadata
from siprec_bridge.siprec.negotiated import (
    LONGEST_WARNING,
    Changes,
    Negotiated,
    Stream,
    StreamToRecord,
    leave,
    to_record,
)
from siprec_bridge.siprec.pauses import PauseOrder, follow
from siprec_bridge.transcript import Participant

_NEWEST_PRESENCES = 500  # of a stream that stay in the document while it is being recorded
_LONGEST_WORD = 20
_TLS_ID_OCTETS = 15  # 120 bits of chance. RFC 8842 §4


class RecordingSession:
    """One recording session. `fork` is what holds as long as no metadata comes.

    `new_key` makes a key of so many octets; without it SRTP is not taken. `certificate` tells the
    fingerprint of ours; without it DTLS-SRTP is not taken. `over_tls`: nobody else can read the
    signalling.
    """

    def __init__(
        self,
        session_id: str,
        policy: MediaPolicy,
        *,
        sdp_session_id: int,
        fork: Fork | None = None,
        new_key: Callable[[int], bytes] | None = None,
        certificate: Callable[[], Fingerprint] | None = None,
        over_tls: bool = False,
    ) -> None:
        self.session_id = session_id
        self._new_key = new_key or bytes
        dtls = new_key is not None and certificate is not None
        suites = policy.suites if new_key is not None else ()
        self._policy = replace(policy, suites=suites, dtls=dtls)
        self._certificate = certificate
        self._over_tls = over_tls
        self._sdp_session_id = sdp_session_id
        self._fork = fork or Fork()
        self._now = Negotiated(call_ids=dict(self._fork.call_ids))
        self._before = Negotiated()
        self._orders: dict[tuple[str | None, str | None], PauseOrder] = {}  # by their targets
        self._version = 0
        self._answer: SessionDescription | None = None

    @property
    def participants(self) -> tuple[Participant, ...]:
        """The parties, as the metadata names them."""
        return tuple(self._now.participants.values()) or self._fork.participants

    @property
    def metadata_lost(self) -> bool:
        """Whether the SRC has told more than we know: a document was broken, or came in part."""
        return self._now.metadata_lost

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd so far."""
        return tuple(self._now.warnings)

    def offer(self, body: Body, at: datetime, *, invite: bool = True) -> Changes:
        """Take the body of an INVITE, re-INVITE or UPDATE (`invite` False).

        An INVITE without SDP asks for our offer, an UPDATE without it for nothing.
        Raises Refused: 400 for SDP that cannot be read, 488 when no m-line can be recorded, 491
        for an offer that crosses ours.
        """
        if self._now.awaits_answer and body.sdp is not None:
            raise Refused(491, "Request Pending")  # RFC 3261 §14.2
        offered = _read_sdp(body.sdp) if body.sdp is not None else None
        self._before = self._now.copy()
        for warning in body.warnings:
            self._now.warn(warning)
        changes = Changes()
        if offered is not None:
            changes = self._take_sdp(offered, at)
        elif invite and self._now.offer is not None:
            changes = self._offer_again(self._now.offer)
        elif invite:
            changes = self._prepare_late_offer(at)
        if body.metadata is not None:
            changed = self._take_metadata(body.metadata, at)
            changes = replace(changes, metadata_changed=changed or changes.metadata_changed)
        elif changes.opened or changes.metadata_changed:
            people.place(self._now, self._fork, at)
        return self._with_pauses(changes, at)

    def pause(self, order: PauseOrder, at: datetime) -> Changes:
        """Record less from now on. Raises LookupError for a stream or participant unknown here."""
        if order.label is not None and all(
            one.label != order.label for one in self._now.streams.values()
        ):
            raise LookupError(f"no stream has the label {order.label}")
        known = {one.id for one in self.participants}
        if order.participant_id is not None and order.participant_id not in known:
            raise LookupError(f"no participant has the id {order.participant_id}")
        self._orders.setdefault(order.target, order)
        return self._with_pauses(Changes(), at)

    def resume(self, label: str | None, participant_id: str | None, at: datetime) -> Changes:
        """Lift the order with just this target: a mute outlasts the pause of its session.

        Raises LookupError when there is none. A hold stays the SRC's.
        """
        if self._orders.pop((label, participant_id), None) is None:
            what = label or participant_id or "the session"
            raise LookupError(f"{what} is not paused by order")
        return self._with_pauses(Changes(), at)

    def withdraw(self) -> None:
        """Undo the last `offer`: it was refused after all. RFC 3261 §14.2."""
        self._now = self._before

    def cancelled(self, at: datetime) -> Changes:
        """Undo the last `offer`, which was followed, but not answered before its CANCEL came.

        The peer goes on as before it, and so do we, but for what others have ordered since.
        RFC 3261 §14.1.
        """
        withdrawn = self._now
        self.withdraw()
        self._now.warnings = withdrawn.warnings
        before, after = self._now.streams, withdrawn.streams
        running = {index for index, one in before.items() if one.state != "closed"}
        followed = {index for index, one in after.items() if one.state != "closed"}
        for index in running:
            # What has been recorded since, and what has not, is not to be undone.
            then, now = before[index], after[index]
            then.state = now.state if index in followed else "active"  # a port is open anew
            then.active, then.pauses, then.quality = now.active, now.pauses, now.quality
        changes = Changes(
            opened=tuple(to_record(before[index]) for index in sorted(running - followed)),
            changed=tuple(
                to_record(before[index])
                for index in sorted(running & followed)
                if to_record(before[index]) != to_record(after[index])
            ),
            closed=tuple(sorted(followed - running)),
            metadata_changed=not self._now.same_people(withdrawn),
        )
        return self._with_pauses(changes, at)

    def answer(self, ports: Mapping[int, int], address: str) -> bytes:
        """The SDP for the last offer, or our own offer where the peer made none.

        `ports`: our RTP port at `address` for each accepted m-line. The version in its o-line
        rises when anything changed. RFC 3264 §8.
        """
        build = self._build_offer if self._now.late else self._build_answer
        description = build(ports, address, self._version)
        if self._answer is not None and description != self._answer:
            self._version += 1
            description = build(ports, address, self._version)
        self._answer = description
        return description.write()

    def acknowledged(self, body: Body, at: datetime) -> Changes:
        """Take the body of an ACK: an answer to our offer, metadata, both or nothing.

        Raises Refused (400, 488) for an answer that cannot be taken. The metadata beside it is:
        that call will be over, but who was in it is known.
        """
        changes = Changes()
        try:
            if body.sdp is not None and self._now.awaits_answer:
                changes = self._take_answer(_read_sdp(body.sdp), at)
            elif self._now.awaits_answer:
                # What we offered is recorded, and the peer may offer again.
                self._now.awaits_answer = False
                self._now.warn("the ACK brought no answer to our offer")
        finally:
            changes = self._beside_an_answer(body.metadata, changes, at)
        return changes

    def refreshed(self, body: Body, at: datetime) -> Changes:
        """Take a 2xx to a re-INVITE that offered once more what `answer` returned. RFC 4028 §7.4.

        As a rule, it says what the SRC said before. Raises Refused (400, 488) for SDP that is no
        answer to ours: all is as it was, and its metadata is not taken yet.
        """
        changes = Changes()
        if body.sdp is not None:
            answer = _read_sdp(body.sdp)
            if self._answer is None or not _is_answer(answer, self._answer):
                raise Refused(488, "Not Acceptable Here")
            changes = self._take_answer(answer, at)
        return self._beside_an_answer(body.metadata, changes, at)

    def _take_answer(self, answer: SessionDescription, at: datetime) -> Changes:
        self._before = self._now.copy()
        if self._answer is not None and len(answer.media) > len(self._answer.media):
            self._now.warn("the answer has more than we offered")
        changes = self._take_sdp(_of_offered(answer, self._answer), at)
        if changes.metadata_changed:
            people.place(self._now, self._fork, at)
        return replace(changes, needs_answer=False)

    def _beside_an_answer(self, metadata: bytes | None, changes: Changes, at: datetime) -> Changes:
        """These changes, what a document beside an answer changes, and the pauses of both at once."""
        if metadata is not None and self._take_metadata(metadata, at):
            changes = replace(changes, metadata_changed=True)
        return self._with_pauses(changes, at)

    def end(self, at: datetime) -> None:
        """Close what is open."""
        for stream in self._now.streams.values():
            self._close(stream, at)

    def note_quality(self, index: int, quality: StreamQuality) -> None:
        """Note how a stream that was closed had arrived; one that was open before adds up."""
        stream = self._now.streams.get(index)
        if stream is not None:
            stream.quality = quality.after(stream.quality)

    def note_interruption(self, index: int, seconds: float | None) -> None:
        """Note that nothing of a stream was received for so long, by our fault; None: for good."""
        stream = self._now.streams.get(index)
        if stream is None:
            return
        missing = (
            "all audio from then on is" if seconds is None else f"audio of {seconds:.1f} s may be"
        )
        self._now.warn(f"media worker died; {missing} missing on label {stream.label}")

    def note_handshake(self, index: int, cause: str) -> None:
        """Note that somebody failed to agree on a stream's keys by DTLS."""
        stream = self._now.streams.get(index)
        if stream is not None:
            self._now.warn(f"DTLS-SRTP on label {stream.label}: {cause}")

    def note_unwritten(self, index: int, cause: str) -> None:
        """Note that the disk did not take a stream's packets for a while."""
        stream = self._now.streams.get(index)
        if stream is not None:
            self._now.warn(
                f"label {stream.label} could not be written, audio may be missing: {cause}"
            )

    def streams_open(self) -> tuple[int, ...]:
        """M-lines that are being recorded or paused."""
        return tuple(one.index for one in self._now.streams.values() if one.state != "closed")

    def streams_paused(self) -> tuple[int, ...]:
        """M-lines that are on hold, or paused by order."""
        return tuple(one.index for one in self._now.streams.values() if one.state == "paused")

    def long_past(self) -> tuple[PastPresence, ...]:
        """Presences that need not be in the document of every change: none, or many at once."""
        found: list[PastPresence] = []
        for stream in self._now.streams.values():
            over = [one for one in stream.presences if one.until is not None]
            if len(over) <= 2 * _NEWEST_PRESENCES:
                continue
            found += [
                PastPresence(
                    index=stream.index,
                    presence=one,
                    participant=self._now.participants.get(one.participant_id),
                )
                for one in over[:-_NEWEST_PRESENCES]
            ]
        return tuple(found)

    def forget(self, past: Sequence[PastPresence]) -> None:
        """Leave these out of the document from now on: somebody else has noted them."""
        for stream in self._now.streams.values():
            gone = {id(one.presence) for one in past if one.index == stream.index}
            stream.presences[:] = [one for one in stream.presences if id(one) not in gone]

    def document(self) -> SessionDocument:
        """All that is known now."""
        now = self._now
        return SessionDocument(
            session_id=self.session_id,
            group_id=now.groups[0] if now.groups else self._fork.group_id,
            communication_sessions=tuple(now.sessions),
            sip_session_ids=now.sip_session_ids,
            described_sessions=tuple(now.sessions.values()),
            participants=self.participants,
            streams=tuple(
                StreamDocument(
                    index=one.index,
                    label=one.label,
                    state=one.state,
                    codec=one.codecs[0].name if one.codecs else None,
                    opened_at=one.opened_at,
                    closed_at=one.closed_at,
                    presences=tuple(one.presences),
                    pauses=tuple(one.pauses),
                    active=tuple(one.active),
                    content_type=now.content_types.get(one.signalled),
                    record=one.record,
                    recordpref=one.recordpref,
                    quality=one.quality,
                )
                for one in sorted(now.streams.values(), key=lambda one: one.index)
            ),
            call_ids=dict(now.call_ids),
            extensions=now.extensions,
            warnings=tuple(now.warnings),
        )

    # SDP

    def _take_sdp(self, offer: SessionDescription, at: datetime) -> Changes:
        plans = sdp.plan(offer, self._policy, over_tls=self._over_tls)
        offered = [media for media in offer.media if media.port != 0]
        if (offered or not self._now.streams) and not any(one.accepted for one in plans):
            self.withdraw()
            raise Refused(488, "Not Acceptable Here", _refusal_warnings(plans))
        self._now.offer, self._now.plans = offer, plans
        self._now.late = self._now.awaits_answer = False
        labels = {one.index: one.signalled for one in self._now.streams.values()}
        opened: list[StreamToRecord] = []
        changed: list[StreamToRecord] = []
        closed: list[int] = []
        for plan in plans:
            stream = self._now.streams.get(plan.index)
            if not plan.accepted:
                if plan.reason != "offered at port 0":
                    self._now.warn(f"m-line {plan.index + 1}: {plan.reason}")
                if stream is not None and stream.state != "closed":
                    self._close(stream, at)
                    closed.append(plan.index)
                continue
            if stream is None or stream.state == "closed":
                stream = self._open(plan, at, stream)
                opened.append(to_record(stream))
            else:
                before = to_record(stream)
                self._take_keys(stream, plan)
                stream.codecs, stream.rtcp, stream.rtcp_mux = plan.codecs, plan.rtcp, plan.rtcp_mux
                if (now := to_record(stream)) != before:
                    changed.append(now)
            stream.on_hold = plan.paused
            line = offer.media[plan.index]
            stream.record = _word(line.attribute("record"))
            stream.recordpref = _word(line.attribute("recordpref"))
        for index, stream in self._now.streams.items():
            if index >= len(plans) and stream.state != "closed":
                self._now.warn(f"m-line {index + 1} is gone from the offer")
                self._close(stream, at)
                closed.append(index)
        self._follow_labels(plans)
        moved = any(self._now.streams[index].signalled != name for index, name in labels.items())
        return Changes(
            tuple(opened), tuple(changed), tuple(closed), metadata_changed=moved, needs_answer=True
        )

    def _follow_labels(self, plans: Sequence[StreamPlan]) -> None:
        """Take over what the SDP calls the streams now: it is what the metadata knows them by."""
        taken: set[str] = set()
        for plan in plans:
            stream = self._now.streams.get(plan.index)
            if stream is None or not plan.accepted:
                continue
            name = readable(plan.label) if plan.label else stream.signalled
            stream.signalled = name if name not in taken else f"{name}.{plan.index + 1}"
            taken.add(stream.signalled)

    def _open(self, plan: StreamPlan, at: datetime, old: Stream | None) -> Stream:
        if old is not None:  # its audio goes on where it ended, with silence between
            old.codecs, old.state, old.closed_at = plan.codecs, "active", None
            self._take_keys(old, plan)
            old.rtcp, old.rtcp_mux = plan.rtcp, plan.rtcp_mux
            return old
        wanted = readable(plan.label or str(plan.index + 1))
        taken = [one for one in self._now.streams.values() if one.label == wanted]
        label = f"{wanted}.{plan.index + 1}" if taken else wanted
        if plan.label is None:
            self._now.warn(f"m-line {plan.index + 1} has no label")
        elif any(one.state != "closed" for one in taken):
            self._now.warn(f"label {wanted} is on two m-lines")
        stream = Stream(plan.index, label, plan.codecs, "active", at, signalled=label)
        self._take_keys(stream, plan)
        stream.rtcp, stream.rtcp_mux = plan.rtcp, plan.rtcp_mux
        self._now.streams[plan.index] = stream
        return stream

    def _take_keys(self, stream: Stream, plan: StreamPlan) -> None:
        """Follow where the keys of a stream come from.

        Ours stays while the suite does: its packets are counted on. Our name for an association
        stays while the peer's does. RFC 8842 §5.3
        """
        old, before = stream.keys, stream.dtls
        crypto, stream.dtls, stream.keys = plan.crypto, plan.dtls, None
        if crypto is not None:
            same = old is not None and old.suite == crypto.suite
            local = old.local if old is not None and same else self._new_key(SUITES[crypto.suite])
            stream.keys = StreamKeys(crypto.suite, crypto.key, local, crypto.mki_length)
        if plan.dtls is None or plan.dtls.tls_id is None:
            stream.tls_id = None
        elif before != plan.dtls or stream.tls_id is None:
            stream.tls_id = self._new_key(_TLS_ID_OCTETS).hex()

    def _close(self, stream: Stream, at: datetime) -> None:
        if stream.state == "closed":
            return
        stream.turn("closed", at)
        stream.closed_at = at
        stream.pauses = follow(stream.pauses, on_hold=False, orders=(), at=at)
        leave(stream, {one.participant_id for one in stream.presences}, at)

    def _with_pauses(self, changes: Changes, at: datetime) -> Changes:
        """These changes, and the streams that are to be recorded no longer, or again."""
        paused: list[int] = []
        resumed: list[int] = []
        changed = False
        for stream in self._now.streams.values():
            if stream.state == "closed":
                continue
            present = {one.participant_id for one in stream.presences if one.until is None}
            orders = [one for one in self._orders.values() if one.covers(stream.label, present)]
            before = stream.pauses
            stream.pauses = follow(before, on_hold=stream.on_hold, orders=orders, at=at)
            changed |= stream.pauses != before
            if (stream.on_hold or orders) and stream.state == "active":
                paused.append(stream.index)
            elif not (stream.on_hold or orders) and stream.state == "paused":
                resumed.append(stream.index)
            stream.turn("paused" if stream.on_hold or orders else "active", at)
        return replace(
            changes, paused=tuple(paused), resumed=tuple(resumed), pauses_changed=changed
        )

    def _prepare_late_offer(self, at: datetime) -> Changes:
        if self._policy.srtp == "require":  # our own offers are plain
            warning = '302 siprec-bridge "SRTP is required, and has to be offered"'
            raise Refused(488, "Not Acceptable Here", (("Warning", warning),))
        self._now.late = self._now.awaits_answer = True
        ours = sdp.offer(
            self._policy,
            [9] * self._fork.streams,
            address="127.0.0.1",
            session_id=self._sdp_session_id,
            version=0,
        )
        opened: list[StreamToRecord] = []
        for index, media in enumerate(ours.media):
            if index in self._now.streams:  # the first offer of ours was never answered
                continue
            label = str(index + 1)
            stream = Stream(index, label, media.codecs, "active", at, signalled=label)
            self._now.streams[index] = stream
            opened.append(to_record(stream))
        return Changes(opened=tuple(opened), needs_answer=True)

    def _offer_again(self, last: SessionDescription) -> Changes:
        """An offer of ours in the call, as for a new one. RFC 3261 §14.2."""
        self._now.awaits_answer = True
        self._now.plans = sdp.ask_for_all(self._now.plans, last, self._policy)
        changed: list[StreamToRecord] = []
        for plan in self._now.plans:
            stream = self._now.streams.get(plan.index)
            if plan.accepted and stream is not None and stream.codecs != plan.codecs:
                stream.codecs = plan.codecs  # may come before the answer does. RFC 3264 §5.1
                changed.append(to_record(stream))
        return Changes(changed=tuple(changed), needs_answer=True)

    def _build_offer(
        self, ports: Mapping[int, int], address: str, version: int
    ) -> SessionDescription:
        return sdp.offer(
            self._policy,
            [ports[index] for index in sorted(ports)],
            address=address,
            session_id=self._sdp_session_id,
            version=version,
        )

    def _build_answer(
        self, ports: Mapping[int, int], address: str, version: int
    ) -> SessionDescription:
        if self._now.offer is None:
            raise ValueError("there is no offer to answer")
        by_dtls = [one for one in self._now.streams.values() if one.dtls is not None]
        return sdp.answer(
            self._now.offer,
            self._now.plans,
            ports,
            {one.index: one.keys.local for one in self._now.streams.values() if one.keys},
            fingerprint=self._certificate() if self._certificate and by_dtls else None,
            tls_ids={one.index: one.tls_id for one in by_dtls if one.tls_id},
            address=address,
            session_id=self._sdp_session_id,
            version=version,
        )

    # Metadata

    def _take_metadata(self, xml: bytes, at: datetime) -> bool:
        """Take a document over; one that cannot be read is noted, and the call goes on."""
        try:
            metadata = parse_metadata(xml)
        except MalformedMetadata as error:
            self._now.warn(f"metadata: {error}")
            self._now.metadata_lost = True
            return False
        return people.take(self._now, metadata, self._fork, at)


def _read_sdp(body: bytes) -> SessionDescription:
    try:
        return sdp.parse(body)
    except MalformedSdp as error:
        raise Refused(400, f"Malformed SDP ({error})") from error


def _is_answer(one: SessionDescription, offer: SessionDescription) -> bool:
    """Whether it has the offer's m-lines, and none that was offered at port 0. RFC 3264 §6."""
    return len(one.media) == len(offer.media) and all(
        theirs.kind == ours.kind and (ours.port != 0 or theirs.port == 0)
        for theirs, ours in zip(one.media, offer.media, strict=True)
    )


def _of_offered(answer: SessionDescription, offer: SessionDescription | None) -> SessionDescription:
    """What an answer says of what was offered; it may say nothing else. RFC 3264 §6."""
    media = tuple(
        theirs if ours.port else replace(theirs, port=0)
        for theirs, ours in zip(answer.media, offer.media if offer else (), strict=False)
    )
    return replace(answer, media=media)


def _refusal_warnings(plans: Sequence[StreamPlan]) -> tuple[tuple[str, str], ...]:
    """Warning headers that say why no m-line was accepted, one for each code."""
    reasons: dict[int, list[str]] = {}
    # Each once and not all: the answer must not be longer than the question.
    for code, reason in dict.fromkeys((one.warn_code, one.reason) for one in plans):
        reasons.setdefault(code, []).append(reason)
    return tuple(
        ("Warning", f'{code} siprec-bridge "{_quotable("; ".join(texts))}"')
        for code, texts in (reasons or {399: ["no m-line"]}).items()
    )


def _word(value: str | None) -> str | None:
    """An attribute's first word, if that can be one of those which it may have."""
    word = (value or "").strip().partition(" ")[0].lower()
    return word if 0 < len(word) <= _LONGEST_WORD and word.isalpha() else None


def _quotable(text: str) -> str:
    return text[:LONGEST_WARNING].replace("\\", "").replace('"', "")
