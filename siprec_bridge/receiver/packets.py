"""From frames to datagrams and TCP segments: link layers, IPv4 with fragments, IPv6, UDP, TCP.

RFC 791, RFC 8200, RFC 768, RFC 9293; link types as in the registry of tcpdump.org.
"""

import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

_VLAN_TAGS = (0x8100, 0x88A8, 0x9100, 0x9200)
_IPV4, _IPV6 = 0x0800, 0x86DD
_NULL, _ETHERNET, _LOOP, _SLL, _SLL2 = 0, 1, 108, 113, 276
_RAW = (12, 14, 101, 228, 229)
_TCP, _UDP = 6, 17
_FRAGMENT, _AUTHENTICATION = 44, 51
_OPTIONS = (0, 43, 60)  # hop-by-hop, routing, destination
_MOST_REASSEMBLIES = 1024
_LONGEST_DATAGRAM = 65_535
_MOST_HELD = 16 << 20  # octets of all pieces
_MOST_PIECES = 128  # of a datagram: the longest in those of 576 octets. RFC 791
_FRAGMENT_LIFE_NS = 30_000_000_000

CUT = "packets that the capture cut short (capture with tcpdump -s 0)"
_INCOMPLETE = "fragments whose datagram is not complete"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as captured. `at_ns`: since 1970, UTC; `link_type` as in the LINKTYPE registry."""

    at_ns: int
    link_type: int
    data: bytes


class Address(NamedTuple):
    """An IP literal and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram."""

    at_ns: int
    source: Address
    destination: Address
    payload: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment. `sequence` is that of its first octet, SYN not counted as one."""

    at_ns: int
    source: Address
    destination: Address
    sequence: int
    syn: bool
    over: bool  # FIN or RST
    payload: bytes


@dataclass(slots=True)
class _Pieces:
    since_ns: int
    pieces: dict[int, bytes] = field(default_factory=dict)  # by offset
    total: int | None = None
    held: int = 0  # octets

    def whole(self) -> bytes | None:
        if self.total is None:
            return None
        out = bytearray()
        for offset in sorted(self.pieces):
            if offset > len(out):
                return None
            out += self.pieces[offset][len(out) - offset :]
        return bytes(out[: self.total]) if len(out) >= self.total else None


class Dissector:
    """Takes frames apart. `ignored` counts what it could make nothing of, by description."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self._fragments: dict[tuple[object, ...], _Pieces] = {}  # oldest first
        self._held = 0  # octets of these

    def feed(self, frame: Frame) -> Datagram | Segment | None:
        """The datagram or segment that became whole with this frame. Raises nothing."""
        try:
            return self._link(frame)
        except (struct.error, IndexError):
            self.ignored[CUT] += 1
            return None

    def finish(self) -> None:
        """Count what is still incomplete."""
        while self._fragments:
            self._give_up()

    def _link(self, frame: Frame) -> Datagram | Segment | None:
        data = frame.data
        kind = frame.link_type
        if kind == _ETHERNET:
            protocol, at = _number(data, 12), 14
        elif kind == _SLL:
            protocol, at = _number(data, 14), 16
        elif kind == _SLL2:
            protocol, at = _number(data, 0), 20
        elif kind in (_NULL, _LOOP):
            protocol, at = _by_version(data, 4), 4  # its own family number depends on the system
        elif kind in _RAW:
            protocol, at = _by_version(data, 0), 0
        else:
            self.ignored[f"frames of link type {kind}, which is not read"] += 1
            return None
        while protocol in _VLAN_TAGS:
            protocol, at = _number(data, at + 2), at + 4
        if protocol == _IPV4:
            return self._ipv4(frame.at_ns, data, at)
        if protocol == _IPV6:
            return self._ipv6(frame.at_ns, data, at)
        self.ignored["frames that are not IP"] += 1
        return None

    def _ipv4(self, at_ns: int, data: bytes, at: int) -> Datagram | Segment | None:
        first, _, total, ident, fragment, _, protocol, _, source, destination = struct.unpack_from(
            "!BBHHHBBH4s4s", data, at
        )
        header = 4 * (first & 0x0F)
        if first >> 4 != 4 or header < 20:
            self.ignored["frames that are not IP"] += 1
            return None
        # The kernel's offloading leaves the length at 0 in what it captures before sending.
        end = at + total if total else len(data)
        body, whole = data[at + header : end], end <= len(data)
        if not fragment & 0x3FFF:
            return self._transport(at_ns, protocol, source, destination, body)
        if not whole:
            self.ignored[CUT] += 1
            return None
        joined = self._join(
            at_ns, (source, destination, protocol, ident),
            8 * (fragment & 0x1FFF), bool(fragment & 0x2000), body,
        )  # fmt: skip
        if joined is None:
            return None
        return self._transport(at_ns, protocol, source, destination, joined)

    def _ipv6(self, at_ns: int, data: bytes, at: int) -> Datagram | Segment | None:
        first, length, protocol, _, source, destination = struct.unpack_from(
            "!IHBB16s16s", data, at
        )
        if first >> 28 != 6:
            self.ignored["frames that are not IP"] += 1
            return None
        end = at + 40 + length if length else len(data)
        body, whole = data[at + 40 : end], end <= len(data)
        while protocol in (*_OPTIONS, _FRAGMENT, _AUTHENTICATION):
            if protocol == _FRAGMENT:
                following, _, offset, ident = struct.unpack_from("!BBHI", body)
                body = body[8:]
                if offset & 0xFFF9:
                    if not whole:
                        self.ignored[CUT] += 1
                        return None
                    joined = self._join(
                        at_ns, (source, destination, ident), offset & 0xFFF8, bool(offset & 1), body
                    )
                    if joined is None:
                        return None
                    body = joined
            else:
                following, size = body[0], body[1]
                body = body[4 * (size + 2) if protocol == _AUTHENTICATION else 8 * (size + 1) :]
            protocol = following
        return self._transport(at_ns, protocol, source, destination, body)

    def _join(
        self, at_ns: int, key: tuple[object, ...], offset: int, more: bool, body: bytes
    ) -> bytes | None:
        """The datagram, once its last fragment came."""
        while self._fragments:
            oldest = next(iter(self._fragments.values()))
            crowded = len(self._fragments) >= _MOST_REASSEMBLIES
            crowded |= self._held + len(body) > _MOST_HELD
            if not crowded and at_ns - oldest.since_ns < _FRAGMENT_LIFE_NS:
                break
            self._give_up()
        if offset + len(body) > _LONGEST_DATAGRAM:
            self.ignored[_INCOMPLETE] += 1
            return None
        known = self._fragments.setdefault(key, _Pieces(at_ns))
        if len(known.pieces) >= _MOST_PIECES:  # to look through more each time takes too long
            self.ignored[_INCOMPLETE] += 1
            return None
        if offset not in known.pieces:
            known.pieces[offset] = body
            known.held += len(body)
            self._held += len(body)
        if not more:
            known.total = offset + len(body)
        joined = known.whole()
        if joined is not None:
            self._held -= self._fragments.pop(key).held
        return joined

    def _give_up(self) -> None:
        key = next(iter(self._fragments))
        given_up = self._fragments.pop(key)
        self._held -= given_up.held
        self.ignored[_INCOMPLETE] += len(given_up.pieces)

    def _transport(
        self, at_ns: int, protocol: int, source: bytes, destination: bytes, body: bytes
    ) -> Datagram | Segment | None:
        if protocol == _UDP:
            from_port, to_port, length = struct.unpack_from("!HHH", body)
            if length > len(body):
                self.ignored[CUT] += 1
                return None
            return Datagram(
                at_ns,
                Address(_host(source), from_port),
                Address(_host(destination), to_port),
                body[8 : length or len(body)],
            )
        if protocol == _TCP:
            from_port, to_port, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", body)
            syn = bool(flags & 0x02)
            return Segment(
                at_ns,
                Address(_host(source), from_port),
                Address(_host(destination), to_port),
                (sequence + syn) & 0xFFFFFFFF,
                syn,
                bool(flags & 0x05),
                body[max(20, 4 * (offset >> 4)) :],
            )
        self.ignored["IP packets that are neither UDP nor TCP"] += 1
        return None


@lru_cache(maxsize=65_536)
def _host(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _number(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _by_version(data: bytes, at: int) -> int:
    return {4: _IPV4, 6: _IPV6}.get(data[at] >> 4, 0)
