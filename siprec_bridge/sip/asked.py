"""A request of ours in a dialog: written, sent, and sent again to another server of the peer's.

RFC 3261 §8.1.1, §8.1.3, §12.2.1, §13.2.2.4 and §17.1.1.3, RFC 3263 §4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from siprec_bridge.sip.dialog import Dialog, DialogId
from siprec_bridge.sip.headers import Headers
from siprec_bridge.sip.message import REASONS, Request, Response, serialize
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.routing import next_hop
from siprec_bridge.sip.transaction import Timers, Transaction

_MOST_SERVERS = 4  # that a request is sent to
_SEARCH_S = 10.0  # for another server
_OF_ACK = ("Via", "Max-Forwards", "Route", "From", "To", "Call-ID", "CSeq", "User-Agent")


@dataclass(eq=False, slots=True)
class Asked:
    """A request with its client transaction.

    `failure`: what it came to at the last server (a 408 without headers: nothing), while another
    one is looked for. `failed`: addresses and ports that need not be tried again. `ack`: an INVITE's,
    for its final answer and each repetition of that. `way_back`: of a request that goes by another
    transport than the dialog's, where answers go, in case that leads nowhere.
    """

    branch: str
    request: Request
    dialog: DialogId
    peer: Peer
    transaction: Transaction
    refresh: bool = False
    failed: frozenset[tuple[str, int]] = frozenset()
    servers: int = 1
    failure: Response | None = None
    search_until: float | None = None
    ack: bytes = b""
    forget_at: float | None = None  # an INVITE whose dialog is over
    way_back: Peer | None = None
    scheduled: float | None = field(default=None)  # its valid entry in the agenda

    @property
    def method(self) -> str:
        """The request's."""
        return self.request.method

    @property
    def deadline(self) -> float | None:
        """When something of it is due."""
        if self.failure is not None:
            return self.search_until
        return self.forget_at if self.forget_at is not None else self.transaction.deadline

    @property
    def may_go_elsewhere(self) -> bool:
        """Whether there may be another server for it."""
        return self.peer.elsewhere is not None and self.servers < _MOST_SERVERS

    @property
    def unsent(self) -> bool:
        """Whether its first server is still looked for."""
        return self.servers == 0

    def fail(self, failure: Response, source: Peer | None, now: float) -> None:
        """Note that this server does not serve it. `source`: who answered, if somebody did."""
        self.failed |= {(one.host, one.port) for one in (self.peer, source) if one is not None}
        self.seek(failure, now)

    def seek(self, failure: Response, now: float) -> None:
        """Wait for another server; where there is none, this is what it came to."""
        self.failure = failure
        self.search_until = now + _SEARCH_S

    def at(self, server: tuple[str, int], branch: str, timers: Timers, now: float) -> "Asked":
        """The same for another server: a transaction of its own. RFC 3263 §4.3."""
        host, port = server
        # A stream has to be opened; datagrams go out where those before did.
        peer = replace(
            self.peer, host=host, port=port, flow=0 if self.peer.reliable else self.peer.flow
        )
        return self._sent_to(peer, self.way_back, branch, timers, now)

    def back(self, way_back: Peer, branch: str, timers: Timers, now: float) -> "Asked":
        """The same for where answers to the dialog's last request go."""
        return self._sent_to(way_back, None, branch, timers, now)

    def _sent_to(
        self, peer: Peer, way_back: Peer | None, branch: str, timers: Timers, now: float
    ) -> "Asked":
        headers = Headers(self.request.headers)
        headers.replace_first("Via", _via(peer, branch))
        request = Request(self.request.method, self.request.uri, headers, self.request.body)
        return Asked(
            branch,
            request,
            self.dialog,
            peer,
            _transaction(request, peer, timers, now),
            self.refresh,
            self.failed,
            self.servers + 1,
            way_back=way_back,
        )


def ask(
    dialog: Dialog,
    method: str,
    *,
    branch: str,
    contact: str,
    user_agent: str,
    extra: Sequence[tuple[str, str]] = (),
    content_type: str | None = None,
    body: bytes = b"",
    refresh: bool = False,
    timers: Timers,
    now: float,
) -> Asked:
    """The next request in a dialog."""
    dialog.local_seq += 1
    hop = next_hop(dialog)
    elsewhere = (hop.host, hop.port) if hop is not None else None
    # Where answers to the dialog's last request go: behind a NAT its Contact leads nowhere.
    peer, way_back = replace(dialog.peer, elsewhere=elsewhere), None
    if hop is not None and hop.transport != peer.transport:
        way_back = replace(peer, elsewhere=None)
        peer = replace(peer, transport=hop.transport, flow=0)
    target, routes = dialog.path()
    headers = Headers(
        [
            ("Via", _via(peer, branch)),
            ("Max-Forwards", "70"),
            *(("Route", route) for route in routes),
            ("From", dialog.local),
            ("To", dialog.remote),
            ("Call-ID", dialog.id.call_id),
            ("CSeq", f"{dialog.local_seq} {method}"),
            ("Contact", contact),
            ("User-Agent", user_agent),
            *extra,
        ]
    )
    if content_type is not None:
        headers.add("Content-Type", content_type)
    request = Request(method, target, headers, body)
    transaction = _transaction(request, peer, timers, now)
    asked = Asked(branch, request, dialog.id, peer, transaction, refresh, way_back=way_back)
    if way_back is not None:
        asked.servers = 0
        asked.seek(Response(408, REASONS[408]), now)
    return asked


def acknowledge(asked: Asked, response: Response, dialog: Dialog | None, branch: str) -> bytes:
    """The ACK for a final answer to an INVITE; that for a 2xx has a `branch` of its own.

    `dialog`: the INVITE's, if it is not over. RFC 3261 §13.2.2.4 and §17.1.1.3.
    """
    invite = asked.request
    headers = Headers((name, value) for name, value in invite.headers if name in _OF_ACK)
    headers.set("CSeq", f"{invite.cseq.number} ACK")
    uri = invite.uri
    if response.status >= 300:
        headers.set("To", response.headers.get("To") or "")
    else:
        headers.replace_first("Via", _via(asked.peer, branch))
        uri = dialog.path()[0] if dialog is not None else uri
    return serialize(Request("ACK", uri, headers))


def _via(peer: Peer, branch: str) -> str:
    return f"SIP/2.0/{peer.transport.upper()} {peer.local};branch={branch};rport"


def _transaction(request: Request, peer: Peer, timers: Timers, now: float) -> Transaction:
    return Transaction.client(
        serialize(request),
        invite=request.method == "INVITE",
        timers=timers,
        reliable=peer.reliable,
        now=now,
    )
