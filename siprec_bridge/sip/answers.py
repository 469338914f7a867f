"""A request of the peer's, and the answers to it as they are written.

RFC 3261 §8.2.6, §12.1.1 and §17.2.3, RFC 4028.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from siprec_bridge.sip.dialog import CHANGES, Dialog, DialogId, SessionInterval, is_secured
from siprec_bridge.sip.events import RequestId
from siprec_bridge.sip.headers import Headers
from siprec_bridge.sip.identity import MAGIC, Identity
from siprec_bridge.sip.message import REASONS, Request, Response
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.transaction import Transaction

ALLOW = ("INVITE", "ACK", "CANCEL", "BYE", "OPTIONS", "UPDATE", "INFO", "MESSAGE", "NOTIFY")
SUPPORTED = ("siprec", "timer")


@dataclass(eq=False, slots=True)
class Pending:
    """A server transaction and what its answer is made from."""

    id: RequestId
    key: tuple[str, ...]
    request: Request
    peer: Peer  # where answers go
    transaction: Transaction
    dialog: Dialog | None = None
    interval: SessionInterval | None = None
    scheduled: float | None = None  # its valid entry in the agenda

    @property
    def deadline(self) -> float | None:
        """When something of it is due."""
        return self.transaction.deadline


def answer_to(
    identity: Identity,
    pending: Pending,
    status: int,
    reason: str | None,
    extra: Iterable[tuple[str, str]],
    content_type: str | None,
    body: bytes,
) -> Response:
    """The answer to a request, with what all answers of its kind have."""
    request = pending.request
    headers = _echo(request)
    dialog = pending.dialog
    if status > 100 and not request.to.tag:
        tag = dialog.id.local_tag if dialog is not None else identity.token()
        headers.set("To", f"{request.headers.get('To', '')};tag={tag}")
    success = 200 <= status < 300
    if (status == 100 or success) and (stamp := request.headers.get("Timestamp")) is not None:
        headers.add("Timestamp", stamp)
    if success and request.method in ("INVITE", "UPDATE", "OPTIONS"):
        for route in request.headers.get_all("Record-Route"):
            headers.add("Record-Route", route)
        secure = dialog.secure if dialog is not None else is_secured(request)
        headers.add("Contact", identity.contact_for(pending.peer, secure=secure))
        headers.add("Allow", ", ".join(ALLOW))
        headers.add("Supported", ", ".join(SUPPORTED))
    if success and request.method in CHANGES and pending.interval is not None:
        interval = pending.interval
        headers.add("Session-Expires", f"{interval.seconds};refresher={interval.refresher}")
        if interval.refresher == "uac":
            headers.add("Require", "timer")
    headers.add("Server", identity.product)
    for name, value in extra:
        headers.add(name, value)
    if content_type is not None:
        headers.add("Content-Type", content_type)
    return Response(status, reason or REASONS.get(status, "Unknown"), headers, body)


def stateless_answer(identity: Identity, request: Request, status: int, reason: str) -> Response:
    """The answer to a request of which nothing is remembered."""
    headers = _echo(request)
    if "tag=" not in (headers.get("To") or "").lower():
        headers.set("To", f"{headers.get('To')};tag={identity.token()}")
    headers.add("Server", identity.product)
    return Response(status, reason, headers)


def transaction_key(request: Request) -> tuple[str, ...]:
    """What all messages of one transaction share; the last part tells CANCEL from INVITE.

    RFC 3261 §17.2.3.
    """
    via = request.via
    method = "INVITE" if request.method == "ACK" else request.method
    if via.branch.startswith(MAGIC) and len(via.branch) > len(MAGIC):
        return (via.branch, via.host.lower(), str(via.port or ""), method)
    number = str(request.cseq.number)
    return (request.call_id, request.from_.tag, number, via.host.lower(), method)


def dialog_id(request: Request) -> DialogId:
    """The dialog that a request belongs to, by its tags."""
    return DialogId(request.call_id, request.to.tag, request.from_.tag)


def _echo(request: Request) -> Headers:
    """The headers that every response takes over. RFC 3261 §8.2.6.2."""
    headers = Headers(("Via", value) for value in request.headers.get_all("Via"))
    for name in ("From", "To", "Call-ID", "CSeq"):
        headers.add(name, request.headers.get(name) or "")
    return headers


def counted_method(request: Request) -> str:
    """For counting: a method from the wire may be any text."""
    return request.method if request.method in ALLOW else "other"
