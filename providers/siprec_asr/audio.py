"""Audio of any kind that FFmpeg reads, as what Whisper hears: mono, 16 kHz."""

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from siprec_asr.errors import Refused

RATE = 16000
Pcm = npt.NDArray[np.int16]


def read_audio(source: Path | bytes, *, longest_s: float) -> Pcm:
    """Decode to int16, shape (samples,), at 16 kHz; an audio stream without samples is no error.

    Damaged frames in the middle are skipped. Raises Refused: 415 when it is no audio, 413 when
    it is longer than `longest_s`, which is found out without decoding the rest.
    """
    pieces: list[Pcm] = []
    samples, limit = 0, longest_s * RATE
    try:
        opened = str(source) if isinstance(source, Path) else io.BytesIO(source)
        with av.open(opened, mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise Refused(415, "not_audio", "there is no audio in it")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            for packet in container.demux(audio=0):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue
                for frame in [*frames, None] if packet.dts is None else frames:
                    for piece in resampler.resample(frame):
                        pcm = piece.to_ndarray()[0]
                        pieces.append(pcm)
                        samples += len(pcm)
                if samples > limit:
                    raise Refused(413, "too_long", f"longer than {longest_s:g} s (ASR_MAX_AUDIO)")
    except (av.error.FFmpegError, ValueError) as error:
        # An OSError of FFmpeg's carries the path or "<none>"; the reason alone is for the client.
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused(415, "not_audio", f"not audio that can be read: {reason}") from error
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)


def seconds(pcm: Pcm) -> float:
    """How long it plays."""
    return len(pcm) / RATE
