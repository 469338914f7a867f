"""Counting many streams at once comes to what counting each by itself comes to."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siprec_bridge.rtp import (
    Jitter,
    Ledger,
    SequenceTracker,
    arrivals,
    build_packet,
    read_headers,
)

MS = 1_000_000
RATE = 8000.0


@dataclass
class Stream:
    """A stream as a worker keeps it: its row, and counts of its own behind it."""

    row: int | None = None
    sequence: SequenceTracker = field(default_factory=SequenceTracker)
    jitter: Jitter = field(default_factory=Jitter)
    octets: int = 0
    last_ns: int = 0
    payload_type: int | None = None

    def counts(self) -> tuple[object, ...]:
        one = self.sequence
        return (one.packets, one.lost, one.duplicates, one.reordered, one.reception, self.octets,
                self.last_ns)  # fmt: skip


Sent = tuple[int, int, int, int, float]  # number, time stamp, source, payload type, arrival in ms


def sweep(ledger: Ledger, streams: list[Stream], sent: list[list[Sent]]) -> list[bool]:
    """One sweep over these streams; returns which were counted all at once."""
    taken = [(one, packets) for one, packets in zip(streams, sent, strict=True) if packets]
    if not taken:
        return []
    data = bytearray()
    offsets: list[int] = []
    at_ns: list[int] = []
    starts: list[int] = []
    for _, packets in taken:
        starts.append(len(offsets))
        for number, stamp, ssrc, payload_type, at in packets:
            offsets.append(len(data))
            data += build_packet(payload_type, number, stamp, ssrc, bytes(20))
            at_ns.append(1_700_000_000_000 * MS + round(at * MS))
    lengths = np.full(len(offsets), 32, np.int64)
    times_ns = np.array(at_ns, np.int64)
    batch = read_headers(np.frombuffer(bytes(data), np.uint8), np.array(offsets), lengths)
    times = arrivals(times_ns, batch.timestamp, batch.ssrc, np.full(len(offsets), RATE))
    ends = [*starts[1:], len(offsets)]
    if taken[0][0].row is None:
        passed = [False] * len(taken)
    else:
        rows = np.array([one.row for one, _ in taken], np.int64)
        passed = ledger.take(rows, np.array(starts), batch, times, lengths, times_ns).tolist()
    for (one, _), start, stop, counted in zip(taken, starts, ends, passed, strict=True):
        if counted:
            continue
        settle(ledger, one)
        slots = np.arange(start, stop)
        one.jitter.add(times, slots, int(RATE))
        one.sequence.add(batch.sequence[slots], batch.ssrc[slots])
        one.octets += int(lengths[slots].sum())
        one.last_ns = int(times_ns[stop - 1])
        one.payload_type = int(batch.payload_type[stop - 1])
        if one.row is not None:
            ledger.expect(one.row, one.sequence, one.jitter, one.payload_type, RATE)
    return passed


def settle(ledger: Ledger, one: Stream) -> None:
    if one.row is not None:
        octets, last_ns = ledger.settle(one.row, one.sequence, one.jitter)
        one.octets += octets
        one.last_ns = last_ns or one.last_ns


def flow(first: int, count: int, *, ssrc: int = 7, payload_type: int = 0) -> list[Sent]:
    return [
        (number % 65536, 160 * number % 2**32, ssrc, payload_type, 20.0 * number)
        for number in range(first, first + count)
    ]


TROUBLE = st.sampled_from(["none", "none", "none", "loss", "twice", "swap", "source", "key", "late",
                           "jump", "same stamp", "pause"])  # fmt: skip


def trouble(packets: list[Sent], kind: str) -> list[Sent]:
    number, stamp, ssrc, payload_type, at = packets[3]
    match kind:
        case "loss":
            return packets[:3] + packets[4:]
        case "twice":
            return [*packets[:4], *packets[3:]]
        case "swap":
            return [*packets[:2], packets[3], packets[2], *packets[4:]]
        case "source":
            return packets[:3] + [(a, b, 8, d, e) for a, b, _, d, e in packets[3:]]
        case "key":
            return [*packets[:3], (number, stamp, ssrc, 101, at), *packets[4:]]
        case "late":
            return [
                (a, b, c, d, e + 7.5 * place % 60) for place, (a, b, c, d, e) in enumerate(packets)
            ]
        case "jump":
            return [
                *packets[:3],
                *((a, (b + 9**9) % 2**32, c, d, e) for a, b, c, d, e in packets[3:]),
            ]
        case "same stamp":
            return [*packets[:3], (number, packets[2][1], ssrc, payload_type, at), *packets[4:]]
        case "pause":
            return []
        case _:
            return packets


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.lists(TROUBLE, min_size=3, max_size=3), st.booleans()),
        min_size=2,
        max_size=12,
    )
)
def test_it_counts_what_each_stream_s_own_counting_counts(
    sweeps: list[tuple[list[str], bool]],
) -> None:
    ledger = Ledger()
    together = [Stream(ledger.open()) for _ in range(3)]
    alone = [Stream() for _ in range(3)]
    for number, (kinds, look) in enumerate(sweeps):
        begins = [65_480 + 10 * number, 10 * number, 300 + 10 * number]  # one wraps around
        sent = [trouble(flow(first, 10), kind) for first, kind in zip(begins, kinds, strict=True)]
        sweep(ledger, together, sent)
        sweep(ledger, alone, sent)
        if look:
            for one in together:
                settle(ledger, one)
    for one in together:
        settle(ledger, one)

    for ours, own in zip(together, alone, strict=True):
        assert ours.counts() == own.counts()
        assert ours.jitter.now == pytest.approx(own.jitter.now, abs=1e-6)
        assert (ours.jitter.mean or 0.0) == pytest.approx(own.jitter.mean or 0.0, abs=1e-6)


def test_an_unbroken_flow_is_counted_all_at_once_and_a_broken_one_by_itself() -> None:
    ledger = Ledger()
    streams = [Stream(ledger.open()) for _ in range(2)]

    first = sweep(ledger, streams, [flow(0, 10), flow(0, 10)])
    second = sweep(ledger, streams, [flow(10, 10), flow(11, 9)])
    third = sweep(ledger, streams, [flow(20, 10), flow(20, 10)])

    assert (first, second, third) == ([False, False], [True, False], [True, True])


@pytest.mark.parametrize(("paused", "payload_type"), [(True, 0), (False, None)])
def test_nothing_passes_while_a_stream_has_no_source_or_no_payload_type(
    paused: bool, payload_type: int | None
) -> None:
    ledger = Ledger()
    one = Stream(ledger.open())
    sweep(ledger, [one], [flow(0, 10)])
    assert one.row is not None
    if paused:
        one.sequence.rebase()

    ledger.expect(one.row, one.sequence, one.jitter, payload_type, RATE)

    assert sweep(ledger, [one], [flow(10, 10)]) == [False]
    assert (one.sequence.packets, one.sequence.lost) == (20, 0)
    assert sweep(ledger, [one], [flow(20, 10)]) == [True]


def test_a_row_that_is_given_to_another_stream_knows_nothing_of_the_first() -> None:
    ledger = Ledger()
    old = Stream(ledger.open())
    sweep(ledger, [old], [flow(0, 10)])
    sweep(ledger, [old], [flow(10, 10)])
    assert old.row is not None
    ledger.close(old.row)

    new = Stream(ledger.open())
    passed = sweep(ledger, [new], [flow(20, 10)])
    settle(ledger, new)

    assert (new.row, passed) == (old.row, [False])
    assert (new.sequence.packets, new.octets) == (10, 320)


def test_many_rows_keep_what_they_hold_while_more_are_made() -> None:
    ledger = Ledger()
    streams = [Stream(ledger.open()) for _ in range(50)]
    sweep(ledger, streams, [flow(0, 10)] * 50)
    sweep(ledger, streams, [flow(10, 10)] * 50)
    more = [ledger.open() for _ in range(500)]

    for one in streams:
        settle(ledger, one)

    assert {one.sequence.packets for one in streams} == {20}
    assert len({*more, *(one.row for one in streams)}) == 550
