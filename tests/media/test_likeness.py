"""Which legs are the same audio, by their levels and samples."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.rtp import Pcm, tone
from siprec_bridge.media.coverage import Levels
from siprec_bridge.media.likeness import Listened, same_audio

RATE = 8000


def speech(seconds: float, seed: int) -> Pcm:
    """Noise in words of half a second, each as loud as it likes, with pauses."""
    random = np.random.default_rng(seed)
    size = round(seconds * RATE)
    loudness = random.integers(0, 2, size // 4000 + 1) * random.uniform(0.3, 1.0, size // 4000 + 1)
    loudness[0] = 1.0
    return as_pcm(random.normal(0, 3000, size) * np.repeat(loudness, 4000)[:size])


def said_by_another(words: Pcm, seed: int) -> Pcm:
    """The same turns, as loud, in another voice."""
    return as_pcm(words * np.random.default_rng(seed).choice((-1, 1), len(words)))


def as_pcm(samples: npt.NDArray[Any]) -> Pcm:
    return samples.astype(np.int16)


class Room:
    """Where legs lie as a session's finishing leaves them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def leg(self, pcm: Pcm, *, started: float = 0.0, rate: int = RATE) -> Listened:
        """One that says to be of this rate."""
        self._count += 1
        path = self._folder / f"{self._count}.pcm"
        path.write_bytes(pcm.astype("<i2").tobytes())
        levels = Levels(RATE)
        levels.take(pcm)
        return Listened(levels.cells, {rate: path}, round(started * 1e9))

    def same(self, *legs: Listened) -> bool:
        """Whether two are the same, whichever comes first."""
        (forth, back) = (same_audio(one, other) for one, other in permutations(legs))
        assert forth == back
        return forth


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.mark.parametrize(("late", "same"), [(0.0, True), (0.3, True), (-0.4, True), (0.8, False)])
def test_one_that_was_forked_later_is_the_same_from_there_on(
    room: Room, late: float, same: bool
) -> None:
    voice = speech(15.0, 1)

    whole = room.leg(voice)
    forked = room.leg(voice[2 * RATE :], started=2.0 + late)

    assert room.same(whole, forked) is same


@pytest.mark.parametrize(("weaker_db", "same"), [(0, True), (5, True), (7, False), (15, False)])
def test_an_echo_is_weaker_and_not_the_same(room: Room, weaker_db: float, same: bool) -> None:
    voice = speech(12.0, 1)

    assert room.same(room.leg(voice), room.leg(as_pcm(voice * 10 ** (-weaker_db / 20)))) is same


def test_what_two_parties_hear_together_does_not_make_one_of_them(room: Room) -> None:
    announcement, talk = speech(2.0, 1), speech(12.0, 2)

    here = room.leg(np.concatenate((announcement, talk)))
    there = room.leg(np.concatenate((announcement, said_by_another(talk, 3))))

    assert not room.same(here, there)


def test_the_same_music_in_most_of_a_call_does_not_either(room: Room) -> None:
    music = tone(440, 12.0) // 4

    here, there = (room.leg(np.concatenate((music, speech(6.0, seed)))) for seed in (1, 2))

    assert not room.same(here, there)


def test_what_is_as_loud_all_the_time_tells_nothing(room: Room) -> None:
    steady = np.tile(tone(400, 1.0), 12)

    assert not room.same(room.leg(steady), room.leg(speech(12.0, 1)))
    assert not room.same(room.leg(steady), room.leg(steady))


@pytest.mark.parametrize(("seconds", "same"), [(1.9, False), (2.1, True)])
def test_a_word_or_two_are_too_little_to_tell(room: Room, seconds: float, same: bool) -> None:
    sound = np.zeros(12 * RATE, np.int16)
    sound[: round(seconds * RATE)] = np.random.default_rng(1).normal(0, 3000, round(seconds * RATE))

    assert room.same(room.leg(sound), room.leg(sound)) is same
    assert not room.same(room.leg(sound), room.leg(np.zeros_like(sound)))


def test_so_are_two_seconds_in_which_both_were_there(room: Room) -> None:
    voice = speech(12.0, 1)

    assert not room.same(room.leg(voice), room.leg(voice[-15_000:], started=12.0 - 15_000 / RATE))
    assert not room.same(room.leg(voice), room.leg(voice, started=600.0))


def test_of_legs_without_a_rate_in_common_the_levels_decide(room: Room) -> None:
    voice = speech(12.0, 1)
    random = np.random.default_rng(7)
    nearly = as_pcm(voice * np.repeat(random.uniform(0.05, 1.2, 48), 2000))

    here = room.leg(voice)

    assert room.same(here, room.leg(said_by_another(voice, 5), rate=16000))
    assert not room.same(here, room.leg(nearly, rate=16000))
    assert not room.same(here, room.leg(speech(12.0, 2), rate=16000))
