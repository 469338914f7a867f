"""Receiving out of a ring that the kernel fills, without a system call for each stream.

An AF_PACKET socket with TPACKET_V3 (Linux: Documentation/networking/packet_mmap.rst). It sees every
packet that comes to this machine; a filter leaves the UDP datagrams to the ports of this worker. They
are taken apart by arrays. What is no plain datagram, fragments and those that the kernel has merged,
takes the long way. The UDP sockets stay bound, so that the ports are ours and nobody is told that
they are closed.

The kernel hands packets over by blocks, when one is full or two of its timers after the first packet: 8 ms,
more where it counts time by 100 Hz.
"""

import mmap
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from siprec_bridge.receiver.arena import LARGEST, SLOTS, Arena, Ints, lay, strings
from siprec_bridge.receiver.packets import Datagram, Dissector, Frame
from siprec_bridge.receiver.sweep import NOBODY, Source, attach_filter, source_of

_SOL_PACKET = 263
_RX_RING, _STATISTICS, _VERSION, _VNET_HEADER, _IGNORE_OUTGOING = 5, 6, 10, 15, 23
_V3 = 2
_ALL_PROTOCOLS = 0x0003
_BLOCK = 1 << 18  # octets; a merged datagram has up to 64 Ki
_FRAME = 1 << 11
_RETIRE_MS = 4
_LOOK_S = 0.001  # between looks at a block that is not yet handed over
_LONGEST_FLUSH_S = 0.1  # it takes two of its timers, each a tick longer: at 100 Hz 40 ms
_MOST = 1 << 16  # packets at a time
_USER = 1  # of a block's status: it is ours to read
_STATUS, _COUNT, _FIRST = 2, 3, 4  # words of a block's head
_RAW_IP = 101  # as the link types of captures are numbered
_WINDOW = 48  # octets of the longest headers that are read by arrays
_PACKET = np.dtype(
    {
        "names": ["next", "seconds", "nanoseconds", "size", "status", "link", "network"],
        "formats": ["u4", "u4", "u4", "u4", "u4", "u2", "u2"],
        "offsets": [0, 4, 8, 12, 20, 24, 26],
        "itemsize": 28,
    }
)
_VNET = np.dtype([("flags", "u1"), ("merged", "u1"), ("header", "u2"), ("size", "u2")])
_VNET_SIZE = 10
_FOUR = np.dtype(
    {
        "names": ["first", "fragment", "protocol", "source", "destination", "from", "to", "size"],
        "formats": ["u1", ">u2", "u1", "u4", "u4", ">u2", ">u2", ">u2"],
        "offsets": [0, 6, 9, 12, 16, 20, 22, 24],
        "itemsize": _WINDOW,
    }
)
_SIX = np.dtype(
    {
        "names": ["protocol", "source", "destination", "to", "size"],
        "formats": ["u1", "(2,)u8", "(2,)u8", ">u2", ">u2"],
        "offsets": [6, 8, 24, 42, 44],
        "itemsize": _WINDOW,
    }
)
_UDP = 17
_HEADER = 8  # of UDP
NO_ROW = -1
_SEGMENTS = 5  # VIRTIO_NET_HDR_GSO_UDP_L4
_NETWORK = 0xFFF00000  # SKF_NET_OFF: offsets from here count from the IP header
_MAPPED = int(np.frombuffer(b"\0\0\xff\xff", np.uint32)[0])


class Ring:
    """The UDP datagrams to the even ones of these ports. `size` in octets.

    Raises OSError: PermissionError without CAP_NET_RAW, ENODEV for an interface that is not there.
    """

    name: ClassVar = "a ring"

    def __init__(self, first: int, last: int, interfaces: Sequence[str], size: int) -> None:
        blocks = max(4, size // _BLOCK)
        self._socket = one = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)
        )
        try:
            one.setsockopt(_SOL_PACKET, _VERSION, _V3)
            one.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
            one.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            attach_filter(one, _filter(first, last, interfaces))
            frames = blocks * (_BLOCK // _FRAME)
            request = (_BLOCK, blocks, _FRAME, frames, _RETIRE_MS, 0, 0)
            one.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=7I", *request))
            self._map = mmap.mmap(one.fileno(), blocks * _BLOCK)
        except BaseException:
            one.close()
            raise
        self._blocks, self._next = blocks, 0
        self._words = memoryview(self._map).cast("I")
        self._data: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self._nexts = strings(self._data, 4)
        self._tables: dict[IPv4Address | IPv6Address, npt.NDArray[np.int32]] = {}  # by port
        self._dissector = Dissector()

    def open(self, host: str, port: int, row: int) -> None:
        """Let datagrams to this port of the host, as its socket is bound, be those of a row."""
        address = ip_address(host.partition("%")[0])
        if address not in self._tables:
            self._tables[address] = np.full(1 << 16, NO_ROW, np.int32)
        self._tables[address][port] = row

    def close(self, host: str, port: int) -> None:
        """Let nothing more come to a port."""
        self.open(host, port, NO_ROW)

    def drops(self) -> int:
        """How many packets there was no room for since it was last asked."""
        stats = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 12)
        return int(struct.unpack("=3I", stats)[1])

    def settle(self) -> None:
        """Wait until what has come can be taken.

        The kernel counts a block's packets in its head, where we see them before it is ours. What is
        ahead of it is.
        """
        at = self._next
        for _ in range(self._blocks - 1):
            if not self._words[at * _BLOCK // 4 + _STATUS] & _USER:
                break
            at = (at + 1) % self._blocks
        head, until = at * _BLOCK // 4, time.monotonic() + _LONGEST_FLUSH_S
        while self._words[head + _COUNT] and not self._words[head + _STATUS] & _USER:
            if time.monotonic() > until:
                break
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """Give the socket back, and with it the ring as soon as nobody looks at it."""
        self._socket.close()

    def take(self, arena: Arena) -> Iterator[tuple[Ints, Ints]]:
        """Take what waits into the arena, in as many rounds as it yields.

        By each: rows, and how many datagrams each of them has, one at least, in this order.
        """
        left = self._blocks  # a flood must not keep us here
        while left:
            begins: list[int] = []
            places: list[Ints] = []
            found = 0
            while left and found < _MOST:
                begin = self._next * _BLOCK
                if not self._words[begin // 4 + _STATUS] & _USER:
                    left = 0
                    break
                begins.append(begin)
                places.append(self._places(begin))
                found += len(places[-1])
                self._next = (self._next + 1) % self._blocks
                left -= 1
            if found:
                yield from self._sort(np.concatenate(places), arena)
            for begin in begins:
                self._words[begin // 4 + _COUNT] = 0  # `settle` looks at it
                self._words[begin // 4 + _STATUS] = 0

    def _places(self, begin: int) -> Ints:
        """Where the packets of a block are."""
        words = self._words
        count = words[begin // 4 + _COUNT]
        at = begin + words[begin // 4 + _FIRST]
        if not count:
            return np.zeros(0, np.int64)
        # Each tells where the next one is: as far away as from the first to the second, mostly.
        step = words[at // 4]
        if not step or at + step * (count - 1) >= begin + _BLOCK:
            places = np.full(count, at)
        else:
            places = np.arange(at, at + step * count, step)
            if bool((self._nexts[places[:-1]].view(np.uint32) == step).all()):
                return places
        for index in range(count):
            places[index] = at
            at += words[at // 4]
        return places

    def _sort(self, places: Ints, arena: Arena) -> Iterator[tuple[Ints, Ints]]:
        """Copy the packets' datagrams into the arena, by row, and each row's as they arrived."""
        data = self._data
        header: int | Ints
        heads = strings(data, _PACKET.itemsize)[places].view(_PACKET)
        arrivals_ns = heads["seconds"].astype(np.int64) * 1_000_000_000 + heads["nanoseconds"]
        networks = places + heads["network"]
        size = heads["size"].astype(np.int64) - (heads["network"] - heads["link"])
        within = networks <= len(data) - _WINDOW
        window = strings(data, _WINDOW)[np.where(within, networks, 0)]
        virtual = strings(data, _VNET.itemsize)[places + heads["link"] - _VNET_SIZE].view(_VNET)
        four, six = window.view(_FOUR), window.view(_SIX)

        is_four = (four["first"] == 0x45) & (four["protocol"] == _UDP)
        is_four &= four["fragment"] & 0x3FFF == 0
        is_six = (four["first"] >> 4 == 6) & (six["protocol"] == _UDP)
        header = 20 + _HEADER
        lengths = four["size"].astype(np.int64) - _HEADER
        if is_six.any():
            header = np.where(is_six, 40 + _HEADER, header)
            lengths = np.where(is_six, six["size"].astype(np.int64) - _HEADER, lengths)
        plain = within & (is_four | is_six) & (virtual["merged"] == 0)
        plain &= (lengths >= 0) & (header + lengths <= size)

        rows = self._rows_of(is_four, four, is_six, six)
        sources = np.zeros((len(places), 2), np.uint64)
        words = sources.view(np.uint32)
        words[:, 2], words[:, 3] = _MAPPED, four["source"]
        if is_six.any():
            sources[is_six] = six["source"][is_six]

        index = np.flatnonzero(plain & (rows != NO_ROW))
        arrivals_ns_of, offsets = arrivals_ns, networks + header
        if len(index) != len(places):
            rows, sources, arrivals_ns_of = rows[index], sources[index], arrivals_ns[index]
            offsets, lengths = offsets[index], lengths[index]
        odd = [
            one
            for at in np.flatnonzero(~plain).tolist()
            for one in self._dissect(
                at,
                bytes(data[networks[at] : networks[at] + max(0, int(size[at]))]),
                int(arrivals_ns[at]),
                int(virtual["size"][at]) if virtual["merged"][at] & 0x7F == _SEGMENTS else 0,
            )
        ]
        if odd:
            index = np.append(index, [one.place for one in odd])
            rows = np.append(rows, [one.row for one in odd])
            sources = np.append(sources, np.array([one.source for one in odd], np.uint64), axis=0)
            arrivals_ns_of = np.append(arrivals_ns_of, [arrivals_ns[one.place] for one in odd])
            # What lies there is written over.
            offsets = np.append(offsets, np.full(len(odd), _BLOCK // 2))
            lengths = np.append(lengths, [len(one.payload) for one in odd])
        lengths[lengths > LARGEST] = 0
        order = np.lexsort((index, rows)) if odd else np.argsort(rows, kind="stable")
        while len(order):
            of = rows[order]
            starts = np.flatnonzero(np.diff(of, prepend=NO_ROW))
            counts = np.diff(starts, append=len(of))
            later = order[:0]
            if int(counts.max()) > SLOTS:
                rank = np.arange(len(of)) - np.repeat(starts, counts)
                order, later = order[rank < SLOTS], order[rank >= SLOTS]
                counts = np.minimum(counts, SLOTS)
            packed, ends = lay(data, offsets[order], lengths[order])
            for slot in np.flatnonzero(order >= len(index) - len(odd)).tolist() if odd else ():
                payload = odd[int(order[slot]) - len(index) + len(odd)].payload
                if lengths[order[slot]]:
                    stop = int(ends[slot + 1])
                    packed[stop - len(payload) : stop] = np.frombuffer(payload, np.uint8)
            arena.hold(packed, ends, lengths[order], arrivals_ns_of[order], sources[order])
            yield of[starts], counts
            order = later

    def _rows_of(
        self,
        is_four: npt.NDArray[np.bool_],
        four: npt.NDArray[np.void],
        is_six: npt.NDArray[np.bool_],
        six: npt.NDArray[np.void],
    ) -> Ints:
        """Whose each packet is by its destination."""
        rows = np.full(len(four), NO_ROW, np.int64)
        for host, table in self._tables.items():
            if host.version == 4:
                there = is_four
                if not host.is_unspecified:
                    there = there & (
                        four["destination"] == int.from_bytes(host.packed, sys.byteorder)
                    )
                ports = four["to"]
            elif host.is_unspecified:  # its socket takes both
                there, ports = is_six | is_four, np.where(is_six, six["to"], four["to"])
            else:
                high, low = struct.unpack("=QQ", host.packed)
                to = six["destination"]
                there = is_six & (to[:, 0] == high) & (to[:, 1] == low)
                ports = six["to"]
            if there.any():
                found = table[ports]
                rows = np.where(there & (found != NO_ROW), found, rows)
        return rows

    def _dissect(self, index: int, packet: bytes, at_ns: int, segment: int) -> list["_Odd"]:
        """The datagrams of a packet that is not plain. `segment`: octets of each that were merged."""
        one = self._dissector.feed(Frame(at_ns, _RAW_IP, packet))
        if not isinstance(one, Datagram):
            return []
        row = NO_ROW
        destination = ip_address(one.destination.host)
        for host, table in self._tables.items():
            if host == destination or (
                host.is_unspecified and host.version in (6, destination.version)
            ):
                row = max(row, int(table[one.destination.port]))
        if row == NO_ROW:
            return []
        source, data = source_of(one.source.host) or NOBODY, one.payload
        step = segment or max(1, len(data))
        pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        return [_Odd(index, row, source, piece) for piece in pieces]


class _Odd(NamedTuple):
    """A datagram that came in pieces, or together with others. `place`: that of its (last) packet."""

    place: int
    row: int
    source: Source
    payload: bytes


def _filter(first: int, last: int, interfaces: Sequence[str]) -> bytes:
    """A program for the kernel: UDP to the even ones of these ports, and what may be such.

    Each packet once, where its way through the machine ends: neither with the tag of a VLAN nor at
    a port of a bridge or bond, but at the interface above. Raises OSError: no such interface.
    """
    numbers = [socket.if_nametoindex(name) for name in interfaces]
    below = [] if numbers else _enslaved()
    lines: list[tuple[str, int, int, str, str]] = []  # label, code, k, where to if so, if not

    def add(code: int, k: int, yes: str = "", no: str = "", *, label: str = "") -> None:
        lines.append((label, code, k, yes, no))

    load, load_half, load_octet, same, end = 0x20, 0x28, 0x30, 0x15, 0x06
    # A bridge can have more ports than the 255 lines that a jump goes at most: none goes far up here.
    over = "the next line"
    add(load, 0xFFFFF004)  # kind of packet: to this host
    add(same, 0, yes=over)
    add(end, 0)
    add(load_octet, 0xFFFFF030)  # whether there is a tag
    add(same, 0, yes="untagged")
    add(load, 0xFFFFF02C)  # network 0: no network, the tag tells a priority only
    add(0x54, 0x0FFF)
    add(same, 0, yes=over)
    add(end, 0)
    add(load, 0xFFFFF008, label="untagged")  # number of the interface
    for number in numbers:
        add(same, number, no=over)
        add(0x05, 0, yes="ip")
    if numbers:
        add(end, 0)
    for number in below:
        add(same, number, no=over)
        add(end, 0)
    add(load_octet, _NETWORK, label="ip")
    add(0x54, 0xF0)
    add(same, 0x60, yes="six")
    add(same, 0x40, no="drop")
    add(load_octet, _NETWORK + 9)
    add(same, _UDP, no="drop")
    add(load_half, _NETWORK + 6)
    add(0x45, 0x1FFF, yes="take")  # a later fragment: has no ports
    add(load_octet, _NETWORK)
    add(0x54, 0x0F)
    add(0x64, 2)  # words are octets
    add(0x07, 0)  # the header's length, for the next
    add(0x48, _NETWORK + 2)
    add(0x05, 0, yes="port")
    add(load_octet, _NETWORK + 6, label="six")
    for extension in (0, 43, 44, 60):
        add(same, extension, yes="take")
    add(same, _UDP, no="drop")
    add(load_half, _NETWORK + 42)
    add(0x35, first, no="drop", label="port")
    add(0x25, last, yes="drop")
    add(0x45, 1, yes="drop")  # odd: RTCP, which its own socket takes
    add(end, 0x40000, label="take")
    add(end, 0, label="drop")
    at = {label: number for number, (label, *_) in enumerate(lines) if label}
    out = b""
    for number, (_, code, k, yes, no) in enumerate(lines):
        at[over] = number + 2
        to_yes, to_no = (at[one] - number - 1 if one else 0 for one in (yes, no))
        if code == 0x05:  # a jump has its way in k
            k, to_yes = to_yes, 0
        out += struct.pack("=HBBI", code, to_yes, to_no, k)
    return out


def _enslaved() -> list[int]:
    """Numbers of the interfaces that are ports of a bridge or bond; those of a VRF are no such."""
    found = []
    for number, name in socket.if_nameindex():
        master = Path("/sys/class/net", name, "master")
        if master.exists() and "DEVTYPE=vrf" not in (master / "uevent").read_text():
            found.append(number)
    return found
