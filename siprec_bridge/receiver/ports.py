"""RTP ports: an even one and the odd one above it for RTCP. RFC 3550 §11."""

import contextlib
import errno
import itertools
import socket
from collections import deque

Pair = tuple[socket.socket, socket.socket]


_AHEAD = 8  # pairs that are bound before they are wanted
_TRIES = 16  # of pairs that are sent to: then it may be a stranger who sends to all of them


class NoPortLeft(Exception):
    """Every port of the range is taken."""


def shares(first: int, last: int, workers: int) -> list[tuple[int, int]]:
    """Split a range: first and last port of each worker, fewer workers where ports are few.

    Each share has room for a call, two pairs; the last port of a range may be left over.
    """
    first += first % 2
    pairs = max(0, (last - first + 1) // 2)
    count = max(1, min(workers, pairs // 2))
    ends = [first + 2 * (pairs * number // count) for number in range(count + 1)]
    return [(start, end - 1) for start, end in itertools.pairwise(ends)]


class PortRange:
    """Hands out pairs in turn, so that a port that was just given back rests for a while."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first + first % 2
        self._count = max(0, (last - self._first + 1) // 2)
        self._next = 0
        self._ahead: dict[str, deque[Pair]] = {}  # by host

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self._count

    def take(self, host: str) -> Pair:
        """Sockets for RTP and RTCP at ports of the host to which nobody sends, as far as there are such.

        They were bound a few streams before: what has come to them since, when nobody could know of
        them, is of a call that is over for us, or was a bridge's before this one, and is in no other's.
        Raises NoPortLeft; OSError when the host is no address of ours.
        """
        ahead = self._ahead.setdefault(host, deque())
        for _ in range(_TRIES):
            pair = ahead.popleft() if ahead else self.bind(host)
            with contextlib.suppress(NoPortLeft, OSError):
                while len(ahead) < _AHEAD:
                    ahead.append(self.bind(host))
            if not _is_sent_to(pair[0]):
                return pair
            for one in pair:
                one.close()
        return ahead.popleft() if ahead else self.bind(host)

    def close(self) -> None:
        """Give back what nobody has taken."""
        for pair in itertools.chain(*self._ahead.values()):
            for one in pair:
                one.close()
        self._ahead.clear()

    def bind(self, host: str) -> Pair:
        """Sockets for RTP and RTCP at the next free ports of the host.

        Raises NoPortLeft; OSError when the host is no address of ours.
        """
        for _ in range(self._count):
            candidate = self._first + 2 * self._next
            self._next = (self._next + 1) % self._count
            with contextlib.suppress(NoPortLeft):
                return bind_pair(host, candidate)
        last = self._first + 2 * self._count - 1
        raise NoPortLeft(f"all ports from {self._first} to {last} are taken")


def _is_sent_to(one: socket.socket) -> bool:
    try:
        one.recv(1, socket.MSG_PEEK)
    except OSError:
        return False
    return True


def bind_pair(host: str, port: int) -> Pair:
    """Sockets for RTP at this port of the host and for RTCP above it. Raises NoPortLeft, OSError."""
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(bind_one(host, number)) for number in (port, port + 1)]
        stack.pop_all()
    return pair[0], pair[1]


def bind_one(host: str, port: int) -> socket.socket:
    """A socket at this port of the host that does not block. Raises NoPortLeft, OSError."""
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        one.setblocking(False)
        one.bind(_address(host, port))
    except OSError as error:
        one.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise NoPortLeft(f"port {port} is taken") from error
        raise
    return one


def _address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What a socket is bound to. A link-local host has its zone, by name or number: RFC 4007 §11."""
    address, percent, zone = host.partition("%")
    if not percent:
        return host, port
    return address, port, 0, int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
