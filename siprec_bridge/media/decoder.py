"""What a decoder is: one sender's packets in, PCM out."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from siprec_bridge.rtp import Frame

Pcm = npt.NDArray[np.int16]

LONGEST_CONCEALMENT_S = 0.1  # beyond that a decoder makes up what nobody said


class Undecodable(Exception):
    """A payload that the codec refuses."""


class Decoder(Protocol):
    """One sender's codec."""

    @property
    def rate(self) -> int:
        """Of the audio, in Hz."""

    def frames(self, payload: bytes) -> list[Frame]:
        """Take a payload apart. Raises MalformedPayload."""

    def decode(self, frame: Frame) -> Pcm:
        """PCM of the next frame: int16, shape (frame.samples,). Raises Undecodable."""

    def conceal(self, samples: int, following: Frame | None = None) -> Pcm:
        """What stands for lost speech: int16, shape (samples,) or shorter; the rest is silence.

        `following` came right after what was lost and may carry a copy of its end. Raises
        Undecodable.
        """
