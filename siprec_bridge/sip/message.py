"""Requests and responses, from bytes and to bytes. RFC 3261 §7.

Liberal in reading: bare LF, folded lines, blank lines ahead, spaces before the colon. What a
response echoes (Via, From, To, Call-ID, CSeq) is echoed as it came.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from siprec_bridge.sip.errors import MalformedMessage
from siprec_bridge.sip.headers import (
    CSeq,
    Headers,
    NameAddr,
    Via,
    parse_cseq,
    parse_name_addr,
    parse_via,
    readable,
    split_first,
)

_TOKEN = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+")
_USUAL = {
    "Via", "From", "To", "Call-ID", "CSeq", "Contact", "Max-Forwards", "Content-Type",
    "Content-Length", "Allow", "Supported", "Require", "Accept", "User-Agent", "Record-Route",
    "Session-Expires", "Min-SE", "Date", "Expires", "Route",
}  # fmt: skip  # tokens, as one sees at a glance
_BLANKS = (" ", "\t")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_MAX_HEADERS = 500
_MAX_LINES = 2000  # of the head, folded ones and such that are no headers included
_MAX_VALUES = 500
_LISTS = ("Via", "Record-Route", "Contact", "Require", "Supported")  # those that we take apart

REASONS = {
    100: "Trying",
    180: "Ringing",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    416: "Unsupported URI Scheme",
    420: "Bad Extension",
    421: "Extension Required",
    422: "Session Interval Too Small",
    481: "Call/Transaction Does Not Exist",
    482: "Loop Detected",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    491: "Request Pending",
    500: "Server Internal Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "Version Not Supported",
    513: "Message Too Large",
}


class _Typed:
    """The headers that both kinds of messages have, read when asked for.

    Each raises MalformedMessage; `parse` has seen to it that none does.
    """

    headers: Headers

    @cached_property
    def call_id(self) -> str:
        """The Call-ID."""
        return _needed(self.headers, "Call-ID").strip()

    @cached_property
    def cseq(self) -> CSeq:
        """The CSeq: of a response, that of the request which it answers."""
        return parse_cseq(_needed(self.headers, "CSeq"))

    @cached_property
    def from_(self) -> NameAddr:
        """The From."""
        return parse_name_addr(_needed(self.headers, "From"))

    @cached_property
    def to(self) -> NameAddr:
        """The To."""
        return parse_name_addr(_needed(self.headers, "To"))

    @cached_property
    def via(self) -> Via:
        """The topmost Via: the hop that sent a request to us, or our own in a response."""
        return parse_via(split_first(_needed(self.headers, "Via"))[0])

    @property
    def content_type(self) -> str | None:
        """The Content-Type as it came."""
        return self.headers.get("Content-Type")


@dataclass(eq=False)
class Request(_Typed):
    """A SIP request."""

    method: str
    uri: str
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""


@dataclass(eq=False)
class Response(_Typed):
    """A SIP response."""

    status: int
    reason: str
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""


def parse(data: bytes) -> Request | Response:
    """Read one whole message.

    Raises MalformedMessage, with the request as far as an answer needs it where there is one.
    """
    data = data.lstrip(b"\r\n")
    end = _HEAD_END.search(data)
    head, body = (data, b"") if end is None else (data[: end.start()], data[end.end() :])
    lines = head.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n")
    start, headers = lines[0].strip(), _read_headers(lines[1:_MAX_LINES])
    if start[:4].upper() == "SIP/":
        response = _read_response(start, headers)
        response.body = _cut(headers, body)
        _ = response.cseq, response.via, response.call_id  # each raises when it is broken
        return response
    request = _read_request(start, headers)
    try:
        if len(lines) > _MAX_LINES or len(headers) > _MAX_HEADERS:
            raise MalformedMessage("too many headers")
        _check(request)
        request.body = _cut(headers, body)
        if end is None:
            raise MalformedMessage("no empty line after the headers")
    except MalformedMessage as error:
        if error.request is None and _answerable(request):
            error.request = request
        raise
    return request


def serialize(message: Request | Response) -> bytes:
    """Write a message; Content-Length is set from the body."""
    if isinstance(message, Request):
        lines = [f"{message.method} {message.uri} SIP/2.0"]
    else:
        lines = [f"SIP/2.0 {message.status} {message.reason}"]
    lines += [
        f"{name}: {value}"
        for name, value in message.headers
        if name.lower() not in ("content-length", "l")
    ]
    lines += [f"Content-Length: {len(message.body)}", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + message.body


def _read_headers(lines: list[str]) -> Headers:
    fields: list[tuple[str, str]] = []
    folded: dict[int, list[str]] = {}  # by position: the lines that go on
    header = False
    for line in lines:
        if header and line[:1] in _BLANKS:
            folded.setdefault(len(fields) - 1, []).append(line.strip())
            continue
        name, colon, value = line.partition(":")
        name = name.strip()
        # A line that is no header does not make the others useless.
        header = bool(colon) and (name in _USUAL or _TOKEN.fullmatch(name) is not None)
        if header:
            fields.append((name, value.strip()))
            if len(fields) > _MAX_HEADERS:
                break  # the caller refuses the message; its answer needs some of them
    for position, more in folded.items():
        name, value = fields[position]
        fields[position] = (name, " ".join(filter(None, [value, *more])))
    return Headers(fields)


def _read_response(start: str, headers: Headers) -> Response:
    version, _, rest = start.partition(" ")
    status, _, reason = rest.strip().partition(" ")
    good = len(status) == 3 and status.isascii() and status.isdecimal()
    if version.upper() != "SIP/2.0" or not good or not 100 <= int(status) <= 699:
        raise MalformedMessage("bad status line")
    return Response(int(status), reason.strip(), headers)


def _read_request(start: str, headers: Headers) -> Request:
    method, _, rest = start.partition(" ")
    uri, _, version = rest.strip().rpartition(" ")
    request = Request(method, uri.strip(), headers)
    if not _TOKEN.fullmatch(method) or not version[:4].upper() == "SIP/":
        raise MalformedMessage("bad request line")
    answer = request if _answerable(request) else None
    if version.upper() != "SIP/2.0":
        raise MalformedMessage("Version Not Supported", status=505, request=answer)
    if not uri or any(char.isspace() for char in uri.strip()) or uri.strip().startswith("<"):
        raise MalformedMessage("bad Request-URI", request=answer)
    return request


def _check(request: Request) -> None:
    """Raise for a request that lacks what every request has. RFC 3261 §8.1.1."""
    # Of all headers first: of one it is asked where so many commas are.
    commas = sum(value.count(",") for _, value in request.headers)
    for name in _LISTS if commas > _MAX_VALUES else ():
        if sum(value.count(",") for value in request.headers.get_all(name)) > _MAX_VALUES:
            raise MalformedMessage(f"too many values in {name}")
    _ = request.via, request.from_, request.to
    if not request.call_id:
        raise MalformedMessage("no Call-ID")
    if readable(request.call_id) != request.call_id:  # it names the call in logs, rows and events
        raise MalformedMessage("bad Call-ID")
    # Some SRCs write their INVITE's method into the CSeq of the BYE: a call that hangs up is over.
    if request.cseq.method != request.method and request.method != "BYE":
        raise MalformedMessage("CSeq names another method")


def _answerable(request: Request) -> bool:
    try:
        _ = request.via, request.call_id
    except MalformedMessage:
        return False
    return all(name in request.headers for name in ("From", "To", "CSeq"))


def _cut(headers: Headers, body: bytes) -> bytes:
    """The body by its Content-Length; bytes after it belong to nobody. RFC 3261 §18.3."""
    text = headers.get("Content-Length")
    if text is None:
        return body
    length = parse_content_length(text)
    if length > len(body):
        raise MalformedMessage("body shorter than its Content-Length")
    return body[:length]


def parse_content_length(text: str) -> int:
    """Raises MalformedMessage."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise MalformedMessage("bad Content-Length")
    return int(text)


def _needed(headers: Headers, name: str) -> str:
    value = headers.get(name)
    if value is None:
        raise MalformedMessage(f"no {name}")
    return value
