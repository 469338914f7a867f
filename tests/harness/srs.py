"""The whole protocol core in one: what the bridge does with a peer's bytes, without its I/O."""

from datetime import UTC, datetime
from ipaddress import ip_address

from harness.src import PEER, new_server
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import (
    AckReceived,
    DialogEnded,
    DialogId,
    DigestAuthority,
    InviteCancelled,
    InviteReceived,
    Output,
    Peer,
    Refused,
    Request,
    RequestReceived,
    Send,
    UpdateReceived,
)
from siprec_bridge.siprec import (
    Body,
    RecordingSession,
    parse_body,
    read_fork,
)

_START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Srs:
    """A machine and its recording sessions. `receive` raises nothing, whatever the bytes are."""

    def __init__(self, authority: DigestAuthority | None = None) -> None:
        self.server = new_server(authority=authority)
        self.sessions: dict[DialogId, RecordingSession] = {}

    def receive(self, data: bytes, peer: Peer = PEER, now: float = 0.0) -> list[Output]:
        """Take a message, follow what it asks for, and return all that came of it."""
        return self._follow(self.server.receive(data, peer, now), now)

    def advance(self, now: float) -> list[Output]:
        """Let time pass."""
        return self._follow(self.server.advance(now), now)

    def _follow(self, outputs: list[Output], now: float) -> list[Output]:
        done: list[Output] = []
        while outputs:
            output = outputs.pop(0)
            done.append(output)
            match output:
                case Send(peer=peer):
                    ip_address(peer.host)  # a name would be looked up, in the middle of the loop
                case InviteReceived() | UpdateReceived():
                    outputs += self._negotiate(output, now)
                case RequestReceived(id=id):
                    outputs += self.server.respond(id, 200, now=now)
                case AckReceived(dialog=dialog, request=request):
                    outputs += self._take_ack(dialog, request, now)
                case InviteCancelled(dialog=dialog):
                    self.sessions.pop(dialog, None)
                case DialogEnded(dialog=dialog, request=request):
                    self._end(dialog, request)
                case _:
                    pass
        return done

    def _negotiate(self, change: InviteReceived | UpdateReceived, now: float) -> list[Output]:
        request = change.request
        session = self.sessions.get(change.dialog) or RecordingSession(
            "s",
            MediaPolicy(),
            sdp_session_id=1,
            fork=read_fork(request),
        )
        try:
            invite = isinstance(change, InviteReceived)
            changes = session.offer(_body(request), _START, invite=invite)
        except Refused as refusal:
            return self.server.respond(
                change.id, refusal.status, now=now, reason=refusal.reason, headers=refusal.headers
            )
        self.sessions[change.dialog] = session
        sdp = b""
        if changes.needs_answer:
            ports = {index: 20000 + 2 * index for index in session.streams_open()}
            sdp = session.answer(ports, "192.0.2.1")
        session.document().model_dump_json()
        kind = "application/sdp" if sdp else None
        return self.server.respond(change.id, 200, now=now, content_type=kind, body=sdp)

    def _take_ack(self, dialog: DialogId, ack: Request, now: float) -> list[Output]:
        session = self.sessions.get(dialog)
        try:
            body = _body(ack)
            if session is not None:
                session.acknowledged(body, _START)
                session.document().model_dump_json()
        except Refused:
            return self.server.request(dialog, "BYE", now=now)
        return []

    def _end(self, dialog: DialogId, bye: Request | None) -> None:
        session = self.sessions.pop(dialog, None)
        if session is None:
            return
        try:
            last = _body(bye) if bye is not None else Body()
            session.offer(Body(metadata=last.metadata), _START, invite=False)
        except Refused:
            pass  # the bridge notes it in its log
        session.end(_START)
        session.document().model_dump_json()


def _body(request: Request) -> Body:
    return parse_body(request.content_type, request.headers.get("Content-Encoding"), request.body)
