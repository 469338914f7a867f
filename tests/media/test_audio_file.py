"""Finished files: whole or not at all, in any format, and readable by those who come after."""

import errno
import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
import soxr

from harness.calls import SAMPLE
from harness.disk import fill, small_disk
from harness.rtp import Pcm, packets, read_wav, tone
from siprec_bridge.media import RecordingFormat, finish_session
from siprec_bridge.media.audio_file import AudioFile
from siprec_bridge.provider import AudioFile as ProviderAudio
from siprec_bridge.provider import Job
from siprec_bridge.receiver.spool import RTP, SpoolHeader, SpoolWriter, _record
from siprec_bridge.sdp import Codec
from siprec_bridge.transcription.prepare import Preparation


def spool(folder: Path, pcm: Pcm, index: int) -> None:
    codecs = (Codec(0, "PCMU", 8000),)
    header = SpoolHeader(f"s-{index}", "s", index, str(index + 1), codecs, 0)
    writer = SpoolWriter(folder / f"s-{index}.spool", header)
    writer.write(
        [_record(RTP, 10**9 + number * 20_000_000, one) for number, one in enumerate(packets(pcm))]
    )
    writer.close()


def read_flac(path: Path) -> tuple[int, Pcm]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        pcm = np.concatenate(parts)
        return stream.rate, pcm if stream.channels == 1 else pcm.reshape(-1, stream.channels)


def test_flac_has_the_samples_of_wav_and_takes_its_place(tmp_path: Path) -> None:
    spool(tmp_path, tone(440, 3.0), 0)
    spool(tmp_path, tone(880, 2.0), 1)
    wav = finish_session(tmp_path, "s", 16000)
    names = [one.name for one in wav.files]
    samples = [read_wav(tmp_path / name) for name in names]

    flac = finish_session(tmp_path, "s", 16000, form="flac")

    assert [one.name for one in flac.files] == [name.replace(".wav", ".flac") for name in names]
    for one, (rate, pcm) in zip(flac.files, samples, strict=True):
        own_rate, own = read_flac(tmp_path / one.name)
        assert own_rate == rate
        assert np.array_equal(own, pcm)
        data = (tmp_path / one.name).read_bytes()
        assert (one.size, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert list(tmp_path.glob("*.wav")) == []
    assert flac.stereo == "s-stereo.flac"


def speech(samples: int, rate: int) -> Pcm:
    """Of the bundled sample."""
    own, pcm = read_wav(SAMPLE / "alice.wav")
    audio = soxr.resample(pcm[: 2 * own * samples // rate], own, rate)[:samples]
    return np.asarray(audio, np.int16)


def read_opus(path: Path) -> Pcm:
    """At 48 kHz, as decoders give it; shape (n,) or (n, channels)."""
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == "opus"
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
        pcm = np.concatenate(parts, axis=1).T
        return np.asarray((pcm * 32767).round().astype(np.int16).squeeze(), np.int16)


@pytest.mark.parametrize(
    ("rate", "samples"), [(8000, 24_037), (11_025, 20_000), (16_000, 24_037), (48_000, 60_001)]
)
def test_opus_is_as_long_as_what_was_written_and_nothing_in_it_is_moved(
    tmp_path: Path, rate: int, samples: int
) -> None:
    audio = speech(samples, rate)
    with AudioFile(tmp_path / "a.opus", 2, rate) as file:
        for start in range(0, samples, 1000):
            part = audio[start : start + 1000]
            file.write(np.stack([part, np.zeros_like(part)], 1))

    pcm = read_opus(tmp_path / "a.opus")

    assert len(pcm) == pytest.approx(samples * 48_000 / rate, abs=1)
    wanted = np.asarray(soxr.resample(audio, rate, 48_000), float)[: len(pcm)]
    here, there = (np.abs(pcm[:, side].astype(float)).mean() for side in (0, 1))
    assert there < here / 10  # parties stay apart
    own = pcm[: len(wanted), 0].astype(float)
    shifts = range(-480, 481, 24)  # half of a millisecond each
    alike = [float(np.corrcoef(own, np.roll(wanted, shift))[0, 1]) for shift in shifts]
    assert max(alike) > 0.8
    assert abs(shifts[alike.index(max(alike))]) <= 24


def test_opus_takes_little_room_and_the_place_of_wav(tmp_path: Path) -> None:
    spool(tmp_path, tone(440, 8.0), 0)
    spool(tmp_path, tone(880, 7.0), 1)
    wav = finish_session(tmp_path, "s", 16000)

    opus = finish_session(tmp_path, "s", 16000, form="opus")

    assert [one.name for one in opus.files] == ["s-0.opus", "s-1.opus", "s-stereo.opus"]
    assert (opus.stereo, opus.form) == ("s-stereo.opus", "opus")
    assert [one.duration for one in opus.legs] == [one.duration for one in wav.legs]
    assert [one.covered for one in opus.legs] == [one.covered for one in wav.legs]
    for one, two in zip(opus.files, wav.files, strict=True):
        data = (tmp_path / one.name).read_bytes()
        assert (one.size, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert one.size < two.size / 6  # of speech a tenth
    assert len(read_opus(tmp_path / "s-0.opus")) == 8 * 48_000
    assert list(tmp_path.glob("*.wav")) == []
    assert finish_session(tmp_path, "s", 16000, form="opus") == opus


@pytest.mark.parametrize("form", ["flac", "opus"])
def test_a_file_that_is_made_again_is_the_same(tmp_path: Path, form: RecordingFormat) -> None:
    spool(tmp_path, tone(440, 1.0), 0)
    first = finish_session(tmp_path, "s", 16000, form=form)
    (tmp_path / "s.audio.json").unlink()

    again = finish_session(tmp_path, "s", 16000, form=form)

    assert again == first


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("form", ["wav", "flac", "opus"])
async def test_a_recogniser_gets_wav_at_its_rate_from_any(
    tmp_path: Path, form: RecordingFormat, rate: int
) -> None:
    spool(tmp_path, tone(440, 2.0), 0)
    (leg,) = finish_session(tmp_path, "s", 16000, form=form).legs
    room = tmp_path / "room"
    room.mkdir()

    job = Job("j", (ProviderAudio("1", tmp_path / leg.file, leg.duration),))
    (ready,) = (await Preparation(rate).prepare(job, room)).job.audio

    got_rate, pcm = read_wav(ready.path)
    assert (ready.path.suffix, got_rate) == (".wav", rate)
    assert len(pcm) == pytest.approx(2 * rate, abs=2)
    assert int(np.abs(pcm.astype(int)).max()) > 14_000


async def test_what_is_no_flac_is_said_to_be_none(tmp_path: Path) -> None:
    broken = tmp_path / "s-0.flac"
    broken.write_bytes(b"fLaC, they said")

    with pytest.raises(OSError, match=r"s-0\.flac"):
        await Preparation(16000).prepare(
            Job("j", (ProviderAudio("1", broken, 1.0),)), tmp_path / "room"
        )


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.opus"])
def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, name: str, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f".{name}.part").symlink_to("/dev/full")
    noise = np.random.default_rng(1).integers(-9000, 9000, size).astype(np.int16)

    with pytest.raises(OSError, match="No space left"), AudioFile(tmp_path / name, 1, 8000) as file:
        file.write(noise)

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["wav", "flac", "opus"])
def test_wherever_a_disk_is_full_a_session_is_finished_or_not(
    tmp_path: Path, form: RecordingFormat, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes = []
    with small_disk(tmp_path / "disk", "1m") as disk:
        folder = disk / "s"
        folder.mkdir()
        spool(folder, tone(440, 1.0), 0)
        kept = folder / "s-0.spool"
        before = kept.read_bytes()
        for pages in range(0, 48, 3):
            others = fill(disk, leave=pages * 4096)
            try:
                audio = finish_session(folder, "s", 16000, form=form)
            except OSError as error:
                assert not (folder / "s.audio.json").exists()
                assert not list(folder.glob(".finishing*"))
                outcomes.append(errno.errorcode[error.errno or 0])
            else:
                for one in audio.files:
                    data = (folder / one.name).read_bytes()
                    assert (len(data), hashlib.sha256(data).hexdigest()) == (one.size, one.sha256)
                outcomes.append("finished")
            others.unlink()
            assert kept.read_bytes() == before
            for path in set(folder.iterdir()) - {kept}:
                path.unlink()

    assert set(outcomes) == {"ENOSPC", "finished"}
    assert outcomes == sorted(outcomes)
    assert capfd.readouterr().err == ""
