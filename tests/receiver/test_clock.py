"""The worker's clock, which nobody sets while it receives."""

import time

import numpy as np

from siprec_bridge.receiver.sweep import WorkerClock

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


class Wall:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        return time.time_ns() + self.ahead_ns


def test_packets_keep_their_times_when_the_wall_clock_is_set() -> None:
    wall = Wall()
    clock = WorkerClock(wall)
    before = wall()
    wall.ahead_ns = HOUR
    # One the kernel stamped before the clock was set, and one after it.
    arrivals = np.array([before, wall()], np.int64)
    clock.steady(arrivals)

    assert np.abs(arrivals - time.time_ns()).max() < SECOND


def test_with_no_stream_the_wall_clock_is_taken_over() -> None:
    wall = Wall()
    clock = WorkerClock(wall)
    wall.ahead_ns = -HOUR
    clock.follow()

    assert abs(clock.now_ns() - wall()) < SECOND
    assert abs(clock.stepped_ns()) < SECOND
