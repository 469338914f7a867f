"""Batches of packets: headers, counts, positions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.rtp import packets, tone
from siprec_bridge.rtp import (
    Batch,
    Reception,
    SequenceTracker,
    Timeline,
    build_packet,
    decode_g711,
    encode_g711,
    read_headers,
)

SECOND = 1_000_000_000


def headers(datagrams: list[bytes]) -> Batch:
    lengths = np.array([len(one) for one in datagrams], np.int64)
    offsets = np.cumsum(lengths) - lengths
    return read_headers(np.frombuffer(b"".join(datagrams), np.uint8), offsets, lengths)


def track(numbers: list[int], ssrc: int = 1) -> SequenceTracker:
    tracker = SequenceTracker()
    tracker.add(np.array(numbers, np.uint16), np.full(len(numbers), ssrc, np.uint32))
    return tracker


def place(
    line: Timeline,
    numbers: list[int],
    arrivals: list[float],
    *,
    timestamps: list[int] | None = None,
    ssrc: int = 1,
    interrupted: bool = False,
) -> list[int]:
    """Positions of 20 ms packets by their number, arriving at these seconds."""
    stamps = timestamps if timestamps is not None else [160 * one for one in numbers]
    positions = line.place(
        np.array([one % 2**32 for one in stamps], np.uint32),
        np.array([one % 2**16 for one in numbers], np.uint16),
        np.full(len(numbers), ssrc, np.uint32),
        np.array([round(one * SECOND) for one in arrivals], np.int64),
        np.full(len(numbers), 160, np.int64),
        interrupted=interrupted,
    )
    return [int(one) for one in positions]


def paced(numbers: list[int], start: float = 0.0) -> list[float]:
    return [start + 0.02 * index for index in range(len(numbers))]


def test_headers_with_csrcs_extension_and_padding_are_read() -> None:
    plain = build_packet(0, 65535, 2**32 - 1, 7, b"abcd", marker=True)
    odd = bytes([0xB1, 8]) + plain[2:12] + b"csrc" + b"\0\0\0\1extn" + b"xyz" + b"\0\0\3"

    batch = headers([plain, odd, b"short", b"\x80\xc8" + bytes(20)])

    assert batch.valid.tolist() == [True, True, False, False]
    assert batch.payload_type[:2].tolist() == [0, 8]
    assert batch.marker[:2].tolist() == [True, False]
    assert (batch.sequence[0], batch.timestamp[0], batch.ssrc[0]) == (65535, 2**32 - 1, 7)
    assert batch.payload_length[:2].tolist() == [4, 3]


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_datagram_reads_beyond_its_end(datagrams: list[bytes]) -> None:
    batch = headers(datagrams)

    ends = np.cumsum([len(one) for one in datagrams])
    for index in np.flatnonzero(batch.valid):
        assert batch.payload_offset[index] + batch.payload_length[index] <= ends[index]


@pytest.mark.parametrize(
    ("numbers", "lost", "duplicates", "reordered"),
    [
        ([1, 2, 3, 4], 0, 0, 0),
        ([65534, 65535, 0, 1], 0, 0, 0),
        ([1, 2, 5, 6], 2, 0, 0),
        ([1, 3, 2, 4], 0, 0, 1),
        ([2, 1, 3], 0, 0, 1),
        ([1, 2, 2, 3, 1], 0, 2, 0),
        ([1, 2, 40000, 40001], 0, 0, 0),
    ],
)
def test_sequence_numbers_tell_what_is_missing(
    numbers: list[int], lost: int, duplicates: int, reordered: int
) -> None:
    tracker = track(numbers)

    assert (tracker.lost, tracker.duplicates, tracker.reordered) == (lost, duplicates, reordered)
    assert tracker.packets == len(numbers) - duplicates


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60), st.integers(1, 59))
def test_counts_do_not_depend_on_how_packets_are_batched(numbers: list[int], cut: int) -> None:
    whole = track(numbers)
    parts = track(numbers[:cut])
    rest = np.array(numbers[cut:], np.uint16)
    parts.add(rest, np.full(len(rest), 1, np.uint32))

    assert (parts.lost, parts.duplicates, parts.reordered, parts.packets) == (
        whole.lost, whole.duplicates, whole.reordered, whole.packets,
    )  # fmt: skip


def counted_plainly(positions: list[int]) -> tuple[int, int, int, int, int]:
    """Packets, lost, twice and out of order, and those due since the last jump. RFC 3550 A.1."""
    runs: list[set[int]] = []
    duplicates = reordered = highest = 0
    for at in positions:
        if not runs or abs(at - highest) > 3000:
            runs.append({at})
            highest = at
        elif at in runs[-1] or highest - at >= 1024:
            duplicates += 1
        else:
            reordered += at < highest
            runs[-1].add(at)
            highest = max(highest, at)
    lost = sum(max(run) - min(run) + 1 - len(run) for run in runs)
    due = max(runs[-1]) - min(runs[-1]) + 1
    return sum(map(len, runs)), lost, duplicates, reordered, due


ORDERLY = st.integers(1, 40).map(lambda count: list(range(1, count + 1)))
JUMBLED = st.lists(st.integers(-3, 6), max_size=12)
JUMP = st.sampled_from([-3001, -3000, -1025, -1024, -1023, 2999, 3000, 3001, 9000]).map(
    lambda step: [step, step + 1]
)


@given(st.integers(60_000, 70_000), st.lists(ORDERLY | JUMBLED | JUMP, max_size=20))
def test_counts_are_those_of_a_plain_list_of_what_came(
    first: int, batches: list[list[int]]
) -> None:
    tracker, positions = SequenceTracker(), [first]
    tracker.add(np.array([first % 65536], np.uint16), np.ones(1, np.uint32))
    for batch in batches:
        more = [max(positions[-20:]) + step for step in batch]
        numbers = np.array([one % 65536 for one in more], np.uint16)
        tracker.add(numbers, np.ones(len(more), np.uint32))
        positions += more

    packets, lost, duplicates, reordered, due = counted_plainly(positions)
    assert (tracker.packets, tracker.lost) == (packets, lost)
    assert (tracker.duplicates, tracker.reordered) == (duplicates, reordered)
    assert tracker.reception is not None
    assert tracker.reception.expected == due


def test_the_highest_number_of_a_report_counts_how_often_the_numbers_began_anew() -> None:
    tracker = track([65534, 65535])
    for numbers in ([0, 1], [3]):
        tracker.add(np.array(numbers, np.uint16), np.ones(len(numbers), np.uint32))

    assert tracker.reception == Reception(ssrc=1, highest=65536 + 3, expected=6, received=5)


def test_what_was_missing_before_a_pause_stays_missing_and_the_pause_itself_is_no_loss() -> None:
    tracker = track([1, 2, 4])

    tracker.rebase()
    paused = tracker.reception
    tracker.add(np.array([500, 502], np.uint16), np.ones(2, np.uint32))

    assert paused is None
    assert (tracker.packets, tracker.lost) == (5, 2)


def test_a_new_source_does_not_count_as_loss() -> None:
    tracker = track([1, 2, 3])

    tracker.add(np.array([900, 901], np.uint16), np.full(2, 2, np.uint32))

    assert (tracker.lost, tracker.packets) == (0, 5)
    assert tracker.reception == Reception(ssrc=2, highest=901, expected=2, received=2)


def test_a_new_source_may_go_on_by_the_numbers_of_the_one_before() -> None:
    tracker = track([1, 2, 4])

    tracker.add(np.array([5, 6], np.uint16), np.full(2, 2, np.uint32))

    assert (tracker.lost, tracker.packets) == (1, 5)
    assert tracker.reception == Reception(ssrc=2, highest=6, expected=2, received=2)


def test_packets_lie_by_their_timestamps_across_the_wrap() -> None:
    numbers = list(range(65530, 65546))
    stamps = [2**32 - 800 + 160 * index for index in range(16)]

    positions = place(Timeline(8000), numbers, paced(numbers), timestamps=stamps)

    assert positions == [160 * index for index in range(16)]


def test_a_packet_that_came_too_early_does_not_push_the_first_ones_out() -> None:
    line = Timeline(8000)

    assert place(line, [12, 10, 11, 13], [0, 0.001, 0.002, 0.02]) == [320, 0, 160, 480]
    assert line.origin_ns == -40_000_000


def test_a_gap_of_lost_packets_keeps_its_length() -> None:
    assert place(Timeline(8000), [1, 2, 52], [0, 0.02, 1.02])[-1] == 51 * 160


def test_a_network_that_stood_still_does_not_stretch_the_line() -> None:
    numbers = list(range(60))
    arrivals = paced(numbers[:10]) + [3.2 + 0.0001 * index for index in range(50)]

    line = Timeline(8000)

    assert place(line, numbers, arrivals) == [160 * one for one in numbers]
    assert line.discontinuities == 0


def test_a_clock_that_stood_still_on_hold_leaves_the_hold_on_the_line() -> None:
    numbers = list(range(60))
    arrivals = paced(numbers[:10]) + paced(numbers[10:], 10.18)

    line = Timeline(8000)
    positions = place(line, numbers, arrivals)

    assert positions[10] == pytest.approx(10.18 * 8000, abs=160)
    assert line.discontinuities == 1


def test_a_sender_that_starts_anew_goes_on_by_the_time_that_passed() -> None:
    line = Timeline(8000)
    place(line, [1, 2, 3], paced([1, 2, 3]))

    positions = place(line, [500, 501], [5.0, 5.02], timestamps=[99, 259], ssrc=2)

    assert positions == [40000, 40160]


def test_a_pause_that_the_sender_did_not_count_is_counted() -> None:
    line = Timeline(8000)
    place(line, [1, 2, 3], paced([1, 2, 3]))

    positions = place(line, [4, 5], [30.0, 30.02], interrupted=True)

    assert positions == [240000, 240160]


def call(length_s: float, *, start_s: float = 0.0) -> list[int]:
    """Sequence numbers of packets of 20 ms."""
    first = round(start_s / 0.02)
    return list(range(first, first + round(length_s / 0.02)))


def test_two_sources_at_once_share_the_line_and_do_not_lengthen_it() -> None:
    line = Timeline(8000)

    for number in call(10):
        at = 0.02 * number
        place(line, [number], [at], ssrc=1)
        place(line, [7000 + number], [at + 0.001], timestamps=[5_000 + 160 * number], ssrc=2)

    assert line.end == pytest.approx(10 * 8000, abs=320)


def test_packets_of_strangers_move_nobody_elses() -> None:
    line = Timeline(8000)
    heard: list[int] = []

    for number in call(10):
        heard += place(line, [number], [0.02 * number], ssrc=1)
        if number % 5 == 4:
            place(line, [3], [0.02 * number + 0.01], timestamps=[77], ssrc=1000 + number)

    assert heard == [160 * one for one in call(10)]
    assert line.end <= 10 * 8000 + 160


def test_a_hundred_handovers_leave_the_call_its_length() -> None:
    line = Timeline(8000)

    for turn in range(100):
        numbers = call(1.0, start_s=turn)
        arrivals = [0.02 * one + 0.004 * (turn % 3) for one in numbers]
        stamps = [999_983 * turn + 160 * one for one in numbers]
        place(line, numbers, arrivals, timestamps=stamps, ssrc=turn)

    assert line.end == pytest.approx(100 * 8000, abs=160)


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 15)), min_size=2, max_size=60))
def test_sources_that_come_in_one_batch_are_told_apart(packets: list[tuple[int, int]]) -> None:
    sources = np.array([ssrc for ssrc, _ in packets], np.uint32)
    numbers = np.arange(len(packets))
    arrivals = numbers * 20_000_000 + np.array([late for _, late in packets]) * 1_000_000

    positions = Timeline(8000).place(
        (numbers * 160 + sources * 999_983).astype(np.uint32),
        numbers.astype(np.uint16),
        sources,
        arrivals,
        np.full(len(packets), 160),
    )

    for ssrc in np.unique(sources):  # by its timestamps, however late a packet was
        own = sources == ssrc
        assert len(set(positions[own] - 160 * numbers[own])) == 1


@pytest.mark.parametrize("step_s", [-7200.0, 48 * 3600.0], ids=["back", "ahead"])
def test_a_clock_that_was_set_leaves_the_call_its_length(step_s: float) -> None:
    line = Timeline(8000)
    place(line, call(5), paced(call(5)))
    numbers = call(5, start_s=5)

    place(line, numbers, [0.02 * one + step_s for one in numbers])

    assert line.end == pytest.approx(10 * 8000, abs=160)


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=80, unique=True),
    st.integers(0, 79),
)
def test_orderly_senders_are_placed_the_same_however_they_are_batched(
    numbers: list[int], cut: int
) -> None:
    numbers = sorted(numbers)
    arrivals = [0.02 * one for one in numbers]
    whole = place(Timeline(8000), numbers, arrivals)
    line = Timeline(8000)
    parts = place(line, numbers[:cut], arrivals[:cut]) + place(line, numbers[cut:], arrivals[cut:])

    assert parts == whole == [160 * (one - numbers[0]) for one in numbers]


@pytest.mark.parametrize("name", ["PCMU", "PCMA"])
def test_g711_survives_a_round_trip_within_its_precision(name: str) -> None:
    pcm = tone(440, 0.1)

    back = decode_g711(name, encode_g711(name, pcm))

    error = back.astype(np.float64) - pcm
    assert np.sqrt((error**2).mean()) < 0.01 * np.sqrt((pcm.astype(np.float64) ** 2).mean()) * 2
    assert encode_g711(name, back) == encode_g711(name, pcm)


def test_a_tone_is_as_many_packets_as_it_is_long() -> None:
    assert len(packets(tone(440, 1.0))) == 50
