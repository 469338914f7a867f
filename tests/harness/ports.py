"""Ports of one test process, apart from those of others that run beside it."""

import itertools
import os
import socket
from functools import cache

_FIRST, _EACH, _SHARES = 16400, 1000, 16  # below what the kernel gives away by itself
_numbers = itertools.count()  # of servers' ports in the share


def rtp_ports(count: int = _EACH) -> tuple[int, int]:
    """The first and the last of so many ports for RTP.

    A stream that ends leaves its port to the next one; packets of another process's caller that
    come late must not meet it.
    """
    first = _FIRST + _EACH * _share()[0]
    return first, first + count - 1


def server_port() -> int:
    """A TCP port that is free, and that nobody gets while its server starts or is down.

    What the kernel gives away may be given again before a server binds it, which takes some seconds.
    """
    first, _ = rtp_ports()  # UDP's: of TCP, these are free
    for number in itertools.islice(_numbers, _EACH):
        port = first + number % _EACH
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no TCP port from {first} on is free")


@cache
def _share() -> tuple[int, socket.socket | None]:
    """The number of this process's share, and what keeps it until the process ends.

    The name is one of the kernel's, like the ports: other runs of the tests on this machine see it.
    """
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in (*range(own, _SHARES), *range(own)):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0siprec-bridge-tests-rtp-{number}")
        except OSError:
            claim.close()
            continue
        return number, claim
    return own % _SHARES, None  # so many at once: they have to share
