"""Receiving: every stream's waiting datagrams into one arena, some hundred microseconds a sweep.

Two ways with one result: `recvmmsg` by ctypes, which takes a socket's whole queue in one system
call, and plain `recvmsg_into`. The kernel's time stamps say when a packet came, whenever the
sweep gets to it; SO_RXQ_OVFL says what the kernel had to drop.

A source is an address as two 64-bit words of IPv6, IPv4 mapped into it; ports do not count.
"""

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar, Protocol

import numpy as np

from siprec_bridge.receiver.arena import LARGEST, SLOTS, Arena, Ints

_CONTROL = 64
_NAME_WORDS = 8  # of 32 bits: room for a struct sockaddr_in6, 28 octets
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_END = 0x06  # of a filter's program: how many octets are taken
_SO_TIMESTAMPNS = 35
_SO_RXQ_OVFL = 40
_SO_MEMINFO, _DROPS = 55, 8
_MSG_TRUNC = 0x20
_DONTWAIT = int(socket.MSG_DONTWAIT)  # an enum would be converted at each call
_TRIES = 3  # an ICMP error of something sent comes once, ahead of what waits
_LONGEST_WAIT_NS = 10_000_000_000  # of packets in a socket, whose buffer holds 5 s of G.711
_RECEIVE_BUFFER = 1 << 20
_RTCP_BUFFER = 1 << 13
_LARGEST_SKB = 4096  # octets that the kernel counts, at most, for a small datagram
_MAPPED = np.frombuffer(b"\0\0\xff\xff", np.uint32)[0]  # third word of ::ffff:0:0/96

Source = tuple[int, int]
Address = tuple[str, int]  # host and port
NOBODY: Source = (0, 0)  # is no datagram's source


@lru_cache(maxsize=4096)
def source_of(host: str) -> Source | None:
    """The source of an address; None: it is a name, or no host's."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        packed = address.packed
        address = address.ipv4_mapped or address
    else:
        packed = bytes(10) + b"\xff\xff" + address.packed
    if address.is_unspecified or address.is_multicast:
        return None
    high, low = struct.unpack("=QQ", packed)
    return high, low


def address_of(source: Source) -> str:
    """A source for readers."""
    one = IPv6Address(struct.pack("=QQ", *source))
    return str(one.ipv4_mapped or one)


class WorkerClock:
    """The wall clock as it would be if nobody had set it since `follow`.

    A call keeps its length when the wall clock is stepped.
    """

    def __init__(self, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._wall_ns = wall_ns
        self._offset_ns = 0
        self.follow()

    def follow(self) -> None:
        """Take over the wall clock as it is; only while nobody counts on this one."""
        self._offset_ns = self._wall_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.monotonic_ns() + self._offset_ns

    def stepped_ns(self) -> int:
        """By how much the wall clock, which the kernel stamps with, is ahead of this one."""
        return self._wall_ns() - self.now_ns()

    def steady(self, arrivals_ns: Ints) -> None:
        """Make times that the kernel has stamped those of this clock, in place.

        What was stamped just before the wall clock was set, and is taken after it, came just now.
        """
        now = self.now_ns()
        arrivals_ns -= self.stepped_ns()
        arrivals_ns[np.abs(arrivals_ns - now) > _LONGEST_WAIT_NS] = now


class Receiver(Protocol):
    """A way to empty sockets into an arena. `name`: for operators."""

    name: ClassVar[str]

    def receive(self, sockets: Sequence[socket.socket], first: int, arena: Arena) -> list[int]:
        """Take what waits, socket after socket from the first on; returns how much each one had.

        As soon as the arena is full it ends, and the last of these sockets may have more.
        """
        ...

    def address(self, slot: int) -> Address:
        """Where a slot's datagram came from, until the next ones are taken."""
        ...


def prepare(one: socket.socket) -> None:
    """Ask the kernel for time stamps, drop counts and enough room on an RTP socket."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    one.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)


def prepare_rtcp(one: socket.socket) -> None:
    """Ask for time stamps, and little room: a source says something every few seconds."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RTCP_BUFFER)
    one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def stamping() -> socket.socket:
    """A socket that keeps the kernel stamping what comes, as long as it is open.

    The kernel begins a moment after the first socket asks for it, and stamps what came before that
    when it is read: up to a sweep late.
    """
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return one


def room(one: socket.socket) -> int:
    """How many datagrams a prepared RTP socket surely has room for."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // _LARGEST_SKB


def shield(one: socket.socket, sources: Iterable[Source]) -> bool:
    """Have the kernel drop what comes from elsewhere, so that it takes no room; none: take all.

    SO_RXQ_OVFL counts what it drops. False: this kernel does not do that.
    """
    allowed = [ip_address(address_of(one)) for one in sources]
    try:
        if not allowed:
            one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            return False
        attach_filter(one, _filter(allowed))
    except OSError:
        return False
    return True


def shut(one: socket.socket) -> None:
    """Have the kernel drop all that comes to a socket. Raises OSError."""
    attach_filter(one, struct.pack("=HBBI", _END, 0, 0, 0))


def dropped(one: socket.socket) -> int:
    """How many datagrams the kernel has dropped at a socket, as SO_RXQ_OVFL counts. Raises OSError."""
    told = one.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1))
    return int(struct.unpack_from("=I", told, 4 * _DROPS)[0])


def attach_filter(one: socket.socket, program: bytes) -> None:
    """Let the kernel ask a program of its classic BPF about each packet. Raises OSError."""
    text = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("@HP", len(program) // 8, ctypes.addressof(text))
    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _filter(allowed: list[IPv4Address | IPv6Address]) -> bytes:
    """A program for the kernel's packet filter. Linux: Documentation/networking/filter.rst."""
    load, load_octet, mask, equal, end = 0x20, 0x30, 0x54, 0x15, _END
    network = 0xFFF00000  # SKF_NET_OFF: offsets from here count from the IP header
    take, drop = (end, 0, 0, 0xFFFFFFFF), (end, 0, 0, 0)
    four = [(load, 0, 0, network + 12)]
    six = []
    for one in allowed:
        if isinstance(one, IPv4Address):
            four += [(equal, 0, 1, int(one)), take]
            continue
        for number, word in enumerate(struct.unpack("!4I", one.packed)):
            to_next = 7 - 2 * number
            six += [(load, 0, 0, network + 8 + 4 * number), (equal, 0, to_next, word)]
        six.append(take)
    four.append(drop)
    six.append(drop)
    version = [(load_octet, 0, 0, network), (mask, 0, 0, 0xF0), (equal, 0, len(four), 0x40)]
    return b"".join(struct.pack("=HBBI", *each) for each in [*version, *four, *six])


def receive_stamped(one: socket.socket) -> tuple[bytes, int, Address] | None:
    """A datagram, when it came, ns since 1970, and from where; None: none waits."""
    try:
        data, control, _, (host, port, *_) = one.recvmsg(LARGEST, _CONTROL)
    except OSError:
        return None
    for level, kind, value in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", value)
            return data, seconds * 1_000_000_000 + nanoseconds, (host, port)
    return data, time.time_ns(), (host, port)


class PlainReceiver:
    """One system call a packet; works wherever Python does."""

    name: ClassVar = "sockets, packet by packet"

    def __init__(self) -> None:
        self._addresses: list[Address] = [("", 0)] * SLOTS

    def receive(self, sockets: Sequence[socket.socket], first: int, arena: Arena) -> list[int]:
        """As the protocol says."""
        counts: list[int] = []
        used = 0
        for index in range(first, len(sockets)):
            counts.append(self._receive(sockets[index], arena, used))
            used += counts[-1]
            if used == SLOTS:
                break
        return counts

    def _receive(self, one: socket.socket, arena: Arena, start: int) -> int:
        slot, errors = start, 0
        while slot < SLOTS and errors < _TRIES:
            at = int(arena.offsets[slot])
            try:
                length, control, flags, (host, port, *_) = one.recvmsg_into(
                    [arena.view[at : at + LARGEST]], _CONTROL
                )
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                errors += 1  # an ICMP error of something sent: clears itself
                continue
            arrival, drops = time.time_ns(), -1
            for level, kind, value in control:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("qq", value)
                    arrival = seconds * 1_000_000_000 + nanoseconds
                elif level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
                    (drops,) = struct.unpack("I", value)
            arena.lengths[slot] = 0 if flags & _MSG_TRUNC else length
            arena.arrivals_ns[slot] = arrival
            arena.drops[slot] = drops
            arena.sources[slot] = source_of(host) or NOBODY
            self._addresses[slot] = host, port
            slot += 1
        return slot - start

    def address(self, slot: int) -> Address:
        """As the protocol says."""
        return self._addresses[slot]


class BatchReceiver:
    """`recvmmsg` for 64-bit Linux. Raises OSError at the start where it is not there."""

    name: ClassVar = "sockets, in batches"

    _MESSAGE = np.dtype(
        {
            "names": [
                "name", "name_length", "vector", "vector_length",
                "control", "control_length", "flags", "length",
            ],
            "formats": ["u8", "u4", "u8", "u8", "u8", "u8", "i4", "u4"],
            "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
            "itemsize": 64,
        }
    )  # fmt: skip
    # Two control messages, each with its level and kind as one number.
    _CONTROL_DATA = np.dtype(
        {
            "names": ["kind", "seconds", "nanoseconds", "second", "drops"],
            "formats": ["u8", "i8", "i8", "u8", "u4"],
            "offsets": [8, 16, 24, 40, 48],
            "itemsize": _CONTROL,
        }
    )
    _STAMP = np.array([socket.SOL_SOCKET, _SO_TIMESTAMPNS], np.int32).view(np.uint64)[0]
    _OVERFLOW = np.array([socket.SOL_SOCKET, _SO_RXQ_OVFL], np.int32).view(np.uint64)[0]

    def __init__(self, arena: Arena) -> None:
        if struct.calcsize("P") != 8:
            raise OSError("recvmmsg is laid out for 64-bit machines only")
        # Keeps the interpreter's lock, which nobody waits for: the call does not wait either.
        library = ctypes.PyDLL(None, use_errno=True)
        try:
            self._recvmmsg = library.recvmmsg
        except AttributeError as error:
            raise OSError("no recvmmsg in the C library") from error
        # No argtypes: to convert by them costs as much as the call. What is passed are C's ints, and
        # a pointer, which is always this one.
        self._place = ctypes.c_void_p()
        base = arena.data.ctypes.data
        self._vectors = np.zeros((SLOTS, 2), np.uint64)
        self._vectors[:, 0] = base + arena.offsets.astype(np.uint64)
        self._vectors[:, 1] = LARGEST
        self._control = np.zeros(SLOTS, self._CONTROL_DATA)
        self._messages = np.zeros(SLOTS, self._MESSAGE)
        self._messages["vector"] = self._vectors.ctypes.data + np.arange(SLOTS) * 16
        self._messages["vector_length"] = 1
        self._messages["control"] = self._control.ctypes.data + np.arange(SLOTS) * _CONTROL
        self._messages["control_length"] = _CONTROL
        self._names = np.zeros((SLOTS, _NAME_WORDS), np.uint32)
        self._messages["name"] = self._names.ctypes.data + np.arange(SLOTS) * 4 * _NAME_WORDS
        self._messages["name_length"] = 4 * _NAME_WORDS
        self._address = self._messages.ctypes.data

    def receive(self, sockets: Sequence[socket.socket], first: int, arena: Arena) -> list[int]:
        """As the protocol says."""
        receive, pointer, place = self._recvmmsg, self._place, self._address
        counts, room = [], SLOTS
        for index in range(first, len(sockets)):
            one = sockets[index]
            pointer.value = place
            count = receive(one.fileno(), pointer, room, _DONTWAIT, None)
            if count < 0:
                count = self._receive_again(one, room)
            counts.append(count)
            place += 64 * count
            room -= count
            if not room:
                break
        self._complete(arena, SLOTS - room)
        return counts

    def _receive_again(self, one: socket.socket, room: int) -> int:
        """After -1: nothing waits, or there is an error ahead of it."""
        for _ in range(_TRIES):
            if ctypes.get_errno() in (errno.EAGAIN, errno.EINTR):
                break
            count: int = self._recvmmsg(one.fileno(), self._place, room, _DONTWAIT, None)
            if count >= 0:
                return count
        return 0

    def _complete(self, arena: Arena, count: int) -> None:
        """Fill the arrays for the first `count` slots."""
        messages, control = self._messages[:count], self._control[:count]
        arena.lengths[:count] = np.where(messages["flags"] & _MSG_TRUNC, 0, messages["length"])
        told = messages["control_length"]
        stamped = (told >= 32) & (control["kind"] == self._STAMP)
        arrivals = control["seconds"] * 1_000_000_000 + control["nanoseconds"]
        arena.arrivals_ns[:count] = arrivals
        if not stamped.all():
            arena.arrivals_ns[:count][~stamped] = time.time_ns()
        arena.drops[:count] = -1
        counted = np.flatnonzero(told >= 52)
        counted = counted[stamped[counted] & (control["second"][counted] == self._OVERFLOW)]
        arena.drops[counted] = control["drops"][counted]
        messages["control_length"] = _CONTROL
        messages["name_length"] = 4 * _NAME_WORDS
        names, sources = self._names[:count], arena.sources[:count].view(np.uint32)
        sources[:, :2], sources[:, 2], sources[:, 3] = 0, _MAPPED, names[:, 1]
        six = names.view(np.uint16)[:, 0] == socket.AF_INET6
        if six.any():
            sources[six] = names[six, 2:6]

    def address(self, slot: int) -> Address:
        """As the protocol says."""
        name = self._names[slot].tobytes()  # a struct sockaddr_in or sockaddr_in6
        (family,), (port,) = struct.unpack("=H", name[:2]), struct.unpack("!H", name[2:4])
        packed = name[8:24] if family == socket.AF_INET6 else name[4:8]
        return str(ip_address(packed)), port


def best_receiver(arena: Arena, *, fast: bool) -> Receiver:
    """The batch receiver where it is wanted and there, else the plain one."""
    if fast and os.name == "posix":
        try:
            return BatchReceiver(arena)
        except OSError:
            pass
    return PlainReceiver()
