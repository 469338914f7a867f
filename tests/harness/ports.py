"""Ports of one test process, apart from those of others that run beside it."""

import os
import socket
from functools import cache

_FIRST, _EACH, _SHARES = 16400, 1000, 16  # below what the kernel gives away by itself


def rtp_ports(count: int = _EACH) -> tuple[int, int]:
    """The first and the last of so many ports for RTP.

    A stream that ends leaves its port to the next one; packets of another process's caller that
    come late must not meet it.
    """
    first = _FIRST + _EACH * _share()[0]
    return first, first + count - 1


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
