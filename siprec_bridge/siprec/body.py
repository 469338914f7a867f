"""The body of an INVITE, re-INVITE or UPDATE: SDP, metadata and what else is in it.

RFC 2046 §5.1, RFC 5621, RFC 7866 §9.1. The parts may come in any order.
"""

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from siprec_bridge.sip import MalformedMessage, Refused, split_params

SDP_TYPE = "application/sdp"
METADATA_TYPES = ("application/rs-metadata+xml", "application/rs-metadata")
ACCEPT = (SDP_TYPE, *METADATA_TYPES, "multipart/mixed")
_METADATA_DISPOSITION = "recording-session"
_ANY_XML = ("", "application/xml", "text/xml")
_MAX_PARTS = 50
_MAX_DEPTH = 4  # of multipart parts in one another
_LF = 0x0A
_MAX_PART_HEAD = 8192


@dataclass(frozen=True, slots=True)
class Part:
    """A part of no known kind, kept as it came. `content_type` in lower case, no parameters."""

    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries. `warnings` tell what was odd about it."""

    sdp: bytes | None = None
    metadata: bytes | None = None
    others: tuple[Part, ...] = ()
    warnings: tuple[str, ...] = ()


def parse_body(content_type: str | None, encoding: str | None, content: bytes) -> Body:
    """Take a body apart.

    Raises Refused: 415 for a type or encoding that we cannot read, 400 for a multipart body
    without a boundary or with too many parts.
    """
    if not content.strip():
        return Body()
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise Refused(415, "Unsupported Media Type", (("Accept-Encoding", "identity"),))
    kind, params = _value(content_type or "")
    kind = kind.lower()
    if kind == SDP_TYPE:
        return Body(sdp=content)
    if kind in METADATA_TYPES:
        return Body(metadata=content)
    if not kind.startswith("multipart/"):
        raise Refused(415, "Unsupported Media Type", (("Accept", ", ".join(ACCEPT)),))
    found = _Found()
    _read_parts(content, params, found, _MAX_DEPTH)
    return Body(found.sdp, found.metadata, tuple(found.others), tuple(found.warnings))


@dataclass(slots=True)
class _Found:
    """What the parts have come to so far."""

    parts: int = 0
    sdp: bytes | None = None
    metadata: bytes | None = None
    others: list[Part] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _split(content: bytes, boundary: bytes) -> list[bytes]:
    """The parts between the delimiter lines; one that is not closed ends with the body."""
    delimiter = b"--" + boundary
    parts: list[bytes] = []
    start: int | None = None
    at = content.find(delimiter)
    while at >= 0:
        after = at + len(delimiter)
        line_end = content.find(b"\n", after)
        rest = content[after : line_end if line_end >= 0 else len(content)].rstrip(b" \t\r")
        if (at and content[at - 1] != _LF) or rest not in (b"", b"--"):
            at = content.find(delimiter, after)  # text that looks like it
            continue
        if start is not None:
            end = at - 2 if content[at - 2 : at] == b"\r\n" else at - 1
            parts.append(content[start : max(start, end)])
            start = None
        if rest:
            return parts
        if len(parts) >= _MAX_PARTS:
            raise Refused(400, "Too Many Body Parts")
        start = after
        at = content.find(delimiter, after)
    if start is not None:
        parts.append(content[start:])
    return parts


def _read_parts(content: bytes, params: Mapping[str, str], found: _Found, depth: int) -> None:
    """Read the parts of a multipart body, and of those among them. RFC 5621 §3."""
    boundary = params.get("boundary", "")
    if not boundary and depth == _MAX_DEPTH:
        raise Refused(400, "Multipart Without Boundary")
    if not boundary:
        found.warnings.append("nested multipart part without boundary ignored")
        return
    parts = _split(content, boundary.encode("utf-8", "surrogateescape"))
    found.parts += len(parts)
    if found.parts > _MAX_PARTS:
        raise Refused(400, "Too Many Body Parts")
    if not parts:
        found.warnings.append("multipart body without parts")
    for part in parts:
        # The line end of the delimiter comes first; after it headers, perhaps none.
        part = re.sub(rb"\A[ \t]*\r?\n", b"", part)
        if part.startswith((b"\r\n", b"\n")):
            head, content = b"", part.lstrip(b"\r\n")
        else:
            head, _, content = _partition_head(part)
        content = _decoded(content, head, found.warnings)
        kind, inner = _part_header(head, "content-type", "c")
        kind = kind.lower()
        disposition, params = _part_header(head, "content-disposition")
        # Where the type says XML only, the disposition tells that it is metadata.
        named = kind in _ANY_XML and disposition.lower() == _METADATA_DISPOSITION
        if kind == SDP_TYPE and found.sdp is None:
            found.sdp = content
        elif (kind in METADATA_TYPES or named) and found.metadata is None:
            found.metadata = content
        elif kind.startswith("multipart/") and depth > 1:
            _read_parts(content, inner, found, depth - 1)
        elif params.get("handling", "").lower() == "required":
            # RFC 3261 §20.11: who cannot handle such a part has to refuse the whole.
            raise Refused(415, "Unsupported Media Type", (("Accept", ", ".join(ACCEPT)),))
        elif kind.startswith("multipart/"):
            found.warnings.append("multipart parts nested too deeply ignored")
        else:
            found.others.append(Part(kind, content))


def _decoded(content: bytes, head: bytes, warnings: list[str]) -> bytes:
    """A part's content, which gateways from mail's world still encode for transfer. RFC 2045 §6."""
    encoding = _part_header(head, "content-transfer-encoding")[0].lower()
    try:
        if encoding == "base64":
            return binascii.a2b_base64(b"".join(content.split()), strict_mode=True)
    except binascii.Error:
        warnings.append("a part is not base64 as it says")
    return binascii.a2b_qp(content) if encoding == "quoted-printable" else content


def _partition_head(part: bytes) -> tuple[bytes, bytes, bytes]:
    found = re.search(rb"\r?\n\r?\n", part)
    if found is None:
        return part, b"", b""
    return part[: found.start()], found.group(), part[found.end() :]


def _part_header(head: bytes, *names: str) -> tuple[str, dict[str, str]]:
    """The value of a part's header and its parameters; empty where it has none."""
    # What has no empty line is all head: not more of it than headers need.
    text = re.sub(r"\r?\n[ \t]+", " ", head[:_MAX_PART_HEAD].decode("utf-8", "replace"))
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in names:
            return _value(value)
    return "", {}


def _value(text: str) -> tuple[str, dict[str, str]]:
    try:
        return split_params(text)
    except MalformedMessage as error:
        raise Refused(400, f"Bad Content-Type ({error})") from error
