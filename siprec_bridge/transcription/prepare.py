"""Audio as a provider wants it: mono 16-bit WAV at its sample rate."""

import asyncio
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr

from siprec_bridge.provider import AudioFile

_CHUNK = 1 << 18


async def prepare(audio: AudioFile, sample_rate: int, folder: Path) -> AudioFile:
    """The file itself where it fits, else a resampled copy in `folder`. Raises OSError."""
    return await asyncio.to_thread(_prepare, audio, sample_rate, folder)


def _prepare(audio: AudioFile, sample_rate: int, folder: Path) -> AudioFile:
    try:
        with wave.open(str(audio.path)) as source:
            rate = source.getframerate()
            if rate == sample_rate:
                return audio
            copy = folder / audio.path.name
            resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="int16")
            with wave.open(str(copy), "wb") as target:
                target.setnchannels(1)
                target.setsampwidth(2)
                target.setframerate(sample_rate)
                while True:
                    pcm = np.frombuffer(source.readframes(_CHUNK), "<i2").astype(np.int16)
                    last = len(pcm) < _CHUNK
                    out = resampler.resample_chunk(pcm, last=last)
                    target.writeframes(out.astype("<i2").tobytes())
                    if last:
                        break
    except (wave.Error, EOFError) as error:
        raise OSError(f"{audio.path.name} is no WAV file: {error}") from error
    return replace(audio, path=copy)
