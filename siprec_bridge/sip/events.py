"""What the machine gives back: bytes to send, and what happened."""

from dataclasses import dataclass

from siprec_bridge.sip.dialog import DialogId
from siprec_bridge.sip.message import Request, Response
from siprec_bridge.sip.peer import Peer

RequestId = str


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the wire."""

    data: bytes
    peer: Peer


@dataclass(frozen=True, slots=True)
class InviteReceived:
    """An INVITE to be answered with `respond`; `initial` False: a re-INVITE.

    Those of one dialog come one at a time, in order, each after the answer to the one before.
    """

    id: RequestId
    dialog: DialogId
    request: Request
    peer: Peer
    initial: bool


@dataclass(frozen=True, slots=True)
class UpdateReceived:
    """An UPDATE to be answered with `respond`; takes its turn among the re-INVITEs."""

    id: RequestId
    dialog: DialogId
    request: Request
    peer: Peer


@dataclass(frozen=True, slots=True)
class AckReceived:
    """The first ACK for a 2xx. Its body may be the answer to our offer."""

    dialog: DialogId
    request: Request


@dataclass(frozen=True, slots=True)
class InviteCancelled:
    """The INVITE was cancelled before its answer; 487 has been sent."""

    id: RequestId
    dialog: DialogId


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """OPTIONS, or INFO and the like in a dialog: to be answered with `respond`."""

    id: RequestId
    dialog: DialogId | None
    request: Request
    peer: Peer


@dataclass(frozen=True, slots=True)
class DialogEnded:
    """The dialog is over; its BYE, if one came, has been answered.

    Causes: bye, terminated (we hung up), ack_timeout, session_expired, peer_gone (it answered
    481 to a request of ours).
    """

    dialog: DialogId
    cause: str
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class RequestAnswered:
    """The final answer to a request of ours; a 408 without headers: none came.

    What an unanswered request means for the dialog is its sender's to say.
    """

    dialog: DialogId
    method: str
    response: Response


@dataclass(frozen=True, slots=True)
class NextServerWanted:
    """A request of ours was not served: `redirect` wants the next of the peer's servers.

    `peer.elsewhere` is where they are looked up, `failed` the addresses that were tried.
    """

    branch: str
    peer: Peer
    failed: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """A request that was parsed, retransmissions left out: for counting."""

    transport: str
    method: str


@dataclass(frozen=True, slots=True)
class AliasAsked:
    """Over its TLS connection a peer asks for requests that are meant for this port of its host.

    Who hands them over it has to look at the peer's certificate. RFC 5923 §5.
    """

    peer: Peer
    port: int


@dataclass(frozen=True, slots=True)
class ResponseSent:
    """A final response that was sent, retransmissions left out: for counting."""

    method: str
    status: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that were no SIP message; answered with 400 where the sender could be told."""

    peer: Peer
    reason: str


Output = (
    Send
    | InviteReceived
    | UpdateReceived
    | AckReceived
    | InviteCancelled
    | RequestReceived
    | DialogEnded
    | RequestAnswered
    | NextServerWanted
    | RequestSeen
    | AliasAsked
    | ResponseSent
    | Malformed
)
