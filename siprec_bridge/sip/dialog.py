"""A dialog as its UAS keeps it: identity, targets, numbers, unacknowledged answers, its timer.

RFC 3261 §12 and §13.3.1.4, RFC 4028.
"""

import re
from collections import deque
from dataclasses import dataclass, field, replace

from siprec_bridge.sip.errors import MalformedMessage, Refused
from siprec_bridge.sip.headers import parse_name_addr, split_params
from siprec_bridge.sip.message import Request, Response
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.uri import parse_uri

CHANGES = ("INVITE", "UPDATE")  # methods that change a session
_PASSING = (408, 491, 500, 503, 504)  # another refresh may be taken
_NO_SUCH_METHOD = (405, 501)
_FIRST_RETRY_S = 2.0  # RFC 3261 §14.1 has up to 2 s for whoever did not make up the Call-ID
_MOST_DOUBLED = 16  # then 36 hours: a peer may refuse for weeks
_SHORTEST_S = 30


@dataclass(frozen=True, slots=True)
class DialogId:
    """Call-ID and both tags, ours first."""

    call_id: str
    local_tag: str
    remote_tag: str


@dataclass(slots=True)
class Unacknowledged:
    """A 2xx that is sent again until its ACK comes."""

    data: bytes
    peer: Peer
    interval: float
    next_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class SessionInterval:
    """A negotiated session timer. `refresher`: "uac" (the peer) or "uas" (we), then by `method`.

    `minimum`: the shortest that all on the way allow, if one of them has said so.
    """

    seconds: int
    refresher: str
    method: str = "UPDATE"
    minimum: int | None = None


@dataclass(eq=False, slots=True)
class Dialog:
    """One dialog. `local` and `remote` are the To and From of its INVITE, tags included."""

    id: DialogId
    peer: Peer  # where answers to its last request go, and requests of ours
    local: str
    remote: str
    remote_target: str
    route_set: tuple[str, ...]
    remote_seq: int
    secure: bool = False  # its INVITE asked for SIPS
    local_seq: int = 0
    confirmed: bool = False
    interval: SessionInterval | None = None
    expires_at: float | None = None
    refresh_at: float | None = None
    refusals: int = 0  # of our refreshes, since the last one that was taken
    description: tuple[str, bytes] | None = None  # the body of our last 2xx that had one, its type
    offering: bool = False  # a re-INVITE of ours is under way
    unacknowledged: dict[int, Unacknowledged] = field(default_factory=dict)  # by CSeq number
    answered: set[int] = field(default_factory=set)  # CSeq numbers of INVITEs that got their ACK
    busy: str | None = None  # the INVITE or UPDATE that the recorder is working on
    waiting: deque[tuple[str, Request, Peer]] = field(default_factory=deque)
    scheduled: float | None = None  # its place in the server's agenda

    @classmethod
    def from_invite(cls, request: Request, local_tag: str, peer: Peer) -> "Dialog":
        """The dialog that an initial INVITE asks for."""
        to = request.headers.get("To", "")
        return cls(
            id=DialogId(request.call_id, local_tag, request.from_.tag),
            peer=peer,
            local=f"{to};tag={local_tag}",
            remote=request.headers.get("From", "") or "",
            remote_target=contact_of(request) or request.from_.uri,
            route_set=tuple(request.headers.values("Record-Route")),
            remote_seq=request.cseq.number,
            secure=is_secured(request),
        )

    @property
    def deadline(self) -> float | None:
        """When something of it is due."""
        times = [one.next_at for one in self.unacknowledged.values()]
        times += [at for at in (self.expires_at, self.refresh_at) if at is not None]
        return min(times, default=None)

    def path(self) -> tuple[str, tuple[str, ...]]:
        """The Request-URI and the Route of a request of ours. RFC 3261 §12.2.1.1."""
        try:
            first = parse_name_addr(self.route_set[0]) if self.route_set else None
            strict = first is not None and "lr" not in parse_uri(first.uri).params
        except MalformedMessage:
            return self.remote_target, self.route_set
        if first is None or not strict:
            return self.remote_target, self.route_set
        # A strict router looks at the Request-URI alone: the target goes to the end of the route.
        return first.uri, (*self.route_set[1:], f"<{self.remote_target}>")

    def follow(self, request: Request, peer: Peer) -> None:
        """Take over what a re-INVITE or UPDATE changes: number, target and path."""
        self.remote_seq = max(self.remote_seq, request.cseq.number)
        self.peer = peer
        self.remote_target = contact_of(request) or self.remote_target

    def follow_answer(self, response: Response) -> None:
        """Take over what a 2xx to an INVITE or UPDATE of ours changes. RFC 3261 §12.2.1.2."""
        self.remote_target = contact_of(response) or self.remote_target

    @property
    def refreshed_by(self) -> str:
        """The method of our refreshes: a re-INVITE has to offer what we last said."""
        if self.interval is None or self.description is None:
            return "UPDATE"
        return self.interval.method

    @property
    def may_offer(self) -> bool:
        """Whether no INVITE or UPDATE of either side is under way. RFC 3261 §14.1."""
        return not (self.offering or self.busy or self.waiting or self.unacknowledged)

    def acknowledge(self, number: int) -> bool:
        """Take an ACK; True when it was the first one for some answer.

        A later ACK also counts for earlier answers (OpenSIPS skips some), and one with a number
        that no INVITE had counts for all (some SRCs number it by their other call leg).
        """
        known = number in self.unacknowledged or number in self.answered
        done = [seq for seq in self.unacknowledged if seq <= number or not known]
        for seq in done:
            del self.unacknowledged[seq]
            self.answered.add(seq)
        return bool(done)

    def start_timer(self, interval: SessionInterval | None, now: float) -> None:
        """Begin to count anew after a refresh. RFC 4028 §10."""
        self.interval, self.refusals = interval, 0
        if interval is None:
            self.expires_at = self.refresh_at = None
            return
        if interval.refresher == "uas":
            self.refresh_at = now + interval.seconds / 2
            self.expires_at = now + interval.seconds
        else:
            self.refresh_at = None
            self.expires_at = now + interval.seconds - min(32.0, interval.seconds / 3)

    def put_refresh_off(self, now: float) -> None:
        """Something is under way that a re-INVITE must not cross."""
        self.refresh_at = now + _FIRST_RETRY_S

    def note_refresh(self, response: Response, now: float) -> None:
        """Take the answer to a refresh of ours (408 without headers: none). RFC 4028 §7.2, §7.3, §10.

        A peer that answers is there, whatever it says: its call is not cut off. Where none comes,
        another refresh may, as long as there is something left of the interval.
        """
        interval, refusals = self.interval, self.refusals
        if interval is None:
            return
        if response.status < 300:
            self.start_timer(_agreed(interval, response), now)
            return
        if response.status == 422:
            wanted = seconds_of(response.headers.get("Min-SE", ""))
            if wanted is not None and wanted > interval.seconds:
                self.start_timer(replace(interval, seconds=wanted, minimum=wanted), now)
                self.refresh_at = now
                return
        if response.status in _NO_SUCH_METHOD and self.description and interval.method == "UPDATE":
            self.start_timer(replace(interval, method="INVITE"), now)
            self.refresh_at = now
            return
        if response.status != 408:
            self.start_timer(interval, now)
        if response.status in _PASSING:
            wait = seconds_of(response.headers.get("Retry-After", ""))
            if not wait:
                wait = _FIRST_RETRY_S * 2 ** min(refusals, _MOST_DOUBLED)
            self.refresh_at, self.refusals = now + min(wait, interval.seconds / 2), refusals + 1


def _agreed(interval: SessionInterval, response: Response) -> SessionInterval:
    """What a 2xx makes of an interval; one that says nothing leaves it as it was."""
    value = response.headers.get("Session-Expires") or ""
    seconds = seconds_of(value)
    if seconds is None:
        return interval
    # Of the two of this request: "uac" are we.
    theirs = re.search(r";\s*refresher\s*=\s*uas\b", value, re.IGNORECASE)
    refresher = "uac" if theirs else "uas"
    return replace(interval, seconds=max(seconds, _SHORTEST_S), refresher=refresher)


def seconds_of(value: str | None) -> int | None:
    """A header's delta-seconds, ahead of parameters or a comment; None: it has none."""
    found = re.match(r"[0-9]{1,9}(?![0-9])", (value or "").strip())
    return int(found[0]) if found is not None else None


def is_secured(request: Request) -> bool:
    """Whether it asks for SIPS: by its Request-URI, top Record-Route, or else its Contact."""
    route = request.headers.first_value("Record-Route")
    try:
        hop = parse_name_addr(route).uri if route else contact_of(request) or ""
    except MalformedMessage:
        hop = ""
    return any(one.lower().startswith("sips:") for one in (request.uri, hop))


def contact_of(message: Request | Response) -> str | None:
    """The URI of the first Contact, if it can be read."""
    value = message.headers.first_value("Contact")
    try:
        return parse_name_addr(value).uri if value else None
    except MalformedMessage:
        return None


def negotiate_timer(request: Request, minimum: int) -> SessionInterval | None:
    """The session timer to answer a request with, or None for no timer.

    Raises Refused (422) for an interval below `minimum` seconds, unless the peer cannot be told.
    RFC 4028 §9.
    """
    value = request.headers.get("Session-Expires")
    if value is None:
        return None
    try:
        head, params = split_params(value)
    except MalformedMessage:
        return None
    if not (head.isascii() and head.isdecimal() and len(head) <= 9):
        return None
    seconds = int(head)
    supported = "timer" in {name.lower() for name in request.headers.values("Supported")} | {
        name.lower() for name in request.headers.values("Require")
    }
    if seconds < minimum:
        if supported:
            raise Refused(422, "Session Interval Too Small", (("Min-SE", str(minimum)),))
        seconds = minimum
    refresher = params.get("refresher", "").lower()
    if not supported:
        refresher = "uas"  # a proxy asked for it: only we can refresh
    if refresher != "uas":
        return SessionInterval(seconds, "uac")
    allowed = {name.upper() for name in request.headers.values("Allow")}
    # By UPDATE where we may: a re-INVITE has to offer SDP. RFC 4028 §7.4
    known = "UPDATE" in allowed or not allowed
    return SessionInterval(seconds, "uas", "UPDATE" if known else "INVITE")
