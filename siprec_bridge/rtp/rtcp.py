"""RTCP as a receiver needs it: sender reports and BYE read, receiver reports written. RFC 3550 §6."""

import struct
from dataclasses import dataclass

_SR, _RR, _SDES, _BYE = 200, 201, 202, 203
_CNAME = 1


@dataclass(frozen=True, slots=True)
class SenderReport:
    """A source's own clocks at one moment. `ntp`: seconds since 1900, times 2**32."""

    ssrc: int
    ntp: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Rtcp:
    """What is of use in a compound packet; `byes` are SSRCs."""

    reports: tuple[SenderReport, ...] = ()
    byes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """What we have of a source. RFC 3550 §6.4.1.

    `fraction` lost since the last report, in 256ths; `highest` is extended; `jitter` in ticks;
    `last_report`: middle of the NTP time of its last SR, `delay` since then in 65536ths of a second.
    """

    ssrc: int
    fraction: int
    lost: int
    highest: int
    jitter: int
    last_report: int = 0
    delay: int = 0


def read_rtcp(data: bytes) -> Rtcp | None:
    """Read a compound packet, any bytes; None: it is none. RFC 3550 A.2, leniently."""
    reports: list[SenderReport] = []
    byes: list[int] = []
    at = 0
    while at + 4 <= len(data):
        first, kind, words = struct.unpack_from("!BBH", data, at)
        end = at + 4 + 4 * words
        if first >> 6 != 2 or end > len(data):
            break
        count = first & 0x1F
        if kind == _SR and words >= 6:
            reports.append(SenderReport(*struct.unpack_from("!IQI", data, at + 4)))
        elif kind == _BYE and count <= words:
            byes += struct.unpack_from(f"!{count}I", data, at + 4)
        at = end
    return Rtcp(tuple(reports), tuple(byes)) if at else None


def receiver_report(
    ssrc: int, cname: str, blocks: tuple[ReportBlock, ...] = (), *, bye: bool = False
) -> bytes:
    """A compound packet: RR, SDES with our CNAME, and a BYE at the end. RFC 3550 §6.1."""
    body = b"".join(
        struct.pack(
            "!IIIIII",
            one.ssrc,
            one.fraction << 24 | max(-0x800000, min(one.lost, 0x7FFFFF)) & 0xFFFFFF,
            one.highest & 0xFFFFFFFF,
            one.jitter & 0xFFFFFFFF,
            one.last_report,
            one.delay & 0xFFFFFFFF,
        )
        for one in blocks
    )
    name = cname.encode()
    item = struct.pack("!IBB", ssrc, _CNAME, len(name)) + name
    item += bytes(4 - len(item) % 4)  # at least one zero ends the items
    parts = [_packet(_RR, len(blocks), struct.pack("!I", ssrc) + body), _packet(_SDES, 1, item)]
    if bye:
        parts.append(_packet(_BYE, 1, struct.pack("!I", ssrc)))
    return b"".join(parts)


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("!BBH", 0x80 | count, kind, len(body) // 4) + body
