"""The dialogs of a capture: which calls were sent to a recording server, by whom, and where it is.

Found in a first pass, so that the second one knows the last hop of a proxied call, the tags that
the captured SRS gave, and the INVITEs that were only asked for a password. RFC 7866 §6.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from siprec_bridge.receiver.packets import Address, Datagram
from siprec_bridge.replay.traffic import WireMessage
from siprec_bridge.sip import MalformedMessage, Request, Response, parse

DialogKey = tuple[str, str]  # Call-ID and the SRC's tag

_MOST_DIALOGS = 20_000
_MOST_COPIES = 20
_MARKS_OF_A_BODY = (b"rs-metadata", b"urn:ietf:params:xml:ns:recording")
_CHALLENGES = (401, 407)


@dataclass(eq=False, slots=True)
class CapturedDialog:
    """What the capture shows of a dialog that somebody's INVITE asked for."""

    key: DialogKey
    recording: bool = False  # it asks for a recording session
    copies: list[tuple[Address, Address]] = field(default_factory=list)  # of INVITEs, each hop
    seen: dict[tuple[str, int], set[Address]] = field(default_factory=dict)  # requests: goals
    answerers: set[Address] = field(default_factory=set)
    challenged: set[int] = field(default_factory=set)  # CSeq of INVITEs
    untimed: set[tuple[str, int]] = field(default_factory=set)  # got a 2xx without session timer
    invites: set[int] = field(default_factory=set)  # CSeq of INVITEs without a To tag
    tags: dict[str, int] = field(default_factory=dict)  # the SRS's tags: CSeq of the INVITE
    forced: Address | None = None

    @property
    def srs(self) -> Address:
        """Where its INVITE ended: the goal of a hop from where it does not go on."""
        if self.forced is not None:
            return self.forced
        sources = {source for source, _ in self.copies}
        goals = [goal for _, goal in self.copies]
        return next((goal for goal in goals if goal not in sources), goals[-1])

    def reaches_srs(self, request: Request, goal: Address) -> bool:
        """Whether this copy of a request of the SRC is the one to take.

        A Contact may lead elsewhere than the INVITE went: what never comes to the SRS's address
        is taken where it is seen.
        """
        srs = self.srs
        return goal == srs or srs not in self.seen.get(_transaction(request), ())

    def is_answer(self, source: Address) -> bool:
        """Whether a response from there is the SRS's own and not a proxy's copy."""
        return source == self.srs or self.srs not in self.answerers

    def got_no_timer(self, request: Request) -> bool:
        """Whether the captured SRS accepted it without a session timer, so that none ran."""
        return _transaction(request) in self.untimed

    def was_only_challenged(self, number: int) -> bool:
        """Whether this INVITE got a 401 or 407 and another one followed."""
        return number in self.challenged and any(one > number for one in self.invites)


@dataclass(slots=True)
class Dialogs:
    """All dialogs of a capture whose first INVITE is in it."""

    by_key: dict[DialogKey, CapturedDialog] = field(default_factory=dict)
    srs: tuple[str, ...] = ()  # HOST or HOST:PORT of servers whose calls are all recordings
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def recordings(self) -> list[CapturedDialog]:
        """Those that ask for a recording session."""
        return [one for one in self.by_key.values() if one.recording]

    def find(self, message: Request | Response) -> CapturedDialog | None:
        """The recording dialog of a message, whoever sent it."""
        call_id, (from_tag, to_tag) = call_id_of(message), tags_of(message)
        for tag in (from_tag, to_tag):
            dialog = self.by_key.get((call_id, tag))
            if dialog is not None and dialog.recording:
                return dialog
        return None

    def note(self, wire: WireMessage) -> None:
        """Take a message of the first pass."""
        message = read_message(wire.data)
        if message is None:
            self.ignored["SIP messages that cannot be read"] += 1
            return
        key = (call_id_of(message), tags_of(message)[0])
        dialog = self.by_key.get(key)
        if isinstance(message, Response):
            if dialog is not None:
                _note_response(dialog, message, wire.source)
            return
        if message.method == "INVITE" and not tags_of(message)[1]:
            if dialog is None:
                if len(self.by_key) >= _MOST_DIALOGS:
                    self.ignored[f"INVITEs beyond the first {_MOST_DIALOGS} calls"] += 1
                    return
                dialog = self.by_key[key] = CapturedDialog(key)
            hop = (wire.source, wire.destination)
            if hop not in dialog.copies and len(dialog.copies) < _MOST_COPIES:
                dialog.copies.append(hop)
            goal = wire.destination
            if goal.host in self.srs or str(goal) in self.srs:
                dialog.forced, dialog.recording = goal, True
            dialog.recording = dialog.recording or asks_for_recording(message)
            dialog.invites.add(number_of(message))
        if dialog is not None:
            dialog.seen.setdefault(_transaction(message), set()).add(wire.destination)


def find_dialogs(traffic: Iterable[WireMessage | Datagram], srs: tuple[str, ...]) -> Dialogs:
    """Go through a capture once."""
    dialogs = Dialogs(srs=srs)
    for one in traffic:
        if isinstance(one, WireMessage):
            dialogs.note(one)
    return dialogs


def asks_for_recording(invite: Request) -> bool:
    """Whether an INVITE is one of an SRC. Not all of them say `Require: siprec`."""
    headers = invite.headers
    options = headers.values("Require") + headers.values("Supported")
    return (
        "siprec" in {one.strip().lower() for one in options}
        or "+sip.src" in (headers.get("Contact") or "").lower()
        or any(mark in invite.body for mark in _MARKS_OF_A_BODY)
        # Cisco's built-in bridge forks with no other sign than these.
        or any(mark in (headers.get("From") or "") for mark in ("x-nearend", "x-farend"))
    )


def read_message(data: bytes) -> Request | Response | None:
    """A message, also a broken request as far as it can be read; None: not even that."""
    try:
        return parse(data)
    except MalformedMessage as error:
        return error.request


def call_id_of(message: Request | Response) -> str:
    """The Call-ID."""
    return (message.headers.get("Call-ID") or "").strip()


def tags_of(message: Request | Response) -> tuple[str, str]:
    """The tags of From and To; "" for what is not there or cannot be read."""
    tags: list[str] = []
    for name in ("from_", "to"):
        try:
            tags.append(getattr(message, name).tag)
        except MalformedMessage:
            tags.append("")
    return tags[0], tags[1]


def number_of(message: Request | Response) -> int:
    """The CSeq number; 0 when it cannot be read."""
    try:
        return message.cseq.number
    except MalformedMessage:
        return 0


def _note_response(dialog: CapturedDialog, response: Response, source: Address) -> None:
    dialog.answerers.add(source)
    if "+sip.srs" in (response.headers.get("Contact") or "").lower():
        dialog.recording = True
    method, number = response.cseq.method, response.cseq.number
    if 200 <= response.status < 300 and "Session-Expires" not in response.headers:
        dialog.untimed.add((method, number))
    if method != "INVITE":
        return
    if number in dialog.invites:
        dialog.tags.setdefault(tags_of(response)[1], number)
    if response.status in _CHALLENGES:
        dialog.challenged.add(number)


def _transaction(request: Request) -> tuple[str, int]:
    return request.method, number_of(request)
