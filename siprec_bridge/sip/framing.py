"""A stream of bytes into whole messages, by Content-Length. RFC 3261 §18.3, RFC 5626 §3.5.1."""

import re
from dataclasses import dataclass

from siprec_bridge.sip.errors import MalformedMessage
from siprec_bridge.sip.message import parse_content_length

# Possessive: blanks that lead nowhere must not be tried in every way.
_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*+:((?:[^\r\n]|\r?\n[ \t])*+)", re.I | re.M)
_STRAY = re.compile(rb"\n+|\r+(?=\r)")  # line ends that begin no ping
_HEAD_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """A ping (double CRLF), to be answered with a single CRLF."""


class BrokenStream(MalformedMessage):
    """A stream that cannot be framed any more.

    `whole` is what came before the message that broke it, `head` what there is of that one.
    """

    def __init__(
        self, error: MalformedMessage, whole: "list[bytes | KeepAlive]", head: bytes
    ) -> None:
        super().__init__(error.reason, status=error.status)
        self.whole = whole
        self.head = head


class StreamFramer:
    """Feed it what a connection delivers, in whatever pieces."""

    def __init__(self, *, max_message: int = 65_536) -> None:
        self._buffer = bytearray()
        self._max = max_message
        self._searched = 0  # where the search for the end of the head may go on
        self._total: int | None = None  # of the first message, once its head is there

    @property
    def pending(self) -> bool:
        """Whether a message is begun and not finished."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes | KeepAlive]:
        """What became whole with these bytes.

        Raises BrokenStream when the stream cannot be framed any more: answer and close it.
        """
        self._buffer += data
        whole: list[bytes | KeepAlive] = []
        while self._buffer:
            if self._buffer[0] in b"\r\n":
                if not self._take_blank_lines(whole):
                    break
                continue
            try:
                message = self._take_message()
            except MalformedMessage as error:
                raise BrokenStream(error, whole, bytes(self._buffer[: self._max])) from error
            if message is None:
                break
            whole.append(message)
        return whole

    def _take_blank_lines(self, whole: list[bytes | KeepAlive]) -> bool:
        """Take a ping or a stray line end off the front; False: more bytes decide."""
        if self._buffer.startswith(b"\r\n\r\n"):
            whole.append(KeepAlive())
            del self._buffer[:4]
        elif b"\r\n\r\n".startswith(bytes(self._buffer[:4])):
            return False
        else:
            stray = _STRAY.match(self._buffer)
            del self._buffer[: stray.end() if stray is not None else 1]
        self._searched = 0
        return True

    def _take_message(self) -> bytes | None:
        if self._total is None:
            self._total = self._find_total()
        if self._total is None or len(self._buffer) < self._total:
            return None
        message = bytes(self._buffer[: self._total])
        del self._buffer[: self._total]
        self._searched, self._total = 0, None
        return message

    def _find_total(self) -> int | None:
        """How long the message is; None: its head is not all there."""
        end = _HEAD_END.search(self._buffer, max(0, self._searched - 3))
        if (len(self._buffer) if end is None else end.end()) > self._max:
            raise MalformedMessage("headers beyond the limit", status=513)
        if end is None:
            self._searched = len(self._buffer)
            return None
        length = _LENGTH.search(self._buffer, 0, end.start() + 1)
        # A stream has no other way to tell where a message ends. RFC 3261 §20.14
        total = end.end() + (parse_content_length(_text(length.group(1))) if length else 0)
        if total > self._max:
            raise MalformedMessage("message beyond the limit", status=413)
        return total


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace")
