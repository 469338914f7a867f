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
import soxr

RecordingFormat = Literal["wav", "flac", "opus"]
Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A file as it was written: name within the folder, octets, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class AudioFile:
    """16-bit audio, WAV, FLAC or Opus by the name's suffix; when it is closed, `finished` says what it is.

    Used by `with`: what was begun and not ended leaves nothing. Raises OSError.
    """

    finished: FinishedFile

    def __init__(self, path: Path, channels: int, rate: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._file = self._part.open("wb")
        self._encoder = _ENCODERS[path.suffix](self._file, channels, rate)

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
        # What an encoder still has goes nowhere: FFmpeg's would print that it has no room, too.
        if not self._file.closed:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._file.fileno(), inheritable=False)
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


class _ByFfmpeg:
    """A codec of FFmpeg's in a container of FFmpeg's."""

    def __init__(
        self,
        file: BinaryIO,
        channels: int,
        rate: int,
        *,
        codec: str,
        container: str,
        options: dict[str, str] | None = None,
    ) -> None:
        self._codec = codec
        self._layout = "mono" if channels == 1 else "stereo"
        self._file = file
        self._rate = rate
        self._position = 0
        # Bit-exact: the same audio makes the same file, so no version and no random number in it.
        self._container = av.open(file, "w", format=container, options={"fflags": "+bitexact"})
        stream = self._container.add_stream(codec, rate=rate, layout=self._layout, options=options)
        assert isinstance(stream, av.AudioStream)
        self._stream = stream

    def write(self, audio: Pcm) -> None:
        if not len(audio):
            return
        packed = np.ascontiguousarray(audio, np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._position
        self._position += len(audio)
        self._encode(frame)

    def close(self) -> None:
        self._flush()
        self._file.flush()  # it goes back in it to write the length, and hears no error there
        try:
            self._container.close()
        except av.FFmpegError as error:
            raise OSError(f"{self._codec}: {error}") from error

    def _flush(self) -> None:
        self._encode(None)

    def _encode(self, frame: "av.AudioFrame | None") -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except av.FFmpegError as error:
            raise OSError(f"{self._codec}: {error}") from error


class _Flac(_ByFfmpeg):
    """Without loss."""

    def __init__(self, file: BinaryIO, channels: int, rate: int) -> None:
        super().__init__(file, channels, rate, codec="flac", container="flac")


class _Opus(_ByFfmpeg):
    """In Ogg, RFC 7845: the granule position of the last page tells the length to the sample."""

    def __init__(self, file: BinaryIO, channels: int, rate: int) -> None:
        own = rate if rate in _OPUS_RATES else max(_OPUS_RATES)
        self._resampler = soxr.ResampleStream(rate, own, channels, dtype="int16")
        options = {
            "application": "voip",
            "compression_level": "5",
            "b": str(channels * _OPUS_RATES[own]),
        }
        super().__init__(file, channels, own, codec="libopus", container="ogg", options=options)
        self._resampled = own != rate

    def write(self, audio: Pcm) -> None:
        super().write(self._resampler.resample_chunk(audio) if self._resampled else audio)

    def _flush(self) -> None:
        if self._resampled:
            shape = (0, 2) if self._layout == "stereo" else (0,)
            super().write(self._resampler.resample_chunk(np.zeros(shape, np.int16), last=True))
        super()._flush()


# Rates that an encoder takes, and bits a second for a channel of speech at each. RFC 7587 §3.1.1
_OPUS_RATES = {8000: 16_000, 12000: 20_000, 16000: 24_000, 24000: 32_000, 48000: 40_000}
_ENCODERS: dict[str, type[_Encoder]] = {".wav": _Wav, ".flac": _Flac, ".opus": _Opus}
