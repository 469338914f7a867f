"""What is known of a line, cell by cell: how loud it is, and what of it is there."""

import numpy as np
import pytest

from harness.rtp import Pcm
from siprec_bridge.media.coverage import CELLS, Cells, Coverage, Levels

RATE = 8000
LOUD = np.full(60 * CELLS, 20, np.uint8)


def line(*received: tuple[float, float]) -> Coverage:
    """One of which this came: start and end, in seconds."""
    found = Coverage(RATE, 60.0)
    for start, end in received:
        found.receive(np.array([round(start * RATE)]), np.array([round((end - start) * RATE)]))
    return found


def sine(amplitude: float, offset: int = 0, rate: int = RATE) -> Pcm:
    """A second of whole periods in each cell."""
    angle = 2 * np.pi * 400 * np.arange(rate) / rate
    return np.round(offset + amplitude * np.sin(angle)).astype(np.int16)


def levels(pcm: Pcm, *, rate: int = RATE, piece: int = 1 << 20) -> Cells:
    found = Levels(rate)
    for start in range(0, len(pcm), piece):
        found.take(pcm[start : start + piece])
    return found.cells


@pytest.mark.parametrize(
    ("pcm", "decibels"),
    [
        (sine(16384), 9),
        (sine(16384, offset=8000), 9),  # what does not move is not heard
        (sine(100), 53),
        (sine(10), 73),
        (np.full(RATE, 1000, np.int16), 96),
        (np.zeros(RATE, np.int16), 96),
    ],
)
def test_a_level_is_in_decibels_below_full_scale(pcm: Pcm, decibels: int) -> None:
    assert levels(pcm).tolist() == [decibels] * CELLS


@pytest.mark.parametrize("piece", [1, 7, 80, 333])
@pytest.mark.parametrize("rate", [8000, 11025])
def test_levels_do_not_depend_on_the_pieces_in_which_audio_comes(rate: int, piece: int) -> None:
    random = np.random.default_rng(1)
    pcm = (random.normal(0, 1000, rate) * np.linspace(0, 1, rate)).astype(np.int16)

    assert len(levels(pcm, rate=rate)) == CELLS
    assert levels(pcm, rate=rate, piece=piece).tolist() == levels(pcm, rate=rate).tolist()


def test_around_a_hold_signalling_and_media_need_not_fit_to_the_moment() -> None:
    stretches = [(0.0, 2.0), (3.0, 5.0), (6.0, 8.0)]

    nearly = line((0.0, 1.85), (3.1, 4.85), (6.15, 8.0)).covered(stretches, LOUD)
    not_nearly = line((0.0, 1.5), (3.4, 5.0), (6.0, 8.0)).covered(stretches, LOUD)

    assert (nearly.gaps, nearly.longest_gap, nearly.late, nearly.early) == (0, 0.0, 0.0, 0.0)
    assert (not_nearly.gaps, not_nearly.longest_gap) == (2, 0.5)
    assert (not_nearly.late, not_nearly.early) == (0.0, 0.0)


def test_what_comes_after_all_was_not_left_out() -> None:
    here = line((2.0, 3.0))
    here.leave_out(0, 3 * RATE)
    here.receive(np.array([RATE // 2]), np.array([RATE // 4]))

    found = here.covered([(0.0, 3.0)], LOUD)

    assert (found.received, found.left_out, found.captured) == (1.25, 1.75, 3.0)


def test_stretches_before_the_first_packet_and_behind_the_last_have_nothing() -> None:
    stretches = [(-5.0, -3.0), (10.0, 12.0)]
    here = line((0.0, 1.0))

    found = here.covered(stretches, LOUD)

    assert (found.expected, found.captured, found.received, found.sound) == (4.0, 0.0, 0.0, 0.0)
    assert (found.late, found.early, found.gaps) == (2.0, 2.0, 0)
    assert here.gaps(stretches) == [(-5.0, 2.0), (10.0, 2.0)]


@pytest.mark.parametrize(
    ("stretch", "sound"), [((-1.0, 2.0), 1.0), ((0.5, 1.5), 0.5), ((0.0, 9.0), 1.0)]
)
def test_sound_is_what_was_received_and_is_loud(stretch: tuple[float, float], sound: float) -> None:
    loud_from_one_to_three = np.full(4 * CELLS, 70, np.uint8)
    loud_from_one_to_three[CELLS : 3 * CELLS] = 50

    assert line((0.0, 2.0)).covered([stretch], loud_from_one_to_three).sound == sound
