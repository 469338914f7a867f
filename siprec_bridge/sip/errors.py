"""What the SIP layer raises."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siprec_bridge.sip.message import Request


class MalformedMessage(Exception):
    """Bytes that are no SIP message. `request` is what could be read, if enough for an answer."""

    def __init__(self, reason: str, *, status: int = 400, request: "Request | None" = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.request = request


class Refused(Exception):
    """The peer's fault or our lack of room: the answer that says so."""

    def __init__(self, status: int, reason: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.headers = headers
