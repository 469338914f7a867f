"""Finished files: there as a whole and durable, or not there at all."""

import contextlib
import hashlib
import os
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import av
import numpy as np
import numpy.typing as npt

RecordingFormat = Literal["wav", "flac"]
Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A file as it was written: name within the folder, octets, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class AudioFile:
    """16-bit audio, WAV or FLAC by the name's suffix; when it is closed, `finished` says what it is.

    Used by `with`: what was begun and not ended leaves nothing. Raises OSError.
    """

    finished: FinishedFile

    def __init__(self, path: Path, channels: int, rate: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._file = self._part.open("wb")
        encoder = _Flac if path.suffix == ".flac" else _Wav
        self._encoder: _Encoder = encoder(self._file, channels, rate)

    def __enter__(self) -> "AudioFile":
        return self

    def write(self, audio: Pcm) -> None:
        """Append samples, shape (n,) or (n, channels)."""
        self._encoder.write(audio)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._drop()
            return
        try:
            self._encoder.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError:
            self._drop()
            raise
        self.finished = _described(self._part, self._path.name)
        self._part.replace(self._path)

    def _drop(self) -> None:
        """Leave nothing; what went wrong first is the error that is told."""
        with contextlib.suppress(OSError):
            self._encoder.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file as a whole. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _described(path: Path, name: str) -> FinishedFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FinishedFile(name, path.stat().st_size, digest.hexdigest())


class _Encoder(Protocol):
    def __init__(self, file: BinaryIO, channels: int, rate: int) -> None: ...

    def write(self, audio: Pcm) -> None: ...

    def close(self) -> None: ...


class _Wav:
    def __init__(self, file: BinaryIO, channels: int, rate: int) -> None:
        self._wav = wave.open(file, "wb")  # noqa: SIM115  closed below
        self._wav.setnchannels(channels)
        self._wav.setsampwidth(2)
        self._wav.setframerate(rate)

    def write(self, audio: Pcm) -> None:
        self._wav.writeframes(audio.astype("<i2").tobytes())

    def close(self) -> None:
        self._wav.close()


class _Flac:
    """By FFmpeg, without loss."""

    def __init__(self, file: BinaryIO, channels: int, rate: int) -> None:
        self._layout = "mono" if channels == 1 else "stereo"
        self._rate = rate
        self._position = 0
        self._container = av.open(file, "w", format="flac")
        self._stream = self._container.add_stream("flac", rate=rate, layout=self._layout)

    def write(self, audio: Pcm) -> None:
        packed = np.ascontiguousarray(audio, np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._position
        self._position += len(audio)
        self._encode(frame)

    def close(self) -> None:
        try:
            self._encode(None)
        except OSError:
            with contextlib.suppress(OSError, av.FFmpegError):
                self._container.close()
            raise
        try:
            self._container.close()
        except av.FFmpegError as error:
            raise OSError(f"FLAC: {error}") from error

    def _encode(self, frame: "av.AudioFrame | None") -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except av.FFmpegError as error:
            raise OSError(f"FLAC: {error}") from error
