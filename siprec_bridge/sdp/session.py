"""Session descriptions, from text and to text. RFC 8866; labels RFC 4574; rtcp RFC 3605 and 5761.

Liberal in reading: what a recorder does not need is kept as it came, or passed over.
"""

import re
from dataclasses import dataclass

from siprec_bridge.sdp.codecs import Codec, codec_of, number
from siprec_bridge.sdp.crypto import Secret

DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_TIME = re.compile(r"\d{1,20} \d{1,20}", re.ASCII)
_MAX_LINES = 5000
_MAX_MEDIA = 256
_PAYLOAD_TYPES = {str(one): one for one in range(128)}


class MalformedSdp(Exception):
    """Bytes that are no session description."""


Attribute = tuple[str, str]  # name, and value or ""


@dataclass(frozen=True, slots=True)
class Media:
    """One m-line with its attributes. `connection` is its own or the session's address.

    `protocol` as it came, since an answer has the offer's.
    """

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    connection: str | None = None
    direction: str = "sendrecv"
    attributes: tuple[Attribute, ...] = ()

    def attribute(self, name: str) -> str | None:
        """The value of the first attribute of this name; "" for a flag."""
        return next((value for key, value in self.attributes if key == name), None)

    @property
    def label(self) -> str | None:
        """What the metadata calls this stream. RFC 4574."""
        value = self.attribute("label")
        return value.strip() if value is not None and value.strip() else None

    @property
    def crypto_lines(self) -> tuple[str, ...]:
        """The values of its crypto attributes, in order. RFC 4568."""
        return tuple(value for key, value in self.attributes if key == "crypto")

    @property
    def rtcp_mux(self) -> bool:
        """RTP and RTCP share a port. RFC 5761."""
        return self.attribute("rtcp-mux") is not None

    @property
    def rtcp_port(self) -> int:
        """Where its RTCP is received; 0: nowhere, since there is no port above its RTP's.

        RFC 3605, and RFC 5761 §5.1.1 for one port for both.
        """
        if self.rtcp_mux:
            return self.port  # an a=rtcp beside it is for who knows nothing of that
        first = (self.attribute("rtcp") or "").split()[:1]
        stated = number(first[0], 65536) if first else None
        return stated if stated is not None else (self.port + 1) % 65536

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """The formats that are known payload types, in order of preference."""
        maps = self._by_payload_type("rtpmap")
        params = self._by_payload_type("fmtp")
        # Each once, however often a hostile m-line repeats it.
        types = dict.fromkeys(map(_PAYLOAD_TYPES.get, self.formats))
        codecs = (
            codec_of(one, maps.get(one), params.get(one, "")) for one in types if one is not None
        )
        return tuple(codec for codec in codecs if codec is not None)

    def _by_payload_type(self, name: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for key, value in self.attributes:
            if key != name:
                continue
            text, _, rest = value.strip().partition(" ")
            payload_type = number(text, 128)
            if payload_type is not None:
                found.setdefault(payload_type, rest.strip())
        return found

    def lines(self, connection: str | None = None) -> list[str]:
        """Its lines, direction included, and its connection where it is not this one."""
        out = [f"m={self.kind} {self.port} {self.protocol} {' '.join(self.formats)}"]
        if self.connection is not None and self.connection != connection:
            out.append(f"c=IN {_family(self.connection)} {self.connection}")
        out += [f"a={name}:{value}" if value else f"a={name}" for name, value in self.attributes]
        out.append(f"a={self.direction}")
        return out


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """An SDP body. `origin` and `time` are the texts of the o-line and the t-line."""

    origin: str
    name: str = "-"
    connection: str | None = None
    attributes: tuple[Attribute, ...] = ()
    media: tuple[Media, ...] = ()
    time: str = "0 0"

    def write(self) -> bytes:
        """Its text. Directions and addresses stand in the media, where nothing overrides them."""
        lines = ["v=0", f"o={self.origin}", f"s={self.name}"]
        if self.connection is not None:
            lines.append(f"c=IN {_family(self.connection)} {self.connection}")
        lines.append(f"t={self.time}")
        lines += [f"a={name}:{value}" if value else f"a={name}" for name, value in self.attributes]
        for media in self.media:
            lines += media.lines(self.connection)
        return ("\r\n".join(lines) + "\r\n").encode("utf-8", "surrogateescape")


def parse(data: bytes) -> SessionDescription:
    """Read a session description. Raises MalformedSdp, and nothing else, for any bytes."""
    text = data.decode("utf-8", "surrogateescape")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if len(lines) > _MAX_LINES:
        raise MalformedSdp("too many lines")
    if not any(line.startswith("v=") for line in lines[:2]):
        raise MalformedSdp("no v= line")
    sections: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("m="):
            sections.append([])
        sections[-1].append(line)
    if len(sections) - 1 > _MAX_MEDIA:
        raise MalformedSdp("too many m-lines")
    head = sections[0]
    connection = _connection(head, None)
    attributes, direction = _attributes(head, "sendrecv")
    return SessionDescription(
        origin=_value(head, "o") or "-",
        name=_value(head, "s") or "-",
        connection=connection,
        attributes=attributes,
        media=tuple(_read_media(one, connection, direction) for one in sections[1:]),
        time=time if (time := _value(head, "t")) and _TIME.fullmatch(time) else "0 0",
    )


def _read_media(lines: list[str], connection: str | None, direction: str) -> Media:
    parts = lines[0][2:].split()
    port = parts[1].partition("/")[0] if len(parts) > 1 else ""
    port_number = number(port, 65536)
    if len(parts) < 3 or port_number is None:
        raise MalformedSdp("bad m-line")
    attributes, own_direction = _attributes(lines[1:], direction)
    return Media(
        kind=parts[0].lower(),
        port=port_number,
        protocol=parts[2],
        formats=tuple(parts[3:]),
        connection=_connection(lines, connection),
        direction=own_direction,
        attributes=attributes,
    )


def _attributes(lines: list[str], direction: str) -> tuple[tuple[Attribute, ...], str]:
    """The attributes but for the direction, and the direction."""
    kept: list[Attribute] = []
    for line in lines:
        if not line.startswith("a="):
            continue
        name, _, value = line[2:].partition(":")
        name = name.strip().lower()
        if name in DIRECTIONS and not value:
            direction = name
        elif name:
            text = value.strip()
            kept.append((name, Secret(text) if name == "crypto" else text))
    return tuple(kept), direction


def _connection(lines: list[str], inherited: str | None) -> str | None:
    parts = (_value(lines, "c") or "").split()
    return parts[2].partition("/")[0] if len(parts) >= 3 else inherited


def _value(lines: list[str], kind: str) -> str | None:
    return next((line[2:].strip() for line in lines if line.startswith(f"{kind}=")), None)


def _family(address: str) -> str:
    return "IP6" if ":" in address else "IP4"
