"""Covering parts of finished audio."""

import hashlib
import wave
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
import pytest

from siprec_bridge.media import FinishedAudio, FinishedLeg, silence
from siprec_bridge.media.audio_file import AudioFile

RATE = 8000
_START = datetime(2026, 5, 4, 12, tzinfo=UTC)
Form = Literal["wav", "flac"]


def finished(folder: Path, form: Form) -> FinishedAudio:
    """Two legs of four seconds, the second one a second later, and both in stereo."""
    noise = np.full(4 * RATE, 1000, np.int16)
    files, legs = [], []
    for index in (0, 1):
        with AudioFile(folder / f"s-{index}.{form}", 1, RATE) as file:
            file.write(noise)
        files.append(file.finished)
        legs.append(
            FinishedLeg(
                stream_id=f"s-{index}", index=index, label=str(index), file=f"s-{index}.{form}",
                started_at=_START + timedelta(seconds=index), duration=4.0, sample_rate=RATE,
                packets=1,
            )
        )  # fmt: skip
    with AudioFile(folder / f"s-stereo.{form}", 2, RATE) as both:
        both.write(np.full((5 * RATE, 2), 1000, np.int16))
    return FinishedAudio(
        tuple(legs), stereo=f"s-stereo.{form}", started_at=_START, duration=5.0,
        files=(*files, both.finished), form=form,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_part_of_one_party_is_silent_in_its_file_and_on_its_side(
    tmp_path: Path, form: Form
) -> None:
    before = finished(tmp_path, form)

    after = silence(tmp_path, before, {"1": [(1.0, 2.5)]})

    assert silent(samples(tmp_path / f"s-1.{form}")[:, 0]) == (1.0, 2.5)
    assert silent(samples(tmp_path / f"s-0.{form}")[:, 0]) is None
    both = samples(tmp_path / f"s-stereo.{form}")
    assert (silent(both[:, 0]), silent(both[:, 1])) == (None, (2.0, 3.5))
    assert len(both) == 5 * RATE
    for one in after.files:
        data = (tmp_path / one.name).read_bytes()
        assert (one.size, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert after.files[0] == before.files[0]


def test_a_part_beyond_the_end_covers_to_the_end_and_again_changes_nothing(tmp_path: Path) -> None:
    before = finished(tmp_path, "wav")

    once = silence(tmp_path, before, {"0": [(3.5, 9.0)]})
    twice = silence(tmp_path, once, {"0": [(3.5, 9.0)]})

    assert silent(samples(tmp_path / "s-0.wav")[:, 0]) == (3.5, 4.0)
    assert twice == once


def test_a_third_party_is_on_both_sides(tmp_path: Path) -> None:
    before = finished(tmp_path, "wav")
    (tmp_path / "s-2.wav").write_bytes((tmp_path / "s-1.wav").read_bytes())
    third = replace(before.legs[1], index=2, label="2", file="s-2.wav")
    before = replace(before, legs=(*before.legs, third))

    silence(tmp_path, before, {"2": [(1.0, 2.5)]})

    both = samples(tmp_path / "s-stereo.wav")
    assert silent(samples(tmp_path / "s-2.wav")[:, 0]) == (1.0, 2.5)
    assert (silent(both[:, 0]), silent(both[:, 1])) == ((2.0, 3.5), (2.0, 3.5))


def test_where_nothing_is_to_be_covered_no_file_is_touched(tmp_path: Path) -> None:
    before = finished(tmp_path, "wav")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    assert silence(tmp_path, before, {"0": [], "7": [(1.0, 2.0)]}) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_a_beep_is_heard_where_the_speech_was(tmp_path: Path) -> None:
    before = finished(tmp_path, "wav")

    silence(tmp_path, before, {"0": [(1.0, 2.0)]}, "beep")

    part = samples(tmp_path / "s-0.wav")[RATE : 2 * RATE, 0].astype(float)
    assert np.argmax(np.abs(np.fft.rfft(part))) == 1000
    assert samples(tmp_path / "s-0.wav")[RATE - 1, 0] == 1000


def silent(audio: npt.NDArray[np.int16]) -> tuple[float, float] | None:
    """From when to when all samples are zero."""
    (zeros,) = np.nonzero(audio == 0)
    if not len(zeros):
        return None
    assert len(zeros) == zeros[-1] - zeros[0] + 1
    return float(zeros[0] / RATE), float((zeros[-1] + 1) / RATE)


def samples(path: Path) -> npt.NDArray[np.int16]:
    """All samples, shape (n, channels)."""
    if path.suffix == ".wav":
        with path.open("rb") as raw, wave.open(raw) as file:
            data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            return data.reshape(-1, file.getnchannels())
    with av.open(str(path)) as container:
        channels = container.streams.audio[0].channels
        return np.concatenate(
            [frame.to_ndarray().reshape(-1, channels) for frame in container.decode(audio=0)]
        )


def test_opus_is_silent_there_too_and_keeps_its_rate_and_length(tmp_path: Path) -> None:
    seconds = np.arange(4 * RATE) / RATE
    tone = (8000 * np.sin(2 * np.pi * 440 * seconds)).astype(np.int16)
    with AudioFile(tmp_path / "s-0.opus", 1, RATE) as file:
        file.write(tone)
    leg = FinishedLeg(
        stream_id="s-0", index=0, label="0", file="s-0.opus", started_at=_START, duration=4.0,
        sample_rate=RATE, packets=1,
    )  # fmt: skip
    before = FinishedAudio((leg,), duration=4.0, files=(file.finished,), form="opus")

    after = silence(tmp_path, before, {"0": [(1.0, 2.0)]})

    with av.open(str(tmp_path / "s-0.opus")) as container:
        (stream,) = container.streams.audio
        head = stream.codec_context.extradata or b""
        heard = np.concatenate([one.to_ndarray()[0] for one in container.decode(stream)])
    assert int.from_bytes(head[12:16], "little") == RATE
    assert len(heard) == 4 * 48_000  # what Opus decodes to
    loud = [float(np.abs(part).max()) for part in np.split(heard, 40)]  # of 0.1 s
    assert max(loud[11:19]) < 0.001
    assert min(loud[1:9] + loud[22:39]) > 0.1
    assert after.files[0].sha256 == hashlib.sha256((tmp_path / "s-0.opus").read_bytes()).hexdigest()
