"""Out of sockets into the arena: whole, in order, with the kernel's own time and their sender."""

import contextlib
import os
import random
import socket
import time

import pytest

from harness.hosts import has_ipv6
from siprec_bridge.receiver.arena import LARGEST, SLOTS, Arena
from siprec_bridge.receiver.control import VERSION, Configuration
from siprec_bridge.receiver.sweep import address_of, best_receiver, prepare
from siprec_bridge.receiver.worker import Worker

HOSTS = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="none"))]
each_way = pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])


def bound(host: str) -> socket.socket:
    """A socket as a stream has it."""
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((host, 0))
    one.setblocking(False)
    prepare(one)
    return one


@each_way
@pytest.mark.parametrize("host", HOSTS)
def test_datagrams_of_any_mix_of_sizes_come_whole_in_order_and_with_their_sender(
    fast: bool, host: str
) -> None:
    chance = random.Random(1)
    sizes = [0, 1, 12, 172, 1600, LARGEST, *(chance.randrange(1601) for _ in range(60))]
    sent = [[chance.randbytes(size) for size in sizes] for _ in range(2)]
    arena = Arena()
    receiver = best_receiver(arena, fast=fast)
    with bound(host) as first, bound(host) as idle, bound(host) as second, bound(host) as source:
        for one, datagrams in zip((first, second), sent, strict=True):
            for data in datagrams:
                source.sendto(data, one.getsockname()[:2])

        counts = receiver.receive([first, idle, second], 0, arena)

        at = [
            arena.data[offset : offset + length].tobytes()
            for offset, length in zip(arena.offsets.tolist(), arena.lengths.tolist(), strict=False)
        ]
        assert counts == [len(sizes), 0, len(sizes)]
        assert at[: 2 * len(sizes)] == sent[0] + sent[1]
        for slot in (0, 2 * len(sizes) - 1):
            assert receiver.address(slot)[:2] == source.getsockname()[:2]
            high, low = arena.sources[slot].tolist()
            assert address_of((high, low)) == host
        assert receiver.receive([first, idle, second], 0, arena) == [0, 0, 0]


@each_way
def test_a_socket_that_only_fails_is_passed_over(fast: bool) -> None:
    arena = Arena()
    with bound("127.0.0.1") as broken, bound("127.0.0.1") as one, bound("127.0.0.1") as source:
        source.sendto(b"voice", one.getsockname())
        broken.close()

        assert best_receiver(arena, fast=fast).receive([broken, one], 0, arena) == [0, 1]


@each_way
def test_one_that_is_larger_than_any_of_rtp_is_not_taken_for_its_beginning(fast: bool) -> None:
    arena = Arena()
    receiver = best_receiver(arena, fast=fast)
    with bound("127.0.0.1") as one, bound("127.0.0.1") as source:
        for data in (bytes(LARGEST + 1), b"\x80" * 172):
            source.sendto(data, one.getsockname())

        assert receiver.receive([one], 0, arena) == [2]

    assert arena.lengths[:2].tolist() == [0, 172]


@each_way
def test_the_time_of_a_datagram_is_when_it_came_and_not_when_it_is_looked_at(fast: bool) -> None:
    arena = Arena()
    receiver = best_receiver(arena, fast=fast)
    spans = []
    with bound("127.0.0.1") as one, bound("127.0.0.1") as source:
        for _ in range(3):
            before = time.time_ns()
            source.sendto(b"\x80" * 172, one.getsockname())
            spans.append((before, time.time_ns()))
            time.sleep(0.01)  # the network's silence, and a sweep that is not due

        assert receiver.receive([one], 0, arena) == [3]

    for (before, after), arrival in zip(spans, arena.arrivals_ns[:3].tolist(), strict=True):
        assert before - 1_000_000 <= arrival <= after + 1_000_000


@each_way
def test_more_than_there_is_room_for_waits_in_its_socket(fast: bool) -> None:
    arena = Arena()
    receiver = best_receiver(arena, fast=fast)
    each = 100
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(bound("127.0.0.1")) for _ in range(SLOTS // each + 2)]
        source = stack.enter_context(bound("127.0.0.1"))
        for one in ours:
            for number in range(each):
                source.sendto(bytes([number]), one.getsockname())

        first = receiver.receive(ours, 0, arena)
        second = receiver.receive(ours, len(first) - 1, arena)

    cut = SLOTS % each
    assert first == [each] * (SLOTS // each) + [cut]
    assert second == [each - cut, each]
    assert arena.data[arena.offsets[: each - cut]].tolist() == list(range(cut, each))


def test_a_worker_understands_no_other_version_than_its_own() -> None:
    told = Configuration(16384, 32767, True, 30.0, "learned")

    assert Configuration.from_json(told.to_json()) == told
    with pytest.raises(ValueError, match=f"version {VERSION + 1}, not {VERSION}"):
        Configuration.from_json(told.to_json() | {"version": VERSION + 1})


def stamped() -> int:
    """How many sockets of this process have the kernel stamp what comes."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with (
            contextlib.suppress(OSError),  # no socket, or not open any more
            socket.fromfd(int(name), socket.AF_INET, socket.SOCK_DGRAM) as one,
        ):
            count += one.getsockopt(socket.SOL_SOCKET, 35)  # SO_TIMESTAMPNS
    return count


def test_a_worker_without_a_call_has_the_kernel_stamp_so_that_it_does_when_one_begins() -> None:
    before = stamped()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs)
        idle = stamped()
        worker.stop()

    assert (idle, stamped()) == (before + 1, before)
