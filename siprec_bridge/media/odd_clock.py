"""Senders whose timestamps run at another clock than their codec's.

G.722 is the known case: its RTP clock is 8000 Hz by a mistake of RFC 1890 that was kept (RFC 3551
§4.5.2), and some count its 16,000 samples all the same. Placed by such timestamps, a call would be
twice as long, with a hole behind each packet.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_ENOUGH = 25  # packets in order that show it
_RATIOS = (1 / 6, 1 / 3, 1 / 2, 2, 3, 6)  # of 8, 16, 24 and 48 kHz
_NEARLY_ALL = 0.9
_PACE = 0.2  # so far may arrivals be from the packets' own lengths
_SOURCES = 8


@dataclass(frozen=True, slots=True)
class _Clock:
    ratio: float
    base: int


class OddClocks:
    """Timestamps of one stream as its codecs' clocks would have counted them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Clock | None] = {}  # by SSRC and payload type

    def correct(
        self,
        timestamp: npt.NDArray[np.uint32],
        sequence: npt.NDArray[np.uint16],
        source: npt.NDArray[np.uint32],
        payload_type: npt.NDArray[np.uint8],
        arrival_ns: Ints,
        seconds: npt.NDArray[np.float64],
        rate: Ints,
    ) -> npt.NDArray[np.uint32]:
        """In order of arrival, shapes (n,). `seconds`: of audio in each; `rate`: Hz of the codec's clock.

        A clock is believed to be another when packets that follow one another say so, nearly all by the
        same factor, while they come at the pace of their audio. One that is right is looked at once.
        """
        corrected = timestamp
        kinds = source.astype(np.int64) << 8 | payload_type
        for kind in np.unique(kinds).tolist():
            at = np.flatnonzero(kinds == kind)
            key = kind >> 8, kind & 0xFF
            if key not in self._known:
                ticks = seconds[at] * rate[at]
                found = _ratio(timestamp[at], sequence[at], arrival_ns[at], seconds[at], ticks)
                if found is None:
                    continue
                self._known[key] = _Clock(found, int(timestamp[at[0]])) if found != 1 else None
                if len(self._known) > _SOURCES:
                    del self._known[next(iter(self._known))]
            clock = self._known.get(key)
            if clock is not None:
                since = (timestamp[at].astype(np.int64) - clock.base + 2**31) % 2**32 - 2**31
                if corrected is timestamp:
                    corrected = timestamp.copy()
                moved = np.round(since / clock.ratio).astype(np.int64) + clock.base
                corrected[at] = (moved & 0xFFFFFFFF).astype(np.uint32)
        return corrected


def _ratio(
    timestamp: npt.NDArray[np.uint32],
    sequence: npt.NDArray[np.uint16],
    arrival_ns: Ints,
    seconds: npt.NDArray[np.float64],
    ticks: npt.NDArray[np.float64],
) -> float | None:
    """How many times too fast timestamps run, 1: they do not; None: these packets do not tell."""
    follows = np.diff(sequence) == 1  # modulo 2**16, as timestamps are modulo 2**32
    if np.count_nonzero(follows) < _ENOUGH:
        return None
    steps = np.diff(timestamp).view(np.int32)
    ratios = steps[follows] / ticks[:-1][follows]
    for one in _RATIOS:
        if np.count_nonzero(np.abs(ratios - one) < 0.01 * one) >= _NEARLY_ALL * len(ratios):
            took = float(np.diff(arrival_ns)[follows].sum()) / 1e9
            lasts = float(seconds[:-1][follows].sum())
            return one if abs(took / lasts - 1) <= _PACE else None
    return 1.0
