"""Sender reports to a clock: what they tell, and what is not to be believed."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.rtp import SenderReport, SourceClock, Timeline, source_clock

SECOND = 1_000_000_000
NTP_S = 3_900_000_000  # since 1900
UNIX_S = 1_700_000_000  # our clock at the same moment: the two need not agree
HOUR = 3600


def reports(
    seconds: float,
    *,
    ppm: float = 0.0,
    first_timestamp: int = 0,
    every: float = 5.0,
    late: Callable[[], float] = lambda: 0.02,
    ssrc: int = 1,
) -> list[tuple[int, SenderReport]]:
    """What a source sends whose samples come so much too fast; `late` on the way to us."""
    found = []
    at = 0.0
    while at <= seconds:
        stamp = (first_timestamp + round(at * 8000 * (1 + ppm / 1e6))) % 2**32
        ntp = round((NTP_S + at) * 2**32)
        found.append((round((UNIX_S + at + late()) * SECOND), SenderReport(ssrc, ntp, stamp)))
        at += every
    return found


def clock(found: list[tuple[int, SenderReport]]) -> SourceClock:
    known = source_clock(found, [8000])
    assert isinstance(known, SourceClock), known
    return known


@given(
    ppm=st.floats(-500, 500),
    first=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**32),
)
def test_a_drifting_clock_is_known_to_milliseconds_over_an_hour(
    ppm: float, first: int, seed: int
) -> None:
    noise = random.Random(seed)
    known = clock(
        reports(
            HOUR, ppm=ppm, first_timestamp=first, late=lambda: 0.01 + noise.expovariate(1 / 0.03)
        )
    )

    for at in (0.0, 1234.5, HOUR):
        stamp = (first + round(at * 8000 * (1 + ppm / 1e6))) % 2**32
        told = known.when(stamp, round((UNIX_S + at) * SECOND)) / SECOND - UNIX_S
        assert told == pytest.approx(at + known.offset_ns / SECOND - (UNIX_S - NTP_S), abs=0.002)
    assert (1 / known.pace - 1) * 1e6 == pytest.approx(ppm, abs=0.1)


def test_two_reports_within_seconds_tell_when_but_not_how_fast() -> None:
    known = clock(reports(5, ppm=300))

    assert known.pace == 1.0
    assert known.when(8000, UNIX_S * SECOND) == pytest.approx((UNIX_S + 1.02) * SECOND, abs=2e6)


def test_a_single_report_is_enough_where_the_rate_is_known() -> None:
    (only,) = reports(0)

    assert isinstance(source_clock([only], [8000]), SourceClock)
    assert source_clock([only], [8000, 16000]) == "odd_rate"


def test_the_rate_is_found_among_those_of_the_codecs() -> None:
    known = source_clock(reports(60), [48000, 16000, 8000])

    assert isinstance(known, SourceClock)
    assert known.rate == 8000


def test_a_few_odd_reports_do_not_move_the_clock() -> None:
    found = reports(600)
    for at in (0, 40, 120):
        arrival, one = found[at]
        found[at] = (arrival, SenderReport(one.ssrc, one.ntp, one.timestamp + 3 * 8000))

    known = clock(found)

    stamp = 8000 * 300
    assert known.when(stamp, (UNIX_S + 300) * SECOND) == pytest.approx(
        (UNIX_S + 300.02) * SECOND, abs=2e6
    )


def shaken(found: list[tuple[int, SenderReport]], every: int) -> list[tuple[int, SenderReport]]:
    """One report of so many names a timestamp that is 0.2 s off."""
    return [
        (at, SenderReport(one.ssrc, one.ntp, one.timestamp + 1600 * (number % every == 1)))
        for number, (at, one) in enumerate(found)
    ]


def test_timestamps_are_known_also_when_they_began_anew() -> None:
    known = clock(reports(HOUR, first_timestamp=2**32 - 8000))

    for hours in (0.5, 100, 200, 400):
        at = hours * HOUR
        stamp = (2**32 - 8000 + round(at * 8000)) % 2**32
        told = known.when(stamp, round((UNIX_S + at + 60) * SECOND))
        assert told == pytest.approx((UNIX_S + at + 0.02) * SECOND, abs=2e6)


def stopped(found: list[tuple[int, SenderReport]], first: int) -> list[tuple[int, SenderReport]]:
    """Timestamps that stand still from this report on."""
    stamp = found[first][1].timestamp
    return found[:first] + [(at, SenderReport(1, one.ntp, stamp)) for at, one in found[first:]]


def test_timestamps_may_stand_still_for_a_few_reports() -> None:
    known = clock(stopped(reports(120), 20))

    assert known.pace == 1.0
    assert known.when(8000 * 60, UNIX_S * SECOND) == pytest.approx(
        (UNIX_S + 60.02) * SECOND, abs=2e6
    )


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ([(UNIX_S * SECOND, SenderReport(1, 0, 5))] * 3, "no_time"),
        (reports(60)[:-1] + reports(120, first_timestamp=9_000_000)[12:], "jumps"),
        (reports(300, ppm=5000), "odd_rate"),
        ([(at + (at > (UNIX_S + 60) * SECOND) * HOUR * SECOND, it) for at, it in reports(120)],
         "jumps"),
        ([(at + (at > (UNIX_S + 60) * SECOND) * 3 * SECOND // 5, it) for at, it in reports(120)],
         "jumps"),
        (shaken(reports(600), every=3), "jumps"),
        (stopped(reports(120), 4), "jumps"),
        (stopped(reports(120), 0), "jumps"),
    ],
)  # fmt: skip
def test_what_cannot_be_true_is_a_fault(found: list[tuple[int, SenderReport]], fault: str) -> None:
    assert source_clock(found, [8000]) == fault


@given(
    st.lists(
        st.tuples(st.integers(0, 2**62), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
        max_size=20,
    )
)
def test_any_reports_are_a_clock_or_a_fault(found: list[tuple[int, int, int]]) -> None:
    known = source_clock([(at, SenderReport(1, ntp, ts)) for at, ntp, ts in found], [8000, 48000])

    if isinstance(known, SourceClock):
        assert known.when(7, known.at_ns) - known.at_ns <= 2**32 * SECOND


def ends_of_an_hour(
    ppm: float, first_late: float, clocks: dict[int, SourceClock]
) -> tuple[float, float]:
    """When the first and the last packet of an hour were, in seconds, as they are placed."""
    line = Timeline(14_112_000, clocks)
    count = HOUR * 50
    numbers = np.arange(count, dtype=np.int64)
    sent = numbers * 0.02 / (1 + ppm / 1e6)  # so soon has a fast clock its next 160 samples
    jitter = np.random.default_rng(1).uniform(0.0, 0.03, count)
    jitter[0] = first_late
    arrivals = np.round((UNIX_S + sent + jitter) * SECOND).astype(np.int64)
    placed = [
        line.place(
            ((numbers[part] * 160) % 2**32).astype(np.uint32),
            (numbers[part] % 2**16).astype(np.uint16),
            np.ones(len(numbers[part]), np.uint32),
            arrivals[part],
            np.full(len(numbers[part]), 160 * 1764, np.int64),
            rtp_clock=8000,
        )
        for part in (slice(at, at + 5000) for at in range(0, count, 5000))
    ]
    assert line.origin_ns is not None
    origin = line.origin_ns / SECOND - UNIX_S
    first, last = int(placed[0][0]), int(placed[-1][-1])
    return origin + first / 14_112_000, origin + last / 14_112_000 - float(sent[-1])


def test_legs_whose_clocks_differ_stay_together_for_an_hour_whatever_the_jitter() -> None:
    slow = clock(reports(HOUR))
    fast = clock(reports(HOUR, ppm=50, late=lambda: 0.05)).shifted(slow.offset_ns)

    one = ends_of_an_hour(0, 0.0, {1: slow})
    other = ends_of_an_hour(50, 0.3, {1: fast})
    by_arrival = ends_of_an_hour(50, 0.3, {})

    assert one[0] == pytest.approx(other[0], abs=0.002)
    assert one[1] == pytest.approx(other[1], abs=0.002)
    assert by_arrival[1] - one[1] > 0.15
