"""The machine that a listener drives: messages and time in, messages and events out.

RFC 3261 §8.2, §9.2, §12.2, §13.3, §15.1 and §18.2; RFC 3311, 3581, 4028.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import TypedDict

from siprec_bridge.sip.agenda import Agenda
from siprec_bridge.sip.answers import (
    ALLOW,
    SUPPORTED,
    Pending,
    answer_to,
    counted_method,
    dialog_id,
    stateless_answer,
    transaction_key,
)
from siprec_bridge.sip.asked import Asked
from siprec_bridge.sip.client import Client
from siprec_bridge.sip.dialog import (
    CHANGES,
    Dialog,
    DialogId,
    Unacknowledged,
    negotiate_timer,
)
from siprec_bridge.sip.digest import DigestAuthority, Verdict
from siprec_bridge.sip.errors import MalformedMessage, Refused
from siprec_bridge.sip.events import (
    AckReceived,
    AliasAsked,
    DialogEnded,
    InviteCancelled,
    InviteReceived,
    Malformed,
    Output,
    RequestAnswered,
    RequestId,
    RequestReceived,
    RequestSeen,
    ResponseSent,
    Send,
    UpdateReceived,
)
from siprec_bridge.sip.framing import BrokenStream
from siprec_bridge.sip.identity import Identity
from siprec_bridge.sip.message import REASONS, Request, Response, parse, serialize
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.routing import here, note_source
from siprec_bridge.sip.transaction import Action, Input, State, Timers, Transaction

_NOT_FOR_US = ("PRACK", "PUBLISH", "REFER", "REGISTER", "SUBSCRIBE")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*+):")
_SCHEMES = ("sip", "sips", "tel")
_MAX_WAITING = 20  # re-INVITEs and UPDATEs of one dialog that may wait for their turn


class Content(TypedDict, total=False):
    """What a message carries beyond the machine's own headers: for who hands it on to `request`."""

    headers: Sequence[tuple[str, str]]
    content_type: str | None
    body: bytes


class AnswerContent(Content, total=False):
    """The same for `respond`. `reason` in place of the status's own."""

    reason: str | None


class SipServer:
    """A user agent server for recording sessions, and client for requests in their dialogs.

    `token` gives unique random text for tags and branches; `contact` the Contact value for a
    flow. `now` is seconds of any clock that does not go back. No call raises for what a peer
    sent.
    """

    def __init__(
        self,
        *,
        token: Callable[[], str],
        contact: Callable[[Peer], str],
        user_agent: str = "siprec-bridge",
        min_session_expires: int = 90,
        authority: DigestAuthority | None = None,
    ) -> None:
        self._identity = Identity(token, contact, user_agent)
        self._timers = Timers()
        self._min_session_expires = min_session_expires
        self._authority = authority  # None: whoever reaches us may talk to us
        self._numbers = itertools.count(1)
        self._pending: dict[tuple[str, ...], Pending] = {}
        self._by_id: dict[RequestId, Pending] = {}
        self._merged: dict[tuple[str, ...], tuple[str, ...]] = {}  # RFC 3261 §8.2.2.2
        self._dialogs: dict[DialogId, Dialog] = {}
        self._agenda: Agenda[Pending | Asked | Dialog] = Agenda(self._is_live)
        self._client = Client(
            self._identity, self._timers, self._dialogs, self._agenda.schedule, self._answered
        )

    @property
    def dialogs(self) -> int:
        """How many dialogs there are."""
        return len(self._dialogs)

    def receive(self, data: bytes, peer: Peer, now: float) -> list[Output]:
        """Take one whole message."""
        if not data.strip(b"\r\n\0 \t"):
            return []  # a keep-alive
        try:
            message = parse(data)
        except MalformedMessage as error:
            return self._reject(error, peer)
        if isinstance(message, Response):
            return self._client.take(message, peer, now)
        reply_to = note_source(message, peer)
        key = transaction_key(message)
        known = self._pending.get(key)
        if known is not None:
            return self._take_again(known, message, reply_to, now)
        if message.method == "ACK":
            return self._take_ack(message, reply_to)
        out: list[Output] = [RequestSeen(peer.transport, counted_method(message))]
        if peer.transport == "tls" and "alias" in message.via.params:
            out.append(AliasAsked(peer, message.via.port or peer.default_port))
        if message.method == "CANCEL":
            return out + self._take_cancel(message, reply_to, key, now)
        pending = self._open(message, reply_to, key)
        try:
            return out + self._take_new(pending, peer, now)
        except Refused as refusal:
            return out + self._refuse(pending, refusal, now)

    def turn_away(self, data: bytes, peer: Peer) -> list[Output]:
        """Answer a request of somebody who may not talk to us with 403, and remember nothing."""
        try:
            request = parse(data)
            if isinstance(request, Response) or request.method == "ACK":
                return []
            reply_to = note_source(request, peer)
        except MalformedMessage:
            return []
        return self._answer_statelessly(request, 403, REASONS[403], here(reply_to))

    def refuse(self, broken: BrokenStream, peer: Peer) -> list[Output]:
        """Answer the message that broke a stream, where its head can be read; remember nothing."""
        try:
            read = parse(broken.head)
            request = read if isinstance(read, Request) else None
        except MalformedMessage as error:  # at least its body is not there
            request = error.request
        told = MalformedMessage(broken.reason, status=broken.status, request=request)
        return self._reject(told, peer)

    def respond(
        self,
        id: RequestId,
        status: int,
        *,
        now: float,
        reason: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        content_type: str | None = None,
        body: bytes = b"",
    ) -> list[Output]:
        """Answer a request for good, with 200 or more.

        One that has its answer already (a CANCEL came) is passed over.
        """
        pending = self._by_id.get(id)
        if pending is None:
            return []
        return self._answer(pending, status, now, reason, headers, content_type, body)

    def request(
        self,
        dialog: DialogId,
        method: str,
        *,
        now: float,
        headers: Sequence[tuple[str, str]] = (),
        content_type: str | None = None,
        body: bytes = b"",
    ) -> list[Output]:
        """Send a request in a dialog; a BYE ends it at once. Unknown dialogs are passed over."""
        known = self._dialogs.get(dialog)
        if known is None:
            return []
        out = self._client.send(known, method, now, headers, content_type, body)
        if method == "BYE":
            out += self._end(known, "terminated", None, now)
        return out

    def redirect(self, branch: str, server: tuple[str, int] | None, now: float) -> list[Output]:
        """Answer NextServerWanted: an address and port to try next; None: there is none."""
        return self._client.redirect(branch, server, now)

    def undeliverable(self, data: bytes, now: float) -> list[Output]:
        """Take back a message for which there is no connection. RFC 3261 §8.1.3.1."""
        return self._client.undeliverable(data, now)

    def next_deadline(self) -> float | None:
        """When `advance` has something to do."""
        return self._agenda.next_deadline()

    def advance(self, now: float) -> list[Output]:
        """Run what is due."""
        out: list[Output] = []
        while (owner := self._agenda.take_due(now)) is not None:
            match owner:
                case Pending():
                    out += self._run_pending(owner, now)
                case Asked():
                    out += self._client.run(owner, now)
                case Dialog():
                    out += self._run_dialog(owner, now)
            self._agenda.schedule(owner)
        return out

    # Requests

    def _take_new(self, pending: Pending, peer: Peer, now: float) -> list[Output]:
        request = pending.request
        if request.method == "BYE" and request.to.tag and dialog_id(request) in self._dialogs:
            return self._take_in_dialog(pending, peer, now)  # whatever it requires
        if request.method not in ALLOW:
            status = 405 if request.method in _NOT_FOR_US else 501  # RFC 3261 §8.2.1, §21.5.2
            raise Refused(status, REASONS[status], (("Allow", ", ".join(ALLOW)),))
        scheme = _SCHEME.match(request.uri)
        if not request.to.tag and scheme is not None and scheme[1].lower() not in _SCHEMES:
            raise Refused(416, REASONS[416])  # RFC 3261 §8.2.2.1
        unsupported = [
            name for name in request.headers.values("Require") if name.lower() not in SUPPORTED
        ]
        if unsupported:
            raise Refused(420, REASONS[420], (("Unsupported", ", ".join(unsupported)),))
        self._authenticate(request, now)
        if request.to.tag:
            return self._take_in_dialog(pending, peer, now)
        if request.method == "INVITE":
            return self._take_invite(pending, peer, now)
        if request.method == "OPTIONS":
            return [RequestReceived(pending.id, None, request, peer)]
        raise Refused(481, REASONS[481])

    def _authenticate(self, request: Request, now: float) -> None:
        """Raise Refused (401) unless the request is of somebody we know.

        Requests in a dialog are believed by its tags, which only its peer and we have seen:
        many SRCs authenticate the first INVITE alone.
        """
        if self._authority is None or dialog_id(request) in self._dialogs:
            return
        verdict = self._authority.verify(request, now)
        if verdict is Verdict.GOOD:
            return
        challenges = self._authority.challenges(now, stale=verdict is Verdict.STALE)
        raise Refused(401, REASONS[401], tuple(("WWW-Authenticate", value) for value in challenges))

    def _take_invite(self, pending: Pending, peer: Peer, now: float) -> list[Output]:
        request = pending.request
        merge = (request.call_id, request.from_.tag, str(request.cseq))
        if self._merged.setdefault(merge, pending.key) != pending.key:
            raise Refused(482, REASONS[482])
        pending.interval = negotiate_timer(request, self._min_session_expires)
        dialog = Dialog.from_invite(request, self._identity.token(), pending.peer)
        self._dialogs[dialog.id] = dialog
        pending.dialog = dialog
        dialog.busy = pending.id
        trying = self._trying(pending, now)
        return [*trying, InviteReceived(pending.id, dialog.id, request, peer, True)]

    def _take_in_dialog(self, pending: Pending, peer: Peer, now: float) -> list[Output]:
        request = pending.request
        dialog = self._dialogs.get(dialog_id(request))
        if dialog is None:
            raise Refused(481, REASONS[481])
        pending.dialog = dialog
        if request.method == "BYE":
            # Whatever its CSeq: a call that hangs up is over.
            out = self._answer(pending, 200, now)
            return out + self._end(dialog, "bye", request, now)
        if request.method not in CHANGES:
            dialog.peer = pending.peer
            return [RequestReceived(pending.id, dialog.id, request, peer)]
        if request.cseq.number < dialog.remote_seq:
            raise Refused(500, REASONS[500])  # RFC 3261 §12.2.2
        if dialog.offering and (request.method == "INVITE" or request.body):
            raise Refused(491, REASONS[491])  # RFC 3261 §14.2, RFC 3311 §5.2
        pending.interval = negotiate_timer(request, self._min_session_expires)
        out = self._trying(pending, now) if request.method == "INVITE" else []
        if dialog.busy is None:
            return out + self._begin_change(dialog, pending.id, request, peer)
        if len(dialog.waiting) >= _MAX_WAITING:
            raise Refused(500, REASONS[500], (("Retry-After", "5"),))
        dialog.waiting.append((pending.id, request, peer))
        return out

    def _begin_change(
        self, dialog: Dialog, id: RequestId, request: Request, peer: Peer
    ) -> list[Output]:
        dialog.busy = id
        dialog.follow(request, self._by_id[id].peer)
        if request.method == "UPDATE":
            return [UpdateReceived(id, dialog.id, request, peer)]
        return [InviteReceived(id, dialog.id, request, peer, False)]

    def _take_again(
        self, known: Pending, request: Request, reply_to: Peer, now: float
    ) -> list[Output]:
        """A retransmission, or the ACK of a refusal."""
        what = Input.ACK if request.method == "ACK" else Input.REQUEST
        actions = known.transaction.step(what, now)
        out: list[Output] = []
        if Action.RESEND in actions and known.transaction.message:
            out.append(Send(known.transaction.message, known.peer))
        if Action.PASS in actions:  # the ACK of a 2xx, with the INVITE's branch
            out += self._take_ack(request, reply_to)
        self._agenda.schedule(known)
        return out

    def _take_ack(self, request: Request, reply_to: Peer) -> list[Output]:
        dialog = self._dialogs.get(dialog_id(request))
        if dialog is None or not dialog.acknowledge(request.cseq.number):
            return []
        dialog.peer = reply_to
        return [RequestSeen(reply_to.transport, "ACK"), AckReceived(dialog.id, request)]

    def _take_cancel(
        self, request: Request, reply_to: Peer, key: tuple[str, ...], now: float
    ) -> list[Output]:
        pending = self._open(request, reply_to, key)
        invite = self._pending.get((*key[:-1], "INVITE"))
        if invite is None:
            return self._answer(pending, 481, now)
        pending.dialog = invite.dialog
        out = self._answer(pending, 200, now)
        if invite.transaction.state is not State.PROCEEDING or invite.dialog is None:
            return out  # too late: it has its answer. RFC 3261 §9.2
        dialog, waiting = invite.dialog, [one[0] for one in invite.dialog.waiting]
        out += self._answer(invite, 487, now)
        if invite.id not in waiting:
            # One that still waited for its turn was never told about.
            out.append(InviteCancelled(invite.id, dialog.id))
        return out

    # Answers

    def _open(self, request: Request, reply_to: Peer, key: tuple[str, ...]) -> Pending:
        transaction = Transaction.server(
            invite=request.method == "INVITE", timers=self._timers, reliable=reply_to.reliable
        )
        pending = Pending(str(next(self._numbers)), key, request, reply_to, transaction)
        self._pending[key] = pending
        self._by_id[pending.id] = pending
        return pending

    def _refuse(self, pending: Pending, refusal: Refused, now: float) -> list[Output]:
        return self._answer(pending, refusal.status, now, refusal.reason, refusal.headers)

    def _trying(self, pending: Pending, now: float) -> list[Output]:
        data = serialize(answer_to(self._identity, pending, 100, None, (), None, b""))
        pending.transaction.step(Input.PROVISIONAL, now, data)
        return [Send(data, pending.peer)]

    def _answer(
        self,
        pending: Pending,
        status: int,
        now: float,
        reason: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        content_type: str | None = None,
        body: bytes = b"",
    ) -> list[Output]:
        self._by_id.pop(pending.id, None)
        method, dialog = pending.request.method, pending.dialog
        data = serialize(
            answer_to(self._identity, pending, status, reason, headers, content_type, body)
        )
        what = Input.SUCCESS if status < 300 else Input.FAILURE
        pending.transaction.step(what, now, data)
        if status >= 300:
            # Whoever is refused may try another address of ours: RFC 3263 §4.3.
            self._end_merging(pending)
        out: list[Output] = [
            Send(data, pending.peer),
            ResponseSent(counted_method(pending.request), status),
        ]
        self._agenda.schedule(pending)
        if dialog is None or method not in CHANGES:
            return out
        if status < 300:
            dialog.start_timer(pending.interval, now)
            if body:
                dialog.description = (content_type or "application/sdp", body)
            if method == "INVITE":
                dialog.confirmed = True
                dialog.unacknowledged[pending.request.cseq.number] = Unacknowledged(
                    data,
                    pending.peer,
                    self._timers.t1,
                    now + self._timers.t1,
                    now + self._timers.lifetime,
                )
            self._agenda.schedule(dialog)
        elif not dialog.confirmed:
            self._dialogs.pop(dialog.id, None)
        return out + self._next_change(dialog, pending.id)

    def _next_change(self, dialog: Dialog, done: RequestId) -> list[Output]:
        """The recorder is free for the next re-INVITE or UPDATE of its dialog."""
        if dialog.busy != done:
            dialog.waiting = type(dialog.waiting)(one for one in dialog.waiting if one[0] != done)
            return []
        dialog.busy = None
        if not dialog.waiting or dialog.id not in self._dialogs:
            return []
        return self._begin_change(dialog, *dialog.waiting.popleft())

    def _reject(self, error: MalformedMessage, peer: Peer) -> list[Output]:
        out: list[Output] = [Malformed(peer, error.reason)]
        request = error.request
        if request is None or request.method == "ACK":
            return out
        try:
            reply_to = note_source(request, peer)
        except MalformedMessage:
            return out
        # What cannot be read cannot be matched to a transaction either.
        # RFC 3261 §21.4.1: a 400 says what is wrong.
        reason = error.reason if error.status == 400 else REASONS[error.status]
        return out + self._answer_statelessly(request, error.status, reason, here(reply_to))

    def _answer_statelessly(
        self, request: Request, status: int, reason: str, reply_to: Peer
    ) -> list[Output]:
        data = serialize(stateless_answer(self._identity, request, status, reason))
        return [Send(data, reply_to), ResponseSent(counted_method(request), status)]

    # Answers to our own requests

    def _answered(self, asked: Asked, response: Response, now: float) -> list[Output]:
        out: list[Output] = [RequestAnswered(asked.dialog, asked.method, response)]
        dialog = self._dialogs.get(asked.dialog)
        if dialog is None:
            return out
        if asked.method == "INVITE":
            dialog.offering = False
        if response.status == 481:  # the peer knows nothing of it: RFC 3261 §12.2.1.2
            out += self._end(dialog, "peer_gone", None, now)
        elif asked.refresh:
            dialog.note_refresh(response, now)
            self._agenda.schedule(dialog)
        return out

    # Time

    def _run_pending(self, pending: Pending, now: float) -> list[Output]:
        done = pending.transaction.expired(now)
        if pending.transaction.terminated:
            self._forget(pending)
        return [
            Send(pending.transaction.message, pending.peer)
            for actions in done
            if Action.RESEND in actions
        ]

    def _run_dialog(self, dialog: Dialog, now: float) -> list[Output]:
        out: list[Output] = []
        for answer in list(dialog.unacknowledged.values()):
            if answer.expires_at <= now:  # RFC 3261 §13.3.1.4
                return out + self._hang_up(dialog, "ack_timeout", now)
            if answer.next_at <= now:
                out.append(Send(answer.data, answer.peer))
                answer.interval = min(2 * answer.interval, self._timers.t2)
                answer.next_at = min(now + answer.interval, answer.expires_at)
        if dialog.expires_at is not None and dialog.expires_at <= now:
            return out + self._hang_up(dialog, "session_expired", now)
        if dialog.refresh_at is not None and dialog.refresh_at <= now:
            out += self._refresh(dialog, now)
        return out

    def _refresh(self, dialog: Dialog, now: float) -> list[Output]:
        """Ask for another interval: by an offer of what holds already, where UPDATE is not known.

        RFC 4028 §7.4.
        """
        seconds = dialog.interval.seconds if dialog.interval else 1800
        timer = [("Session-Expires", f"{seconds};refresher=uac"), ("Supported", "timer")]
        if dialog.interval is not None and dialog.interval.minimum is not None:
            timer.append(("Min-SE", str(dialog.interval.minimum)))  # RFC 4028 §7.4
        dialog.refresh_at = None
        if dialog.refreshed_by == "UPDATE" or dialog.description is None:
            return self._client.send(dialog, "UPDATE", now, timer, refresh=True)
        if not dialog.may_offer:
            dialog.put_refresh_off(now)
            return []
        dialog.offering = True
        headers = (*timer, ("Allow", ", ".join(ALLOW)))
        return self._client.send(dialog, "INVITE", now, headers, *dialog.description, refresh=True)

    def _hang_up(self, dialog: Dialog, cause: str, now: float) -> list[Output]:
        out = self._client.send(dialog, "BYE", now)
        return out + self._end(dialog, cause, None, now)

    def _end(self, dialog: Dialog, cause: str, request: Request | None, now: float) -> list[Output]:
        """Forget a dialog; what it still had to answer is answered. RFC 3261 §15.1.2."""
        self._dialogs.pop(dialog.id, None)
        out: list[Output] = []
        dialog.waiting.clear()
        for pending in [one for one in self._by_id.values() if one.dialog is dialog]:
            out += self._answer(pending, 487, now)
        dialog.unacknowledged.clear()
        dialog.start_timer(None, now)
        if dialog.offering:
            self._client.abandon(dialog.id, now)
        return [*out, DialogEnded(dialog.id, cause, request)]

    def _forget(self, pending: Pending) -> None:
        self._pending.pop(pending.key, None)
        self._end_merging(pending)

    def _end_merging(self, pending: Pending) -> None:
        """Let the same INVITE come on another way: it is a new one from now on."""
        request = pending.request
        merge = (request.call_id, request.from_.tag, str(request.cseq))
        if self._merged.get(merge) == pending.key:
            del self._merged[merge]

    def _is_live(self, owner: Pending | Asked | Dialog) -> bool:
        match owner:
            case Pending():
                return self._pending.get(owner.key) is owner
            case Asked():
                return self._client.knows(owner)
            case Dialog():
                return self._dialogs.get(owner.id) is owner
