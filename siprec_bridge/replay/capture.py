"""Capture files, frame by frame: classic pcap (draft-ietf-opsawg-pcap) and pcapng.

Own code, since a file with several interfaces has a link type and a clock for each, and a length
in a damaged file must not decide how much memory is taken.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from siprec_bridge.receiver.packets import Frame

_PCAP = {  # magic as it stands in the file: byte order, nanoseconds per unit of the fraction
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_PACKET_BLOCKS = (_OLD_PACKET, _SIMPLE_PACKET, _PACKET)
_ORDER_MAGIC = 0x1A2B3C4D
_TIME_RESOLUTION, _TIME_OFFSET = 9, 14  # options of an interface
_LONGEST_FRAME = 1 << 18  # what libpcap itself takes for the largest snap length
_LONGEST_BLOCK = 1 << 20
_MOST_INTERFACES = 1 << 16
_LAST_NS = (1 << 63) - 1  # what a spool and an int64 can hold


class UnreadableCapture(Exception):
    """A file that is no capture, or that cannot be read at all."""


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    snap_length: int
    units_per_second: int
    offset_s: int

    def to_ns(self, units: int) -> int:
        at = units * 1_000_000_000 // self.units_per_second + self.offset_s * 1_000_000_000
        return min(max(at, 0), _LAST_NS)


class _Damaged(Exception):
    pass


class Capture:
    """The frames of a file, in its order and in constant memory; can be gone through again.

    A file that ends in the middle of a frame, or is damaged, is read up to there and `damage`
    says so.
    """

    def __init__(self, path: Path) -> None:
        """Raises UnreadableCapture."""
        self._path = path
        self.damage: str | None = None
        self.frames = 0
        try:
            with path.open("rb") as file:
                start = file.read(4)
                self._is_pcapng = start == struct.pack(">I", _SECTION)
                if start not in _PCAP and not self._is_pcapng:
                    raise UnreadableCapture(f"{path} is no capture: {_guess(start)}")
                if len(start + file.read(20)) < 24:
                    raise UnreadableCapture(f"{path} ends within its header")
        except OSError as error:
            raise UnreadableCapture(f"{path}: {error.strerror}") from error

    def __iter__(self) -> Iterator[Frame]:
        self.damage, self.frames = None, 0
        try:
            with self._path.open("rb") as file:
                for frame in _pcapng(file) if self._is_pcapng else _pcap(file):
                    self.frames += 1
                    yield frame
        except _Damaged as error:
            self.damage = f"{error} after frame {self.frames}; what follows is not read"
        except OSError as error:
            raise UnreadableCapture(f"{self._path}: {error.strerror}") from error


def _guess(start: bytes) -> str:
    if start[:2] == b"\x1f\x8b":
        return "it is compressed with gzip, unpack it first"
    if start == b"\x28\xb5\x2f\xfd":
        return "it is compressed with zstd, unpack it first"
    return "neither pcap nor pcapng" if start else "the file is empty"


def _pcap(file: BinaryIO) -> Iterator[Frame]:
    head = file.read(24)
    order, unit_ns = _PCAP[head[:4]]
    link_type = struct.unpack(order + "I", head[20:24])[0] & 0xFFFF  # above: length of the FCS
    record = struct.Struct(order + "IIII")
    while head := file.read(record.size):
        if len(head) < record.size:
            raise _Damaged("the file ends within a frame")
        seconds, fraction, length, _ = record.unpack(head)
        if length > _LONGEST_FRAME:
            raise _Damaged(f"a frame of {length} octets cannot be")
        at = seconds * 1_000_000_000 + fraction * unit_ns
        yield Frame(at, link_type, _exactly(file, length))


def _pcapng(file: BinaryIO) -> Iterator[Frame]:
    order = "<"
    interfaces: list[_Interface] = []
    at = 0
    while head := file.read(8):
        if len(head) < 8:
            raise _Damaged("the file ends within a block")
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            magic = _exactly(file, 4)
            order = "<" if struct.unpack("<I", magic)[0] == _ORDER_MAGIC else ">"
            if struct.unpack(order + "I", magic)[0] != _ORDER_MAGIC:
                raise _Damaged("a section has no byte order")
            interfaces = []
            _skip(file, _size(head, order, 16) - 12)
            continue
        kind = struct.unpack(order + "I", head[:4])[0]
        size = _size(head, order, 12)
        if kind not in (_INTERFACE, *_PACKET_BLOCKS):
            _skip(file, size - 8)
            continue
        if size > _LONGEST_BLOCK:
            raise _Damaged(f"a block of {size} octets cannot be")
        body = _exactly(file, size - 8)[:-4]
        if kind == _INTERFACE:
            if len(interfaces) >= _MOST_INTERFACES:
                raise _Damaged("too many interfaces")
            interfaces.append(_interface(body, order))
            continue
        frame = _packet(kind, body, order, interfaces, at)
        at = frame.at_ns
        yield frame


def _packet(kind: int, body: bytes, order: str, interfaces: list[_Interface], at: int) -> Frame:
    """A packet block's frame; `at`: the time of the one before, for a block that has none."""
    try:
        if kind == _SIMPLE_PACKET:
            number, start = 0, 4
            length = struct.unpack_from(order + "I", body)[0]
            limit = interfaces[0].snap_length if interfaces else 0
            length = min(length, limit or length, len(body) - start)
            units = None
        elif kind == _PACKET:
            number, high, low, length, _ = struct.unpack_from(order + "IIIII", body)
            start, units = 20, high << 32 | low
        else:
            number, _, high, low, length, _ = struct.unpack_from(order + "HHIIII", body)
            start, units = 20, high << 32 | low
    except struct.error as error:
        raise _Damaged("a packet block is too short") from error
    if number >= len(interfaces) or start + length > len(body):
        raise _Damaged("a packet block contradicts itself")
    interface = interfaces[number]
    time = at if units is None else interface.to_ns(units)
    return Frame(time, interface.link_type, body[start : start + length])


def _interface(body: bytes, order: str) -> _Interface:
    if len(body) < 8:
        raise _Damaged("an interface block is too short")
    link_type, _, snap_length = struct.unpack_from(order + "HHI", body)
    units, offset, at = 1_000_000, 0, 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + length]
        if code == 0:
            break
        if code == _TIME_RESOLUTION and len(value) == 1:
            exponent = value[0] & 0x7F
            units = 2**exponent if value[0] & 0x80 else 10**exponent
        elif code == _TIME_OFFSET and len(value) == 8:
            offset = struct.unpack(order + "q", value)[0]
        at += 4 + length + -length % 4
    return _Interface(link_type, snap_length, units, offset)


def _size(head: bytes, order: str, least: int) -> int:
    size: int = struct.unpack(order + "I", head[4:8])[0]
    if size < least or size % 4:
        raise _Damaged(f"a block of {size} octets cannot be")
    return size


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Damaged("the file ends within a frame")
    return data


def _skip(file: BinaryIO, count: int) -> None:
    while count > 0:
        count -= len(_exactly(file, min(count, _LONGEST_BLOCK)))
