"""Captured messages as the machine needs them: with our tags, and as if its peer agreed."""

import re

from siprec_bridge.sip import Headers, Request, Response

_TO = re.compile(rb"^(?:to|t)[ \t]*:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.I | re.M)
_TIMER = re.compile(rb"^(?:session-expires|x)[ \t]*:[ \t]*(\d{1,9})[^\r\n]*\r?\n", re.I | re.M)
_LEAST_TIMER_S = 90  # below it we answer 422
_HEAD_END = re.compile(rb"\r?\n\r?\n")


def with_to_tag(data: bytes, tag: str) -> bytes:
    """The message with our tag in place of the captured SRS's. The To may have none (CANCEL)."""
    end = _HEAD_END.search(data)
    to = _TO.search(data, 0, end.start() if end is not None else len(data))
    if to is None:
        return data
    ours = re.sub(
        rb"(;\s*tag\s*=\s*)[^;\s]+",
        lambda found: found.group(1) + tag.encode(),
        to.group(),
        flags=re.I,
    )
    return data[: to.start()] + ours + data[to.end() :]


def without_timer(data: bytes) -> bytes:
    """The message without a session timer that we would take: nobody would refresh it here."""
    end = _HEAD_END.search(data)
    found = _TIMER.search(data, 0, end.start() + 2 if end is not None else len(data))
    if found is None or int(found.group(1)) < _LEAST_TIMER_S:
        return data
    return data[: found.start()] + data[found.end() :]


def agreement(request: Request) -> Response:
    """The 200 of a peer that agrees to what we ask of it."""
    headers = Headers()
    for name in ("Via", "From", "To", "Call-ID", "CSeq"):
        for value in request.headers.get_all(name):
            headers.add(name, value)
    return Response(200, "OK", headers)
