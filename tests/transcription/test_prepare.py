"""What a recogniser is given: the speech of a leg, by the real detector, at its own rate."""

import asyncio
import struct
import sys
import threading
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soxr

from harness.calls import SAMPLE
from harness.rtp import read_wav, tone
from siprec_bridge.provider import AudioFile, Job
from siprec_bridge.transcript import Segment, Transcript
from siprec_bridge.transcription import Preparation, SpeechOptions
from siprec_bridge.transcription.speech import Frames, Pcm

Samples = npt.NDArray[np.int16]
RATE = 8000


def voice() -> Samples:
    """Bob's first sentence, 2.4 s, without the silence around it."""
    rate, pcm = read_wav(SAMPLE / "bob.wav")
    assert rate == RATE
    return pcm[round(5.27 * RATE) : round(7.67 * RATE)]


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.int16)


def leg(folder: Path, *parts: Samples, rate: int = RATE, key: str = "1") -> AudioFile:
    pcm = np.concatenate(parts)
    if rate != RATE:
        pcm = soxr.resample(pcm, RATE, rate)
    path = folder / f"leg-{key}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return AudioFile(key, path, len(pcm) / rate)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 8000), (16000, 16000), (16000, 8000)])
async def test_speech_is_kept_silence_is_cut_and_times_come_back(
    tmp_path: Path, rate: int, wanted: int
) -> None:
    audio = leg(tmp_path, silence(20), voice(), silence(30), voice(), silence(10), rate=rate)
    preparation = Preparation(wanted, SpeechOptions())

    ready = await preparation.prepare(Job("a", (audio,)), tmp_path / "ready")
    (sent,) = ready.job.audio
    own_rate, pcm = read_wav(sent.path)

    assert own_rate == wanted
    assert len(pcm) / wanted == pytest.approx(sent.duration, abs=1e-3)
    assert 5.0 < sent.duration < 8.0
    half = sent.duration / 2
    heard = Transcript(
        segments=(
            Segment(text="one", start=half - 1.5, end=half - 1),
            Segment(text="two", start=half + 1, end=half + 1.5),
        )
    )
    one, two = ready.restore({"1": heard})["1"].segments
    assert 20 < one.start < one.end < 22.6
    assert 52.3 < two.start < two.end < 55


async def test_every_sample_of_a_voice_is_sent(tmp_path: Path) -> None:
    audio = leg(tmp_path, silence(20), voice(), silence(20))
    loud = np.flatnonzero(np.abs(voice().astype(int)) > 200)
    spoken = voice()[loud[0] : loud[-1] + 1]

    ready = await Preparation(RATE, SpeechOptions()).prepare(Job("a", (audio,)), tmp_path / "r")
    _, sent = read_wav(ready.job.audio[0].path)

    assert spoken.tobytes() in sent.tobytes()
    assert len(sent) < len(spoken) + RATE


async def test_what_is_no_speech_is_not_sent_at_all(tmp_path: Path) -> None:
    noise = (np.random.default_rng(1).standard_normal(RATE * 10) * 60).astype(np.int16)
    ring = np.concatenate([tone(425, 1.0), silence(4)] * 3)
    legs = (
        leg(tmp_path, silence(10), key="1"),
        leg(tmp_path, noise, key="2"),
        leg(tmp_path, ring, key="3"),
        leg(tmp_path, silence(5), voice(), silence(5), key="4"),
    )

    ready = await Preparation(RATE, SpeechOptions()).prepare(Job("a", legs), tmp_path / "ready")

    assert [one.key for one in ready.job.audio] == ["4"]
    heard = ready.restore({"4": Transcript(language="en")})
    assert {key: one.speech for key, one in heard.items() if key != "4"} == {
        "1": 0.0, "2": 0.0, "3": 0.0,
    }  # fmt: skip
    assert heard["4"].speech == pytest.approx(2.4, abs=0.5)


async def test_a_leg_that_is_all_speech_is_sent_as_it_is(tmp_path: Path) -> None:
    audio = leg(tmp_path, voice(), voice())

    ready = await Preparation(RATE, SpeechOptions()).prepare(Job("a", (audio,)), tmp_path / "ready")

    assert ready.job.audio == (audio,)


async def test_without_a_detector_whole_legs_are_sent(tmp_path: Path) -> None:
    audio = leg(tmp_path, silence(5))

    ready = await Preparation(RATE).prepare(Job("a", (audio,)), tmp_path / "ready")

    assert (ready.job.audio, ready.maps) == ((audio,), {})


async def test_an_empty_file_and_one_that_is_cut_off_are_silence_and_speech(tmp_path: Path) -> None:
    empty = leg(tmp_path, silence(0), key="1")
    short = leg(tmp_path, silence(5), voice(), silence(10), key="2")
    short.path.write_bytes(short.path.read_bytes()[: 44 + 2 * round(7.4 * RATE)])

    ready = await Preparation(RATE, SpeechOptions()).prepare(
        Job("a", (empty, short)), tmp_path / "ready"
    )

    (sent,) = ready.job.audio
    assert sent.key == "2"
    assert len(read_wav(sent.path)[1]) > 2 * RATE


async def test_what_is_no_wav_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "leg.wav"
    path.write_bytes(b"RIFF of another kind")

    with pytest.raises(OSError, match=r"leg\.wav is no WAV file"):
        await Preparation(RATE, SpeechOptions()).prepare(
            Job("a", (AudioFile("1", path, 1.0),)), tmp_path / "ready"
        )


async def test_ten_hours_take_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "leg.wav"
    size = 2 * 36_000 * RATE
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form
    with path.open("wb") as raw:  # all but the voice is a hole
        raw.write(head + struct.pack("<4sI", b"data", size))
        raw.seek(44 + size // 2)
        raw.write(voice().tobytes())
        raw.truncate(44 + size)
    preparation = Preparation(RATE, SpeechOptions())
    tracemalloc.start()
    try:
        ready = await preparation.prepare(
            Job("a", (AudioFile("1", path, 36_000.0),)), tmp_path / "ready"
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    ((start, end),) = ready.maps["1"].pieces
    assert start / RATE == pytest.approx(18_000 - 0.4, abs=0.3)
    assert end / RATE == pytest.approx(18_002.4 + 0.4, abs=0.3)
    assert peak < 40e6  # the audio is 576 MB; its frames' figures are 9


async def test_a_preparation_that_is_cancelled_has_ended_when_it_says_so(tmp_path: Path) -> None:
    asked = threading.Event()

    class Slow:
        sample_rate, frame = RATE, 256

        def __call__(self, frames: Pcm) -> Frames:
            asked.set()
            return np.zeros(len(frames), np.float32)

        def reset(self) -> None:
            pass

    path = leg(tmp_path, *[tone(440, 60.0)] * 60).path
    preparation = Preparation(RATE, SpeechOptions(), Slow)
    task = asyncio.create_task(
        preparation.prepare(Job("a", (AudioFile("1", path, 3600.0),)), tmp_path / "ready")
    )
    await asyncio.to_thread(asked.wait, 10)

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert not any("prepare" in one.name and _works(one) for one in threading.enumerate())


def _works(thread: threading.Thread) -> bool:
    """Whether a pool's thread is at something: an idle one waits for its queue."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and "prepare.py" in frame.f_code.co_filename
