"""From the spools of a session to its audio files: one a leg, one stereo file; WAV, FLAC or Opus.

Reads the session's folder and nothing else, so that it works after any crash; it can be repeated
and comes to the same files. Memory does not grow with the length of the call.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr
from pydantic import TypeAdapter

from siprec_bridge.media.audio_file import (
    AudioFile,
    FinishedFile,
    RecordingFormat,
    write_atomically,
)
from siprec_bridge.media.clocks import WallFault, wall_clocks
from siprec_bridge.media.coverage import Covered, Levels
from siprec_bridge.media.likeness import Listened, same_audio
from siprec_bridge.media.line import UNIT, Line
from siprec_bridge.receiver.spool import MalformedSpool, SpoolReader
from siprec_bridge.transcript import KeyPress, Redaction

DtmfEvents = Literal["keep", "mask", "drop"]
Stretches = Sequence[tuple[datetime, datetime]]

_CHUNK = 1 << 18  # samples held at once
_ROOM = ".finishing-"
_LONGEST_LINE_S = 24 * 3600  # a time line beyond that is a broken clock, not a call
_SUFFIXES = (".wav", ".flac", ".opus")
_MOST_COMPARED = 4  # legs: more are no call of two that was forked twice
_LARGEST_FILE = (1 << 32) - 4096  # octets of samples: a RIFF file has 32 bits for its length


@dataclass(frozen=True, slots=True)
class FinishedLeg:
    """One stream's file: mono, 16 bit, `sample_rate` Hz. `started_at` is its first sample's time.

    `covered`: what of it is there; where it is missing, stands in the file `loss_map`.
    `placed_by` says what placed it on the wall clock; `clock_fault` why it was not the SRC's sender
    reports, else `drift_ppm` how much faster than its own time the SRC's samples came.

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
    covered: Covered | None = None
    loss_map: str | None = None
    placed_by: Literal["sender_reports", "arrival"] = "arrival"
    drift_ppm: float | None = None
    clock_fault: WallFault | None = None


@dataclass(frozen=True, slots=True)
class FinishedAudio:
    """A session's files, by name within its folder. Streams without any voice have no leg.

    `damaged` names spools that could not be read, `dtmf` says what was done with telephone keys.
    `identical` are pairs of labels whose legs carry the same audio; `files` has the checksums.
    `redact` names what is taken out of what was said; until that is done, the audio is `withheld`.
    `redactions` tell where, in seconds of the session: there the audio is covered, or will be.
    """

    legs: tuple[FinishedLeg, ...]
    stereo: str | None = None
    started_at: datetime | None = None
    duration: float = 0.0
    damaged: tuple[str, ...] = ()
    dtmf: DtmfEvents = "keep"
    identical: tuple[tuple[str, str], ...] = ()
    files: tuple[FinishedFile, ...] = ()
    form: RecordingFormat = "wav"
    redact: tuple[str, ...] = ()
    withheld: bool = False
    redactions: tuple[Redaction, ...] = ()


_AUDIO = TypeAdapter(FinishedAudio)


def finish_session(
    folder: Path,
    session_id: str,
    sample_rate: int,
    dtmf: DtmfEvents = "mask",
    expected: Mapping[int, Stretches] | None = None,
    form: RecordingFormat = "wav",
) -> FinishedAudio:
    """Write the files of a session and return what they are. Raises OSError.

    `dtmf`: telephone keys are kept, written as `*`, or dropped. `expected`: by m-line, when there
    was something to receive; None: for as long as the audio is.
    """
    summary = folder / f"{session_id}.audio.json"
    done = _already_done(summary, folder, sample_rate, dtmf, form)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)  # a session without streams has none
    for left in folder.glob(f"{_ROOM}*"):  # of a finisher that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_ROOM, dir=folder) as room:
        readers, damaged = _spools(folder)
        lines: list[Line] = []
        legs: list[FinishedLeg] = []
        files: list[FinishedFile] = []
        listened: list[tuple[str, Listened]] = []
        for reader, clocks in zip(readers, wall_clocks(readers), strict=True):
            header = reader.header
            line = Line(reader, Path(room), reader.path.stem, _LONGEST_LINE_S, clocks.sources)
            line.fill()
            if not line.packets:
                continue
            leg, file, levels = _write_leg(line, folder, session_id, sample_rate, dtmf, form)
            stretches = expected.get(header.index, ()) if expected is not None else None
            spans = _on_the_line(stretches, line)
            map_name = f"{session_id}-{header.index}.loss.json"
            _write_loss_map(folder / map_name, line, spans)
            pace = next((one.pace for one in clocks.sources.values()), None)
            leg = replace(
                leg,
                covered=line.coverage.covered(spans, levels.cells),
                loss_map=map_name,
                placed_by="sender_reports" if line.timeline.by_clock else "arrival",
                drift_ppm=round((1 / pace - 1) * 1e6, 2) if pace is not None else None,
                clock_fault=None if line.timeline.by_clock else clocks.fault or "jumps",
            )
            lines.append(line)
            legs.append(leg)
            files.append(file)
            listened.append((leg.label, Listened(levels.cells, line.files, line.started_ns)))
        audio = FinishedAudio(
            tuple(legs), damaged=damaged, dtmf=dtmf, identical=_identical(listened), form=form
        )
        if lines:
            stereo, file = _write_stereo(lines, folder, session_id, form)
            audio = replace(audio, **stereo, files=(*files, file))
    write_atomically(summary, _AUDIO.dump_json(audio, indent=1))
    for one in audio.files:  # what a finisher left that was killed and had to write another format
        for suffix in _SUFFIXES:
            if suffix != f".{form}":
                (folder / one.name).with_suffix(suffix).unlink(missing_ok=True)
    return audio


def _spools(folder: Path) -> tuple[list[SpoolReader], tuple[str, ...]]:
    """Those that can be read, by m-line, and the names of the others."""
    readers: list[SpoolReader] = []
    damaged: list[str] = []
    for spool in sorted(folder.glob("*.spool")):
        try:
            readers.append(SpoolReader(spool))
        except MalformedSpool:
            damaged.append(spool.name)
    return sorted(readers, key=lambda one: one.header.index), tuple(damaged)


def _on_the_line(stretches: Stretches | None, line: Line) -> list[tuple[float, float]]:
    """Stretches of time as seconds from the line's first sample."""
    if stretches is None:
        return [(0.0, line.end / UNIT)]
    begun = line.started_ns / 1e9
    return [(since.timestamp() - begun, until.timestamp() - begun) for since, until in stretches]


def _write_loss_map(path: Path, line: Line, spans: Sequence[tuple[float, float]]) -> None:
    """Start and length, in seconds of the leg's file, of what is silence for want of audio."""
    end = line.end / UNIT
    gaps = [
        (round(max(0.0, start), 3), round(min(end, start + length) - max(0.0, start), 3))
        for start, length in line.coverage.gaps(spans)
        if start < end and start + length > 0
    ]
    write_atomically(path, json.dumps({"missing": gaps}).encode())


def _identical(legs: Sequence[tuple[str, Listened]]) -> tuple[tuple[str, str], ...]:
    compared = legs[:_MOST_COMPARED]
    return tuple(
        (label, other)
        for number, (label, one) in enumerate(compared)
        for other, two in compared[number + 1 :]
        if same_audio(one, two)
    )


def _already_done(
    summary: Path, folder: Path, sample_rate: int, dtmf: DtmfEvents, form: RecordingFormat
) -> FinishedAudio | None:
    try:
        audio = _AUDIO.validate_json(summary.read_bytes())
    except (OSError, ValueError):
        return None
    files = [leg.file for leg in audio.legs] + ([audio.stereo] if audio.stereo else [])
    whole = all((folder / name).is_file() for name in files)
    whole = whole and all((folder / one.name).stat().st_size == one.size for one in audio.files)
    rates = all(leg.sample_rate == sample_rate for leg in audio.legs)
    same = audio.dtmf == dtmf and audio.form == form
    return audio if whole and rates and same else None


def _write_leg(
    line: Line,
    folder: Path,
    session_id: str,
    sample_rate: int,
    dtmf: DtmfEvents,
    form: RecordingFormat,
) -> tuple[FinishedLeg, FinishedFile, Levels]:
    header = line.reader.header
    name = f"{session_id}-{header.index}.{form}"
    frames = min(line.end * sample_rate // UNIT, _LARGEST_FILE // 2)
    with AudioFile(folder / name, 1, sample_rate) as wav:
        sound, levels = _Sound(line, sample_rate), Levels(sample_rate)
        for start in range(0, frames, _CHUNK):
            pcm = _clipped(sound.take(min(_CHUNK, frames - start)))
            levels.take(pcm)
            wav.write(pcm)
    leg = FinishedLeg(
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
    return leg, wav.finished, levels


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


def _write_stereo(
    lines: list[Line], folder: Path, session_id: str, form: RecordingFormat
) -> tuple[dict[str, Any], FinishedFile]:
    """First stream left, second right, further ones in both; on one wall clock.

    At the highest rate that any of them has of its own, as far as the file can be so long.
    """
    name = f"{session_id}-stereo.{form}"
    origin = min(line.started_ns for line in lines)
    longest_s = max((line.started_ns - origin) / 1e9 + line.end / UNIT for line in lines)
    longest_s = min(longest_s, _LONGEST_LINE_S)
    rate = max((rate for line in lines for rate in line.files), default=8000)
    if longest_s * rate * 4 > _LARGEST_FILE:
        rate = 8000
    offsets = [round((line.started_ns - origin) * rate / 1e9) for line in lines]
    total = max(
        offset + line.end * rate // UNIT for offset, line in zip(offsets, lines, strict=True)
    )
    total = min(total, _LONGEST_LINE_S * rate)
    sounds = [_Sound(line, rate, offset) for line, offset in zip(lines, offsets, strict=True)]
    with AudioFile(folder / name, 2, rate) as wav:
        for start in range(0, total, _CHUNK):
            size = min(_CHUNK, total - start)
            mix = np.zeros((size, 2), np.int32)
            for number, sound in enumerate(sounds):
                channels = slice(number, number + 1) if number < 2 else slice(0, 2)
                mix[:, channels] += sound.take(size)[:, None]
            wav.write(_clipped(mix))
    return {"stereo": name, "started_at": _time(origin), "duration": total / rate}, wav.finished


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


def _time(at_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns // 1000)
