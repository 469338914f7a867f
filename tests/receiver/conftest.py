"""A media worker in the test's own process."""

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from siprec_bridge.receiver.sweep import stamping
from siprec_bridge.receiver.worker import Worker


@pytest.fixture(scope="session", autouse=True)
def arrivals_are_stamped() -> Iterator[None]:
    """From the first test on, as with a worker that has run for a moment."""
    with stamping() as one:
        one.bind(("127.0.0.1", 0))
        for _ in range(200):
            one.sendto(b"now", one.getsockname())
            time.sleep(0.01)
            read = time.time()
            ((_, _, stamp),) = one.recvmsg(8, 64)[1]
            seconds, nanoseconds = struct.unpack("@ll", stamp)
            if seconds + nanoseconds / 1e9 < read:
                break
        else:
            pytest.fail("the kernel does not stamp what comes when it comes")
        yield


@pytest.fixture
def worker() -> Iterator[Worker]:
    """It is swept when the test says so."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one = Worker(theirs)
        yield one
        one.stop()
