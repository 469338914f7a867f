"""Parts of finished audio made silent, or a tone: nobody shall hear what was taken out of the text.

Files are written anew as a whole, and can be again: a part that is silent stays so.
"""

import itertools
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt

from siprec_bridge.media.audio_file import AudioFile, FinishedFile
from siprec_bridge.media.finish import FinishedAudio, FinishedLeg

Cover = Literal["silence", "beep"]
Spans = Sequence[tuple[float, float]]  # start and end, in seconds of a leg's file

_CHUNK = 1 << 16  # samples
_BEEP_HZ = 1000.0
_BEEP_LEVEL = 1600  # of 32767: about -26 dBov, as loud as speech


def silence(
    folder: Path, audio: FinishedAudio, spans: Mapping[str, Spans], cover: Cover = "silence"
) -> FinishedAudio:
    """Cover these parts of legs, by label, in their files and in the stereo file.

    Returns the audio with its new checksums. Raises OSError, and ValueError for a file that is no
    audio; what was done by then stays done.
    """
    files = {one.name: one for one in audio.files}
    for leg in audio.legs:
        if spans.get(leg.label):
            part = [(start, end, slice(0, 1)) for start, end in spans[leg.label]]
            files[leg.file] = _cover(folder / leg.file, part, cover)
    if audio.stereo is not None and any(spans.get(leg.label) for leg in audio.legs):
        files[audio.stereo] = _cover(folder / audio.stereo, _in_stereo(audio, spans), cover)
    return replace(audio, files=tuple(files.values()))


def _in_stereo(
    audio: FinishedAudio, spans: Mapping[str, Spans]
) -> list[tuple[float, float, slice]]:
    """The first leg is on the left, the second on the right, further ones on both."""
    parts = []
    for number, leg in enumerate(audio.legs):
        channels = slice(number, number + 1) if number < 2 else slice(0, 2)
        offset = _offset(audio, leg)
        parts += [
            (start + offset, end + offset, channels) for start, end in spans.get(leg.label, ())
        ]
    return parts


def _offset(audio: FinishedAudio, leg: FinishedLeg) -> float:
    begun = audio.started_at or leg.started_at
    return (leg.started_at - begun).total_seconds()


def _cover(path: Path, parts: Sequence[tuple[float, float, slice]], cover: Cover) -> FinishedFile:
    try:
        return _written(path, parts, cover)
    except (wave.Error, EOFError, av.FFmpegError) as error:
        raise ValueError(f"{path.name} is no audio: {error}") from error


def _written(path: Path, parts: Sequence[tuple[float, float, slice]], cover: Cover) -> FinishedFile:
    rate, channels = _form(path)
    at = 0
    with AudioFile(path, channels, rate) as file:
        for chunk in _read(path, channels, rate):
            for start, end, which in parts:
                first = max(0, round(start * rate) - at)
                last = min(len(chunk), round(end * rate) - at)
                if first < last:
                    chunk[first:last, which] = _sound(at + first, at + last, rate, cover)
            file.write(chunk if channels > 1 else chunk[:, 0])
            at += len(chunk)
    return file.finished


def _sound(first: int, last: int, rate: int, cover: Cover) -> npt.NDArray[np.int16]:
    """What stands in the place of speech, shape (n, 1)."""
    if cover == "silence":
        return np.zeros((last - first, 1), np.int16)
    phase = np.arange(first, last) * (2 * np.pi * _BEEP_HZ / rate)
    tone: npt.NDArray[np.int16] = (_BEEP_LEVEL * np.sin(phase)).astype(np.int16)
    return tone[:, None]


def _form(path: Path) -> tuple[int, int]:
    """Rate and channels."""
    if path.suffix == ".wav":
        with path.open("rb") as raw, wave.open(raw) as file:
            return file.getframerate(), file.getnchannels()
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        head = stream.codec_context.extradata
        if path.suffix == ".opus" and head is not None:  # what it was made from. RFC 7845 §5.1
            return int.from_bytes(head[12:16], "little"), stream.channels
        return stream.rate, stream.channels


def _read(path: Path, channels: int, rate: int) -> Iterator[npt.NDArray[np.int16]]:
    """The samples, shape (n, channels), to be written to."""
    if path.suffix == ".wav":
        with path.open("rb") as raw, wave.open(raw) as file:
            while data := file.readframes(_CHUNK):
                yield np.frombuffer(data, "<i2").astype(np.int16).reshape(-1, channels)
        return
    resampler = av.AudioResampler("s16", "mono" if channels == 1 else "stereo", rate)
    with av.open(str(path)) as container:
        for frame in itertools.chain(container.decode(audio=0), [None]):
            for one in resampler.resample(frame):
                yield one.to_ndarray().reshape(-1, channels).astype(np.int16)
