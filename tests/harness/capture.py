"""Captures made by hand: frames of every link type we read, and the files that hold them."""

import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.rtp import packets, tone
from harness.src import OFFER, multipart, request
from siprec_bridge.receiver.packets import Address

START_S = 1_800_000_000
SRC = Address("192.0.2.10", 5070)
SRS = Address("192.0.2.1", 5060)
SRC_MEDIA = Address("192.0.2.10", 30000)
SRS_TAG = "theirs"
ETHERNET = 1

Timed = tuple[float, bytes]  # seconds from START_S, and a frame


@dataclass(frozen=True)
class Sent:
    """A payload on its way, `at` seconds after START_S."""

    at: float
    source: Address
    destination: Address
    payload: bytes


# Files


def pcap(
    frames: Iterable[Timed], *, link_type: int = ETHERNET, order: str = "<", nano: bool = False
) -> bytes:
    """A classic capture file."""
    magic, unit = (0xA1B23C4D, 10**9) if nano else (0xA1B2C3D4, 10**6)
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)
    for at, data in frames:
        seconds, fraction = divmod(START_S * unit + round(at * unit), unit)
        out += struct.pack(order + "IIII", seconds, fraction, len(data), len(data)) + data
    return out


def pcapng(
    frames: Iterable[tuple[int, float, bytes]],
    interfaces: Sequence[tuple[int, int]],
    *,
    order: str = "<",
) -> bytes:
    """A pcapng file; `interfaces` are link types and powers of ten of a second's fraction."""
    out = _block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    for link_type, power in interfaces:
        option = struct.pack(order + "HHB3xHH", 9, 1, power, 0, 0)
        out += _block(order, 1, struct.pack(order + "HHI", link_type, 0, 262144) + option)
    out += _block(order, 0x0BAD, b"unknown!")
    for number, at, data in frames:
        unit = 10 ** interfaces[number][1]
        units = START_S * unit + round(at * unit)
        head = struct.pack(
            order + "IIIII", number, units >> 32, units & 0xFFFFFFFF, len(data), len(data)
        )
        out += _block(order, 6, head + data + bytes(-len(data) % 4))
    return out


def _block(order: str, kind: int, body: bytes) -> bytes:
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


# Frames


def udp(one: Sent) -> bytes:
    """A UDP datagram, without its IP header."""
    head = struct.pack("!HHHH", one.source.port, one.destination.port, 8 + len(one.payload), 0)
    return head + one.payload


def tcp(source: Address, destination: Address, sequence: int, data: bytes, flags: int) -> bytes:
    """A TCP segment, without its IP header."""
    return (
        struct.pack(
            "!HHIIBBHHH", source.port, destination.port, sequence & 0xFFFFFFFF, 0,
            5 << 4, flags, 65535, 0, 0,
        )
        + data
    )  # fmt: skip


def ip(source: str, destination: str, protocol: int, body: bytes, *, fragment: int = 0) -> bytes:
    """An IP packet of either version; `fragment`: flags and offset as IPv4 has them."""
    one, two = ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed
    if len(one) == 16:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
        return head + one + two + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, fragment, 64, protocol, 0)
    return head + one + two + body


def packet(one: Sent) -> bytes:
    """The IP packet of a datagram."""
    return ip(one.source.host, one.destination.host, 17, udp(one))


def ethernet(data: bytes, *, tags: Sequence[int] = ()) -> bytes:
    """An Ethernet frame around an IP packet, with VLAN tags of these types."""
    kind = 0x0800 if data[0] >> 4 == 4 else 0x86DD
    vlan = b"".join(struct.pack("!HH", tag, 5) for tag in tags)
    return bytes(12) + vlan + struct.pack("!H", kind) + data


def linked(link_type: int, data: bytes) -> bytes:
    """A frame of this link type around an IP packet."""
    kind = 0x0800 if data[0] >> 4 == 4 else 0x86DD
    match link_type:
        case 0:
            return struct.pack("<I", 2 if kind == 0x0800 else 30) + data
        case 108:
            return struct.pack(">I", 2 if kind == 0x0800 else 24) + data
        case 113:
            return struct.pack("!HHH8sH", 0, 1, 6, bytes(8), kind) + data
        case 276:
            return struct.pack("!HHIHBB8s", kind, 0, 1, 1, 0, 6, bytes(8)) + data
        case 1:
            return ethernet(data)
        case _:
            return data


# A call


def answer(
    invite: bytes, sdp: str, *, status: str = "200 OK", tag: str = SRS_TAG, extra: str = ""
) -> bytes:
    """What the captured SRS answered."""
    kept = [
        line + (f";tag={tag}" if line.startswith("To:") and ";tag=" not in line else "")
        for line in invite.decode().partition("\r\n\r\n")[0].split("\r\n")[1:]
        if line.partition(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")
    ]
    head = [f"SIP/2.0 {status}", *kept, "Contact: <sip:srs@192.0.2.1>;+sip.srs"]
    if extra:
        head.append(extra)
    if sdp:
        head.append("Content-Type: application/sdp")
    return "\r\n".join([*head, f"Content-Length: {len(sdp)}", "", sdp]).encode()


def srs_sdp(*lines: str, host: str = SRS.host) -> str:
    """The captured SRS's SDP with these m-lines, such as "40000 RTP/AVP 0"."""
    head = f"v=0\r\no=- 1 1 IN IP4 {host}\r\ns=-\r\nc=IN IP4 {host}\r\nt=0 0\r\n"
    return head + "".join(f"m=audio {line}\r\na=recvonly\r\n" for line in lines)


def signalling(
    *, offer: str = OFFER, sdp: str | None = None, bye: float | None = 2.5, call_id: str = "call-1"
) -> list[Sent]:
    """INVITE, 200, ACK, BYE and its 200."""
    invite = request("INVITE", body=multipart(sdp=offer), call_id=call_id)
    ack = request("ACK", to_tag=SRS_TAG, branch="z9hG4bK2", call_id=call_id)
    end = request("BYE", number=2, to_tag=SRS_TAG, branch="z9hG4bK3", call_id=call_id)
    theirs = srs_sdp("40000 RTP/AVP 0", "40002 RTP/AVP 8") if sdp is None else sdp
    call = [
        Sent(0.0, SRC, SRS, invite),
        Sent(0.1, SRS, SRC, answer(invite, theirs)),
        Sent(0.2, SRC, SRS, ack),
    ]
    if bye is not None:
        call += [Sent(bye, SRC, SRS, end), Sent(bye + 0.1, SRS, SRC, answer(end, ""))]
    return call


def voices(seconds: float = 2.0, host: str = SRS.host) -> list[Sent]:
    """440 Hz in PCMU to port 40000, 880 Hz in PCMA to port 40002."""
    return [
        Sent(0.3 + 0.02 * number, SRC_MEDIA, Address(host, port), data)
        for frequency, codec, port in ((440, "PCMU", 40000), (880, "PCMA", 40002))
        for number, data in enumerate(packets(tone(frequency, seconds), codec=codec))
    ]


def call(**options: object) -> list[Sent]:
    """A whole call in order of time."""
    return in_order([*signalling(**options), *voices()])  # type: ignore[arg-type]


def in_order(sent: Iterable[Sent]) -> list[Sent]:
    """By time."""
    return sorted(sent, key=lambda one: one.at)


def frames(sent: Iterable[Sent], link_type: int = ETHERNET) -> list[Timed]:
    """As datagrams over UDP."""
    return [(one.at, linked(link_type, packet(one))) for one in sent]
