"""From the spools of a session to its audio files: one WAV a leg, one stereo file.

Reads the session's folder and nothing else, so that it works after any crash; it can be repeated
and comes to the same files. Memory does not grow with the length of the call.
"""

import os
import shutil
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
from pydantic import TypeAdapter

from siprec_bridge.media.line import UNIT, Line
from siprec_bridge.media.spool import MalformedSpool, SpoolReader
from siprec_bridge.transcript import KeyPress

DtmfEvents = Literal["keep", "mask", "drop"]

_CHUNK = 1 << 18  # samples held at once
_ROOM = ".finishing-"
_LONGEST_LINE_S = 24 * 3600  # a time line beyond that is a broken clock, not a call
_LARGEST_WAV = (1 << 32) - 4096  # octets: a RIFF file has 32 bits for its length


@dataclass(frozen=True, slots=True)
class FinishedLeg:
    """One stream's WAV: mono, 16 bit, `sample_rate` Hz. `started_at` is its first sample's time.

    `foreign` counts packets of a payload type that is no voice, `undecoded` those that their codec
    refused. `codecs` are the names of what was heard, `native_rate` is the highest rate of these.
    `keys` are telephone keys; their times count from the first sample.
    """

    stream_id: str
    index: int
    label: str
    file: str
    started_at: datetime
    duration: float
    sample_rate: int
    packets: int
    discontinuities: int = 0
    foreign: int = 0
    undecoded: int = 0
    codecs: tuple[str, ...] = ()
    native_rate: int = 8000
    keys: tuple[KeyPress, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedAudio:
    """A session's files, by name within its folder. Streams without any voice have no leg.

    `damaged` names spools that could not be read, `dtmf` says what was done with telephone keys.
    """

    legs: tuple[FinishedLeg, ...]
    stereo: str | None = None
    started_at: datetime | None = None
    duration: float = 0.0
    damaged: tuple[str, ...] = ()
    dtmf: DtmfEvents = "keep"


_AUDIO = TypeAdapter(FinishedAudio)


def finish_session(
    folder: Path, session_id: str, sample_rate: int, dtmf: DtmfEvents = "mask"
) -> FinishedAudio:
    """Write the files of a session and return what they are. Raises OSError.

    `dtmf`: telephone keys are kept, written as `*`, or dropped.
    """
    summary = folder / f"{session_id}.audio.json"
    done = _already_done(summary, folder, sample_rate, dtmf)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)  # a session without streams has none
    for left in folder.glob(f"{_ROOM}*"):  # of a finisher that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_ROOM, dir=folder) as room:
        lines: list[Line] = []
        damaged: list[str] = []
        for spool in sorted(folder.glob("*.spool")):
            try:
                reader = SpoolReader(spool)
            except MalformedSpool:
                damaged.append(spool.name)
                continue
            line = Line(reader, Path(room), spool.stem, _LONGEST_LINE_S)
            line.fill()
            if line.packets:
                lines.append(line)
        lines.sort(key=lambda one: one.reader.header.index)
        legs = tuple(_write_leg(line, folder, session_id, sample_rate, dtmf) for line in lines)
        audio = FinishedAudio(legs, damaged=tuple(damaged), dtmf=dtmf)
        if lines:
            audio = replace(audio, **_write_stereo(lines, folder, session_id))
    _write_atomically(summary, _AUDIO.dump_json(audio, indent=1))
    return audio


def _already_done(
    summary: Path, folder: Path, sample_rate: int, dtmf: DtmfEvents
) -> FinishedAudio | None:
    try:
        audio = _AUDIO.validate_json(summary.read_bytes())
    except (OSError, ValueError):
        return None
    files = [leg.file for leg in audio.legs] + ([audio.stereo] if audio.stereo else [])
    whole = all((folder / name).is_file() for name in files)
    rates = all(leg.sample_rate == sample_rate for leg in audio.legs)
    return audio if whole and rates and audio.dtmf == dtmf else None


def _write_leg(
    line: Line, folder: Path, session_id: str, sample_rate: int, dtmf: DtmfEvents
) -> FinishedLeg:
    header = line.reader.header
    name = f"{session_id}-{header.index}.wav"
    frames = min(line.end * sample_rate // UNIT, _LARGEST_WAV // 2)
    with _WavFile(folder / name, 1, sample_rate) as wav:
        sound = _Sound(line, sample_rate)
        for start in range(0, frames, _CHUNK):
            wav.write(_clipped(sound.take(min(_CHUNK, frames - start))))
    return FinishedLeg(
        stream_id=header.stream_id,
        index=header.index,
        label=header.label,
        file=name,
        started_at=_time(line.started_ns),
        duration=frames / sample_rate,
        sample_rate=sample_rate,
        packets=line.packets,
        discontinuities=line.timeline.discontinuities,
        foreign=line.foreign,
        undecoded=line.undecoded,
        codecs=tuple(line.heard),
        native_rate=max(line.files, default=8000),
        keys=_keys(line, dtmf),
    )


def _keys(line: Line, dtmf: DtmfEvents) -> tuple[KeyPress, ...]:
    if dtmf == "drop":
        return ()
    return tuple(
        KeyPress(
            key=key if dtmf == "keep" else "*",
            start=round(start, 3),
            duration=round(duration, 3),
        )
        for key, start, duration in line.keys
    )


def _write_stereo(lines: list[Line], folder: Path, session_id: str) -> dict[str, Any]:
    """First stream left, second right, further ones in both; on one wall clock.

    At the highest rate that any of them has of its own, as far as the file can be so long.
    """
    name = f"{session_id}-stereo.wav"
    origin = min(line.started_ns for line in lines)
    longest_s = max((line.started_ns - origin) / 1e9 + line.end / UNIT for line in lines)
    longest_s = min(longest_s, _LONGEST_LINE_S)
    rate = max((rate for line in lines for rate in line.files), default=8000)
    if longest_s * rate * 4 > _LARGEST_WAV:
        rate = 8000
    offsets = [round((line.started_ns - origin) * rate / 1e9) for line in lines]
    total = max(
        offset + line.end * rate // UNIT for offset, line in zip(offsets, lines, strict=True)
    )
    total = min(total, _LONGEST_LINE_S * rate)
    sounds = [_Sound(line, rate, offset) for line, offset in zip(lines, offsets, strict=True)]
    with _WavFile(folder / name, 2, rate) as wav:
        for start in range(0, total, _CHUNK):
            size = min(_CHUNK, total - start)
            mix = np.zeros((size, 2), np.int32)
            for number, sound in enumerate(sounds):
                channels = slice(number, number + 1) if number < 2 else slice(0, 2)
                mix[:, channels] += sound.take(size)[:, None]
            wav.write(_clipped(mix))
    return {"stereo": name, "started_at": _time(origin), "duration": total / rate}


class _Sound:
    """A line's audio at one rate from start to end, after `offset` samples of silence."""

    def __init__(self, line: Line, rate: int, offset: int = 0) -> None:
        self._offset = offset
        self._parts = [_Part(path, own, rate) for own, path in line.files.items()]

    def take(self, size: int) -> npt.NDArray[np.int32] | npt.NDArray[np.int16]:
        """The next samples, shape (size,); int32: a sum that may need clipping."""
        if len(self._parts) == 1 and not self._offset:
            audio = self._parts[0].take(size)
            return audio if len(audio) == size else np.pad(audio, (0, size - len(audio)))
        out = np.zeros(size, np.int32)
        silent = min(size, self._offset)
        self._offset -= silent
        for part in self._parts:
            audio = part.take(size - silent)
            out[silent : silent + len(audio)] += audio
        return out


class _Part:
    """What a line has of one native rate, resampled as it is read."""

    def __init__(self, path: Path, own: int, rate: int) -> None:
        self._chunks = _resampled(path, own, rate)
        self._left = np.zeros(0, np.int16)

    def take(self, size: int) -> npt.NDArray[np.int16]:
        """The next samples, int16, shape (size,) or shorter at the end."""
        parts, have = [self._left], len(self._left)
        while have < size and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            have += len(chunk)
        audio = np.concatenate(parts)
        self._left = audio[size:].copy()
        return audio[:size]


def _resampled(path: Path, own: int, rate: int) -> Iterator[npt.NDArray[np.int16]]:
    resampler = soxr.ResampleStream(own, rate, 1, dtype="int16")
    for chunk, last in _chunks(path):
        yield chunk if own == rate else resampler.resample_chunk(chunk, last=last)


def _clipped(audio: npt.NDArray[np.int32] | npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    if audio.dtype == np.int16:
        return audio.astype(np.int16, copy=False)
    return np.clip(audio, -32768, 32767).astype(np.int16)


def _chunks(path: Path) -> Iterator[tuple[npt.NDArray[np.int16], bool]]:
    """The file's samples, and whether these are the last ones."""
    left = path.stat().st_size // 2
    with path.open("rb") as file:
        while True:
            audio = np.frombuffer(file.read(2 * _CHUNK), "<i2").astype(np.int16)
            left -= len(audio)
            yield audio, left <= 0
            if left <= 0:
                return


class _WavFile:
    """A 16-bit WAV that is there as a whole or not at all."""

    def __init__(self, path: Path, channels: int, rate: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._file = self._part.open("wb")
        self._wav = wave.open(self._file, "wb")  # noqa: SIM115  closed in __exit__
        self._wav.setnchannels(channels)
        self._wav.setsampwidth(2)
        self._wav.setframerate(rate)

    def __enter__(self) -> "_WavFile":
        return self

    def write(self, audio: npt.NDArray[np.int16]) -> None:
        """Append samples, shape (n,) or (n, channels)."""
        self._wav.writeframes(audio.astype("<i2").tobytes())

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._wav.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)


def _write_atomically(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _time(at_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns // 1000)
