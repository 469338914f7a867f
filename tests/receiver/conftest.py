"""A media worker in the test's own process."""

import socket
from collections.abc import Iterator

import pytest

from siprec_bridge.receiver.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    """It is swept when the test says so."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one = Worker(theirs)
        yield one
        one.stop()
