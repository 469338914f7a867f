"""What the caller's parties say: audio files as 8 kHz PCM."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

RATE = 8000


class CallError(Exception):
    """The call cannot be placed or did not come about; one line says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """One party: display name, AoR, and audio as int16, shape (samples,), at RATE Hz."""

    name: str
    aor: str
    pcm: npt.NDArray[np.int16]


def load_leg(name: str, aor: str, path: Path) -> Leg:
    """Read any audio file that FFmpeg knows. Raises CallError."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise CallError(f"{path}: holds no audio")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            frames = [
                out.to_ndarray()[0]
                for frame in (*container.decode(audio=0), None)
                for out in resampler.resample(frame)
            ]
    except (OSError, av.FFmpegError) as error:
        raise CallError(f"{path}: {error.strerror or error}") from error
    pcm = np.concatenate(frames).astype(np.int16) if frames else np.zeros(0, np.int16)
    return Leg(name, aor, pcm)


def sample_call() -> tuple[Leg, Leg]:
    """The bundled conversation of two synthetic voices."""
    legs = []
    for name in ("Alice", "Bob"):
        sample = files("siprec_bridge.caller").joinpath(f"sample/{name.lower()}.wav")
        with as_file(sample) as path:
            legs.append(load_leg(name, f"sip:{name.lower()}@example.com", path))
    return legs[0], legs[1]
