"""Jitter as RFC 3550 A.8 computes it packet by packet, and MOS as G.107's tables have it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.rtp import Arrivals, Jitter, arrivals, mean_opinion

MS = 1_000_000


def seen(
    at_ms: list[float], timestamp: list[int], ssrc: list[int] | None = None, rate: int = 8000
) -> Arrivals:
    count = len(at_ms)
    return arrivals(
        np.array([1_700_000_000_000 * MS + round(one * MS) for one in at_ms], np.int64),
        (np.array(timestamp, np.int64) % 2**32).astype(np.uint32),
        np.array(ssrc or [7] * count, np.uint32),
        np.full(count, float(rate)),
    )


def jitter_of(found: Arrivals, sweeps: list[int], rate: int = 8000) -> Jitter:
    jitter, start = Jitter(), 0
    for count in sweeps:
        jitter.add(found, np.arange(start, start + count), rate)
        start += count
    return jitter


def by_the_rfc(at_ms: list[float], timestamp: list[int]) -> float:
    """A.8, word by word."""
    jitter = 0.0
    transit = [at * 8 - stamp for at, stamp in zip(at_ms, timestamp, strict=True)]
    for before, now in itertools.pairwise(transit):
        jitter += (1 / 16) * (abs(now - before) - jitter)
    return jitter


@given(st.lists(st.integers(0, 60), min_size=2, max_size=60), st.integers(1, 59))
def test_it_is_the_rfc_s_however_the_packets_fall_into_sweeps(late: list[int], cut: int) -> None:
    at = [20.0 * number + extra for number, extra in enumerate(late)]
    stamps = [160 * number for number in range(len(late))]
    cut = min(cut, len(late) - 1)

    jitter = jitter_of(seen(at, stamps), [cut, len(late) - cut])

    assert jitter.now == pytest.approx(by_the_rfc(at, stamps), abs=0.05)


def test_packets_at_an_even_pace_have_none_across_the_wrap_of_their_time_stamps() -> None:
    stamps = [2**32 - 800 + 160 * number for number in range(20)]

    jitter = jitter_of(seen([20.0 * number for number in range(20)], stamps), [7, 13])

    assert jitter.now == pytest.approx(0, abs=0.01)
    assert jitter.mean == pytest.approx(0, abs=0.01)


def test_an_event_and_a_jump_and_another_source_are_no_jitter() -> None:
    at = [20.0 * number for number in range(12)]
    event = [0, 160, 320, 320, 320, 800, 960, 1120, 500_000, 500_160, 9, 169]
    sources = [7] * 10 + [8] * 2

    jitter = jitter_of(seen(at, event, sources), [12])

    assert jitter.now == pytest.approx(0, abs=0.01)


def test_packets_left_out_between_do_not_disturb() -> None:
    at, stamps = [0, 20, 25, 40, 60], [0, 160, 99_999, 320, 480]
    jitter = Jitter()

    jitter.add(seen([float(one) for one in at], stamps), np.array([0, 1, 3, 4]), 8000)

    assert jitter.now == pytest.approx(0, abs=0.01)


def test_one_packet_tells_nothing() -> None:
    assert jitter_of(seen([0.0], [0]), [1]).mean is None


@pytest.mark.parametrize(
    ("codec", "loss", "expected"),
    [
        ("PCMU", 0.0, 4.41),
        ("PCMA", 0.01, 3.83),
        ("PCMA", 0.05, 2.17),
        ("PCMU", 1.0, 1.0),
        ("G729", 0.0, 4.10),
        ("G729", 0.02, 3.78),
        ("G723", 0.0, 3.95),
    ],
)
def test_mos_follows_codec_and_loss(codec: str, loss: float, expected: float) -> None:
    assert mean_opinion(codec, loss) == pytest.approx(expected, abs=0.01)


def test_a_codec_without_published_impairment_has_no_mos() -> None:
    assert mean_opinion("OPUS", 0.0) is None
