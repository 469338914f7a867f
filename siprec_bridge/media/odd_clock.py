"""Senders whose timestamps run at another clock than their codec's.

G.722 is the known case: its RTP clock is 8000 Hz by a mistake of RFC 1890 that was kept (RFC 3551
§4.5.2), and some count its 16,000 samples all the same. Placed by such timestamps, a call would be
twice as long, with a hole behind each packet.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Seen = npt.NDArray[np.float64]  # rows: timestamp, sequence number, ns of arrival, seconds, ticks

_ENOUGH = 25  # packets in order that show it
_RATIOS = (1 / 6, 1 / 3, 1 / 2, 2, 3, 6)  # of 8, 16, 24 and 48 kHz
_NEARLY_ALL = 0.9
_PACE = 0.2  # so far may arrivals be from the packets' own lengths
_SOURCES = 8


@dataclass(slots=True)
class _Clock:
    """`last`: the timestamp that was corrected last, `ticks` after `base`, without wrapping."""

    ratio: float
    base: int
    last: int
    ticks: int = 0

    def correct(self, timestamp: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        # Step by step: 32 bits of a fast clock are fewer than 32 bits of the right one.
        stamps = np.concatenate(([self.last], timestamp)).astype(np.int64)
        ticks = self.ticks + np.cumsum((np.diff(stamps) + 2**31) % 2**32 - 2**31)
        self.last, self.ticks = int(stamps[-1]), int(ticks[-1])
        moved = np.round(ticks / self.ratio).astype(np.int64) + self.base
        return (moved & 0xFFFFFFFF).astype(np.uint32)


class OddClocks:
    """Timestamps of one stream as its codecs' clocks would have counted them.

    A clock is believed to be another when packets that follow one another say so, nearly all by the
    same factor, while they come at the pace of their audio. One that is known is not looked at again.
    """

    def __init__(self) -> None:
        # By SSRC and payload type.
        self._known: dict[tuple[int, int], _Clock] = {}
        self._seen: dict[tuple[int, int], _Seen] = {}

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
        """In order of arrival, shapes (n,). `seconds`: of audio in each; `rate`: Hz of the codec's clock."""
        corrected = timestamp
        kinds = source.astype(np.int64) << 8 | payload_type
        for kind in np.unique(kinds).tolist():
            at = np.flatnonzero(kinds == kind)
            key = kind >> 8, kind & 0xFF
            if key not in self._known:
                length = seconds[at]
                self._look(
                    key,
                    np.vstack(
                        (timestamp[at], sequence[at], arrival_ns[at], length, length * rate[at])
                    ),
                )
            clock = self._known.get(key)
            if clock is not None and clock.ratio != 1:
                if corrected is timestamp:
                    corrected = timestamp.copy()
                corrected[at] = clock.correct(timestamp[at])
        return corrected

    def ratio(
        self,
        source: int,
        payload_type: int,
        *,
        timestamp: int,
        sequence: int,
        arrival_ns: int,
        seconds: float,
        rate: int,
    ) -> float:
        """How many times too fast timestamps run, by all packets up to this one; a guess at first."""
        key = source, payload_type
        if (known := self._known.get(key)) is not None:
            return known.ratio
        return self._look(
            key, np.array([[timestamp], [sequence], [arrival_ns], [seconds], [seconds * rate]])
        )

    def _look(self, key: tuple[int, int], new: _Seen) -> float:
        before = self._seen.pop(key, new[:, :0])
        seen = np.hstack((before, new))
        ratio, certain = _ratio(seen)
        if certain:
            first = int(new[0, 0])
            self._known[key] = _Clock(ratio, first, first)
            if len(self._known) > _SOURCES:
                del self._known[next(iter(self._known))]
        else:
            self._seen[key] = seen[:, -2 * _ENOUGH :]
            if len(self._seen) > _SOURCES:
                del self._seen[next(iter(self._seen))]
        return ratio


def _ratio(seen: _Seen) -> tuple[float, bool]:
    """How many times too fast timestamps run, and whether it is certain."""
    timestamp, sequence, arrival_ns, seconds, ticks = seen
    follows = np.diff(sequence) % 2**16 == 1
    count = int(np.count_nonzero(follows))
    steps = (np.diff(timestamp) + 2**31) % 2**32 - 2**31
    ratios = steps[follows] / ticks[:-1][follows]
    for one in _RATIOS:
        if count and np.count_nonzero(np.abs(ratios - one) < 0.01 * one) >= _NEARLY_ALL * count:
            if count < _ENOUGH:
                return one, False
            took = float(np.diff(arrival_ns)[follows].sum()) / 1e9
            lasts = float(seconds[:-1][follows].sum())
            return (one, True) if abs(took / lasts - 1) <= _PACE else (1.0, False)
    return 1.0, count >= _ENOUGH
