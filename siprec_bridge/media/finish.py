"""From the spools of a session to its audio files: one WAV a leg, one stereo file.

Reads the session's folder and nothing else, so that it works after any crash; it can be repeated
and comes to the same files. Memory does not grow with the length of the call.
"""

import os
import shutil
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from pydantic import TypeAdapter

from siprec_bridge.media.spool import MalformedSpool, Packets, SpoolEvent, SpoolReader
from siprec_bridge.rtp import Timeline, decode_g711, read_headers
from siprec_bridge.sdp import STATIC, Codec

NATIVE_RATE = 8000  # Hz: G.711
_CHUNK = 1 << 18  # samples held at once
_VOICE = ("PCMU", "PCMA")
_SILENT = {"TELEPHONE-EVENT", "CN"}  # payload types that carry no voice and are no mistake
_ROOM = ".finishing-"
_LONGEST_LINE_S = 24 * 3600  # a time line beyond that is a broken clock, not a call


@dataclass(frozen=True, slots=True)
class FinishedLeg:
    """One stream's WAV: mono, 16 bit, `sample_rate` Hz. `started_at` is its first sample's time.

    `lost` counts packets that left a hole, `foreign` those of a payload type that is no voice.
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


@dataclass(frozen=True, slots=True)
class FinishedAudio:
    """A session's files, by name within its folder. Streams without any voice have no leg.

    `damaged` names spools that could not be read.
    """

    legs: tuple[FinishedLeg, ...]
    stereo: str | None = None
    started_at: datetime | None = None
    duration: float = 0.0
    damaged: tuple[str, ...] = ()


_AUDIO = TypeAdapter(FinishedAudio)


@dataclass(slots=True)
class _Line:
    """A stream's audio on its time line: raw PCM at NATIVE_RATE in a sparse file."""

    reader: SpoolReader
    pcm: Path
    timeline: Timeline
    packets: int = 0
    foreign: int = 0
    end: int = 0  # samples

    @property
    def started_ns(self) -> int:
        return self.timeline.origin_ns or self.reader.header.opened_ns


def finish_session(folder: Path, session_id: str, sample_rate: int) -> FinishedAudio:
    """Write the files of a session and return what they are. Raises OSError."""
    summary = folder / f"{session_id}.audio.json"
    done = _already_done(summary, folder, sample_rate)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)  # a session without streams has none
    for left in folder.glob(f"{_ROOM}*"):  # of a finisher that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_ROOM, dir=folder) as room:
        lines: list[_Line] = []
        damaged: list[str] = []
        for spool in sorted(folder.glob("*.spool")):
            try:
                reader = SpoolReader(spool)
            except MalformedSpool:
                damaged.append(spool.name)
                continue
            line = _place(reader, Path(room) / f"{spool.stem}.pcm")
            if line.packets:
                lines.append(line)
        lines.sort(key=lambda one: one.reader.header.index)
        legs = tuple(_write_leg(line, folder, session_id, sample_rate) for line in lines)
        audio = FinishedAudio(legs, damaged=tuple(damaged))
        if lines:
            audio = _write_stereo(lines, legs, folder, session_id, tuple(damaged))
    _write_atomically(summary, _AUDIO.dump_json(audio, indent=1))
    return audio


def _already_done(summary: Path, folder: Path, sample_rate: int) -> FinishedAudio | None:
    try:
        audio = _AUDIO.validate_json(summary.read_bytes())
    except (OSError, ValueError):
        return None
    files = [leg.file for leg in audio.legs] + ([audio.stereo] if audio.stereo else [])
    whole = all((folder / name).is_file() for name in files)
    rates = all(leg.sample_rate == sample_rate for leg in audio.legs)
    return audio if whole and rates else None


def _place(reader: SpoolReader, path: Path) -> _Line:
    """Decode a spool onto its time line."""
    line = _Line(reader, path, Timeline(NATIVE_RATE))
    codecs = _by_payload_type(reader.header.codecs)
    interrupted = False
    with path.open("wb") as pcm:
        for part in reader:
            match part:
                case SpoolEvent(name=name, codecs=new):
                    if name == "codecs":
                        codecs |= _by_payload_type(new)
                    else:
                        interrupted = True
                case Packets():
                    if _place_packets(line, part, codecs, pcm.fileno(), interrupted):
                        interrupted = False
        line.end = min(line.timeline.end, _LONGEST_LINE_S * NATIVE_RATE)
        pcm.truncate(2 * line.end)  # what was not written is silence
    return line


def _place_packets(
    line: _Line, packets: Packets, codecs: dict[int, Codec], pcm: int, interrupted: bool
) -> bool:
    """Write a run of packets; False when there was no voice among them."""
    batch = read_headers(packets.data, packets.offsets, packets.lengths)
    kinds = {
        number: codecs[number].name if number in codecs else ""
        for number in set(batch.payload_type.tolist())
    }
    voice = batch.valid & (batch.payload_length > 0)
    voice &= np.isin(batch.payload_type, [one for one, name in kinds.items() if name in _VOICE])
    silent = [one for one, name in kinds.items() if name in _SILENT]
    line.foreign += int((batch.valid & ~voice & ~np.isin(batch.payload_type, silent)).sum())
    chosen = np.flatnonzero(voice)
    if not len(chosen):
        return False
    samples = batch.payload_length[chosen]
    positions = line.timeline.place(
        batch.timestamp[chosen],
        batch.sequence[chosen],
        batch.ssrc[chosen],
        packets.arrivals_ns[chosen],
        samples,
        interrupted=interrupted,
    )
    line.packets += len(chosen)
    types = batch.payload_type[chosen]
    ends = positions + samples
    breaks = np.flatnonzero((positions[1:] != ends[:-1]) | (types[1:] != types[:-1])) + 1
    for run in np.split(np.arange(len(chosen)), breaks):
        data = b"".join(
            packets.data[start : start + length].tobytes()
            for start, length in zip(
                batch.payload_offset[chosen[run]].tolist(), samples[run].tolist(), strict=True
            )
        )
        _write_run(pcm, int(positions[run[0]]), decode_g711(kinds[int(types[run[0]])], data))
    return True


def _write_run(pcm: int, position: int, audio: npt.NDArray[np.int16]) -> None:
    if position < 0:
        audio, position = audio[-position:], 0
    room = _LONGEST_LINE_S * NATIVE_RATE - position
    if len(audio) and room > 0:
        os.pwrite(pcm, audio[:room].astype("<i2").tobytes(), 2 * position)


def _by_payload_type(codecs: tuple[Codec, ...]) -> dict[int, Codec]:
    # Some SRCs send a static type that was not in the answer: it means what it always means.
    static = {number: codec for number, codec in STATIC.items() if codec.name in _VOICE}
    return static | {codec.payload_type: codec for codec in codecs}


def _write_leg(line: _Line, folder: Path, session_id: str, sample_rate: int) -> FinishedLeg:
    header = line.reader.header
    name = f"{session_id}-{header.index}.wav"
    frames = 0
    with _WavFile(folder / name, 1, sample_rate) as wav:
        resampler = soxr.ResampleStream(NATIVE_RATE, sample_rate, 1, dtype="int16")
        for chunk, last in _chunks(line.pcm):
            out = chunk
            if sample_rate != NATIVE_RATE:
                out = resampler.resample_chunk(chunk, last=last)
            frames += len(out)
            wav.write(out)
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
    )


def _write_stereo(
    lines: list[_Line],
    legs: tuple[FinishedLeg, ...],
    folder: Path,
    session_id: str,
    damaged: tuple[str, ...],
) -> FinishedAudio:
    """First stream left, second right, further ones in both; on one wall clock."""
    name = f"{session_id}-stereo.wav"
    origin = min(line.started_ns for line in lines)
    offsets = [round((line.started_ns - origin) * NATIVE_RATE / 1e9) for line in lines]
    total = max(offset + line.end for offset, line in zip(offsets, lines, strict=True))
    total = min(total, _LONGEST_LINE_S * NATIVE_RATE)
    sources = [line.pcm.open("rb") for line in lines]
    try:
        with _WavFile(folder / name, 2, NATIVE_RATE) as wav:
            for start in range(0, total, _CHUNK):
                size = min(_CHUNK, total - start)
                mix = np.zeros((size, 2), np.int32)
                for number, (source, offset) in enumerate(zip(sources, offsets, strict=True)):
                    channels = slice(number, number + 1) if number < 2 else slice(0, 2)
                    mix[:, channels] += _window(source.fileno(), start - offset, size)[:, None]
                wav.write(np.clip(mix, -32768, 32767).astype(np.int16))
    finally:
        for source in sources:
            source.close()
    return FinishedAudio(legs, name, _time(origin), total / NATIVE_RATE, damaged)


def _window(file: int, position: int, size: int) -> npt.NDArray[np.int32]:
    """Samples of a PCM file from a position that may lie before or behind it."""
    out = np.zeros(size, np.int32)
    skip = max(0, -position)
    if skip < size:
        data = os.pread(file, 2 * (size - skip), 2 * (position + skip))
        audio = np.frombuffer(data, "<i2")
        out[skip : skip + len(audio)] = audio
    return out


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
