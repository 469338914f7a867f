"""Finished files: whole or not at all, in either format, and readable by those who come after."""

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest

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


def test_flac_that_is_made_again_is_the_same(tmp_path: Path) -> None:
    spool(tmp_path, tone(440, 1.0), 0)
    first = finish_session(tmp_path, "s", 16000, form="flac")
    (tmp_path / "s.audio.json").unlink()

    again = finish_session(tmp_path, "s", 16000, form="flac")

    assert again == first


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("form", ["wav", "flac"])
async def test_a_recogniser_gets_wav_at_its_rate_from_either(
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
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_full_disk_leaves_no_half_file(tmp_path: Path, name: str, size: int) -> None:
    (tmp_path / f".{name}.part").symlink_to("/dev/full")
    noise = np.random.default_rng(1).integers(-9000, 9000, size).astype(np.int16)

    with pytest.raises(OSError, match="No space left"), AudioFile(tmp_path / name, 1, 8000) as file:
        file.write(noise)

    assert list(tmp_path.iterdir()) == []
