"""Audio as a provider wants it: mono 16-bit WAV at its sample rate."""

import asyncio
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soxr

from siprec_bridge.provider import AudioFile

_CHUNK = 1 << 18

Pcm = npt.NDArray[np.int16]


async def prepare(audio: AudioFile, sample_rate: int, folder: Path) -> AudioFile:
    """The file itself where it fits, else a copy of it in `folder` that does. Raises OSError."""
    return await asyncio.to_thread(_prepare, audio, sample_rate, folder)


def _prepare(audio: AudioFile, sample_rate: int, folder: Path) -> AudioFile:
    copy = folder / f"{audio.path.stem}.wav"
    try:
        if audio.path.suffix == ".flac":
            with av.open(str(audio.path), "r", format="flac") as container:
                _copy(_decoded(container), container.streams.audio[0].rate, copy, sample_rate)
        else:
            with wave.open(str(audio.path)) as source:
                rate = source.getframerate()
                if rate == sample_rate:
                    return audio
                _copy(_read(source), rate, copy, sample_rate)
    except (wave.Error, EOFError) as error:
        raise OSError(f"{audio.path.name} is no WAV file: {error}") from error
    except av.FFmpegError as error:
        raise OSError(f"{audio.path.name} is no FLAC file: {error}") from error
    return replace(audio, path=copy)


def _copy(chunks: Iterator[Pcm], rate: int, copy: Path, sample_rate: int) -> None:
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="int16")
    with wave.open(str(copy), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(sample_rate)
        for pcm in chunks:
            out = pcm if rate == sample_rate else resampler.resample_chunk(pcm)
            target.writeframes(out.astype("<i2").tobytes())
        if rate != sample_rate:
            rest = resampler.resample_chunk(np.zeros(0, np.int16), last=True)
            target.writeframes(rest.astype("<i2").tobytes())


def _read(source: wave.Wave_read) -> Iterator[Pcm]:
    while data := source.readframes(_CHUNK):
        yield np.frombuffer(data, "<i2").astype(np.int16)


def _decoded(container: "av.container.InputContainer") -> Iterator[Pcm]:
    for frame in container.decode(audio=0):
        yield frame.to_ndarray()[0]
