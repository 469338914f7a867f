"""SIP messages and other datagrams of a capture, in order. SIP is found by content, not by port."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from siprec_bridge.receiver.packets import Address, Datagram, Dissector, Segment
from siprec_bridge.replay.capture import Capture
from siprec_bridge.sip import KeepAlive, MalformedMessage, StreamFramer

_SIP = re.compile(rb"SIP/2\.0 |[A-Z]{2,20} <?(?:sips?|tel|urn):", re.I)
_MOST_CONNECTIONS = 10_000
_LARGEST_HOLE = 1 << 18  # octets kept behind a hole before it is given up
_MOST_WAITING = 256  # segments
_HOLE = "holes in SIP over TCP"
_NOT_SIP = "TCP segments that are not SIP"
_ENCRYPTED = "TLS streams, one way each (SIP in them cannot be read)"


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A SIP message as it was on the wire. `flow` is one for each TCP connection, 0 for UDP."""

    at_ns: int
    transport: str
    source: Address
    destination: Address
    data: bytes
    flow: int = 0


class Traffic:
    """What a capture carries. Can be gone through again; `ignored` is of the latest time."""

    def __init__(self, path: Path) -> None:
        """Raises UnreadableCapture, as iterating does."""
        self.path = path
        self.capture = Capture(path)
        self.ignored: Counter[str] = Counter()
        self.first_ns: int | None = None
        self.last_ns = 0

    def __iter__(self) -> Iterator[WireMessage | Datagram]:
        dissector = Dissector()
        streams = _Streams(dissector.ignored)
        self.ignored = dissector.ignored
        self.first_ns, self.last_ns = None, 0
        for frame in self.capture:
            if self.first_ns is None:
                self.first_ns = frame.at_ns
            self.last_ns = max(self.last_ns, frame.at_ns)
            match dissector.feed(frame):
                case Datagram() as one if _SIP.match(one.payload):
                    yield WireMessage(one.at_ns, "udp", one.source, one.destination, one.payload)
                case Datagram() as one:
                    yield one
                case Segment() as one:
                    yield from streams.feed(one)
                case None:
                    pass
        dissector.finish()
        yield from streams.finish()


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection."""

    source: Address
    destination: Address
    flow: int
    expected: int | None = None  # the next octet's sequence number; None: wait for a message
    begun: bool = False  # a message was found in it
    foreign: bool = False
    framer: StreamFramer = field(default_factory=StreamFramer)
    waiting: dict[int, bytes] = field(default_factory=dict)  # behind a hole, by sequence number
    held: int = 0


class _Streams:
    def __init__(self, ignored: Counter[str]) -> None:
        self._ignored = ignored
        self._streams: OrderedDict[tuple[Address, Address], _Stream] = OrderedDict()
        self._flows = 0
        self._at_ns = 0

    def feed(self, segment: Segment) -> Iterator[WireMessage]:
        """The messages that became whole."""
        self._at_ns = segment.at_ns
        key = (segment.source, segment.destination)
        stream = self._streams.get(key)
        if stream is None or (segment.syn and stream.begun):
            if stream is not None:
                yield from self._flush(stream)
            stream = self._new(segment)
        if segment.syn and not stream.begun:
            stream.expected = segment.sequence
        if segment.payload and not stream.foreign:
            yield from self._take(stream, segment.sequence, segment.payload)
        elif segment.payload:
            self._ignored[_NOT_SIP] += 1
        if segment.over and not stream.waiting:
            self._streams.pop(key, None)

    def finish(self) -> Iterator[WireMessage]:
        """What lies behind holes that nothing fills any more."""
        for stream in self._streams.values():
            yield from self._flush(stream)
            if stream.framer.pending:
                self._ignored["SIP messages over TCP without their end"] += 1

    def _new(self, segment: Segment) -> _Stream:
        key = (segment.source, segment.destination)
        back = self._streams.get((segment.destination, segment.source))
        if back is None or segment.syn:
            self._flows += 1
        flow = back.flow if back is not None and not segment.syn else self._flows
        stream = self._streams[key] = _Stream(segment.source, segment.destination, flow)
        self._streams.move_to_end(key)
        if len(self._streams) > _MOST_CONNECTIONS:
            self._streams.popitem(last=False)
            self._ignored["TCP connections beyond those that are followed at once"] += 1
        return stream

    def _take(self, stream: _Stream, sequence: int, payload: bytes) -> Iterator[WireMessage]:
        if stream.expected is None:
            if not _SIP.match(payload):  # the capture begins, or goes on, within a message
                self._ignored[_NOT_SIP] += 1
                return
            stream.expected = sequence
        if len(payload) > len(stream.waiting.get(sequence, b"")):
            stream.held += len(payload) - len(stream.waiting.get(sequence, b""))
            stream.waiting[sequence] = payload
        yield from self._in_order(stream)
        if stream.held > _LARGEST_HOLE or len(stream.waiting) > _MOST_WAITING:
            yield from self._flush(stream)

    def _in_order(self, stream: _Stream) -> Iterator[WireMessage]:
        """Hand on what follows what was handed on."""
        while stream.waiting and stream.expected is not None and not stream.foreign:
            expected = stream.expected
            # An octet that was seen before lies behind us in the circle of numbers.
            sequence = next(
                (one for one in stream.waiting if (expected - one) & 0xFFFFFFFF < 1 << 31), None
            )
            if sequence is None:
                return
            payload = stream.waiting.pop(sequence)
            stream.held -= len(payload)
            fresh = payload[(expected - sequence) & 0xFFFFFFFF :]
            if fresh:
                stream.expected = (expected + len(fresh)) & 0xFFFFFFFF
                yield from self._read(stream, fresh)

    def _read(self, stream: _Stream, data: bytes) -> Iterator[WireMessage]:
        if not stream.begun and not _SIP.match(data) and data.strip(b"\r\n"):
            stream.foreign = True
            stream.waiting.clear()
            encrypted = data[:2] == b"\x16\x03"
            self._ignored[_ENCRYPTED if encrypted else _NOT_SIP] += 1
            return
        stream.begun = stream.begun or bool(data.strip(b"\r\n"))
        try:
            whole = stream.framer.feed(data)
        except MalformedMessage:
            self._ignored["SIP over TCP that cannot be framed"] += 1
            self._lose_track(stream)
            return
        for one in whole:
            if not isinstance(one, KeepAlive):
                yield WireMessage(
                    self._at_ns, "tcp", stream.source, stream.destination, one, stream.flow
                )

    def _flush(self, stream: _Stream) -> Iterator[WireMessage]:
        """Give up the hole and go on at the next message behind it."""
        while stream.waiting:
            expected = stream.expected or 0
            nearest = min(stream.waiting, key=lambda one: (one - expected) & 0xFFFFFFFF)
            self._ignored[_HOLE] += stream.expected is not None
            self._lose_track(stream)
            if _SIP.match(stream.waiting[nearest]):
                stream.expected = nearest
                yield from self._in_order(stream)
            else:
                stream.held -= len(stream.waiting.pop(nearest))

    def _lose_track(self, stream: _Stream) -> None:
        stream.expected = None
        stream.framer = StreamFramer()
