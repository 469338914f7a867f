"""Ports of one test process, apart from those of others that run beside it."""

import os

_FIRST, _EACH, _SHARES = 16400, 2000, 8  # below what the kernel gives away by itself


def rtp_ports() -> tuple[int, int]:
    """The first and the last port for RTP.

    A stream that ends leaves its port to the next one; packets of another process's caller that
    come late must not meet it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + _EACH * (worker % _SHARES)
    return first, first + _EACH - 1
