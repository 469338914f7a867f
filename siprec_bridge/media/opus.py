"""Opus by libopus itself: it rebuilds a lost frame from the copy that the next packet carries.

In-band FEC: RFC 6716 §2.1.7, RFC 7587 §3.3. FFmpeg's decoders cannot be asked for it.
"""

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np

from siprec_bridge.media.decoder import LONGEST_CONCEALMENT_S, Pcm, Undecodable
from siprec_bridge.rtp import Frame, unpacker

RATE: Final = 48000
_STEP: Final = RATE // 400  # what is lost is told in units of 2.5 ms
_LONGEST: Final = RATE * 120 // 1000  # samples of a packet. RFC 6716 §3.2.5


@cache
def has_libopus() -> bool:
    """Whether this machine has libopus; looked for once."""
    try:
        import opuslib_next.api.decoder  # noqa: F401 # only where a call has Opus
    except Exception:  # noqa: BLE001 # what it raises where there is no library is just that
        return False
    return True


class Opus:
    """A sender's Opus, its channels mixed to one."""

    rate = RATE

    def __init__(self) -> None:
        import opuslib_next

        unpack = unpacker("OPUS", {})
        assert unpack is not None
        self.frames = unpack
        self._decoder: Any = opuslib_next.Decoder(RATE, 1)
        # The library's own call makes a list of the samples first, for twice the time.
        self._decode = opuslib_next.api.decoder.libopus_decode
        self._room = np.empty(_LONGEST, np.int16)
        self._at = self._room.ctypes.data_as(ctypes.POINTER(ctypes.c_int16))

    def decode(self, frame: Frame) -> Pcm:
        return self._run(frame.data, frame.samples, rebuild=False)

    def conceal(self, samples: int, following: Frame | None = None) -> Pcm:
        longest = round(LONGEST_CONCEALMENT_S * RATE)
        if following is None or samples < following.samples or not _has_copy(following.data):
            return self._run(b"", min(samples, longest) // _STEP * _STEP, rebuild=False)
        made_up = min(samples - following.samples, longest - following.samples) // _STEP * _STEP
        heard = [self._run(b"", made_up, rebuild=False)] if made_up > 0 else []
        silence = np.zeros(samples - following.samples - max(made_up, 0), np.int16)
        return np.concatenate(
            (*heard, silence, self._run(following.data, following.samples, rebuild=True))
        )

    def _run(self, data: bytes, samples: int, *, rebuild: bool) -> Pcm:
        """Decode `samples`; of no data libopus makes them up, with `rebuild` those before `data`."""
        if samples <= 0:
            return np.zeros(0, np.int16)
        made = self._decode(
            self._decoder.decoder_state, data, len(data), self._at, samples, rebuild
        )
        if made < 0:
            raise Undecodable(f"libopus: error {made}")
        audio = np.zeros(samples, np.int16)
        audio[:made] = self._room[:made]
        return audio


def _has_copy(packet: bytes) -> bool:
    """Whether a packet of one frame carries that before it once more. RFC 6716 §3.1, §4.2.3"""
    configuration, stereo, code = packet[0] >> 3, packet[0] >> 2 & 1, packet[0] & 3
    if configuration >= 16 or code or len(packet) < 2:  # CELT has none
        return False
    parts = max(1, configuration % 4) if configuration < 12 else 1  # of up to 20 ms
    # A bit for each part that has voice, then that of the copies: of the middle, then of the side.
    copies = packet[1] >> (7 - parts) & 1
    return bool(copies or (stereo and packet[1] >> (6 - 2 * parts) & 1))
