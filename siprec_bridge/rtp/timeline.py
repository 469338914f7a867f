"""Where packets lie on a stream's time line: by RTP timestamp, by arrival where that breaks.

A timestamp that goes on as the sequence numbers do is believed whatever the network did. One
that does not (new SSRC, restarted sender, a clock that stood still on hold) is replaced by the
time that passed between the arrivals, so that the line keeps the call's length.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_TOLERANCE_S = 1.0  # timestamps and arrivals may differ by so much: jitter
_LONGEST_PACKET_S = 0.25
_LOOK_AHEAD = 10  # packets that show whether a late one came in a burst
_EARLY = 50  # first packets among which the earliest one is looked for


@dataclass(slots=True)
class Timeline:
    """Positions in samples at `clock_rate` Hz. Feed packets in order of arrival, in any pieces."""

    clock_rate: int
    end: int = 0  # behind the last sample
    discontinuities: int = 0
    origin_ns: int | None = None  # arrival that position 0 stands for
    _ssrc: int = 0
    _timestamp: int = 0
    _sequence: int = 0
    _arrival_ns: int = 0
    _position: int = 0

    def place(
        self,
        timestamp: npt.NDArray[np.uint32],
        sequence: npt.NDArray[np.uint16],
        ssrc: npt.NDArray[np.uint32],
        arrival_ns: npt.NDArray[np.int64],
        samples: npt.NDArray[np.int64],
        *,
        interrupted: bool = False,
    ) -> npt.NDArray[np.int64]:
        """The position of each packet's first sample: int64, shape (n,); negative: too early.

        `samples` is the length of each packet. `interrupted`: recording stood still before these
        packets (a pause), so that an unbroken timestamp proves nothing.
        """
        count = len(timestamp)
        if count == 0:
            return np.zeros(0, np.int64)
        first = self.origin_ns is None
        if first:
            self._ssrc, self._timestamp = int(ssrc[0]), int(timestamp[0])
            self._sequence, self._arrival_ns = int(sequence[0]), int(arrival_ns[0])
        ticks = _wrapped(timestamp, self._timestamp, 32)
        numbers = _wrapped(sequence, self._sequence, 16)
        waits = np.diff(arrival_ns, prepend=self._arrival_ns) * (self.clock_rate / 1e9)
        new_source = np.diff(ssrc.astype(np.int64), prepend=self._ssrc) != 0
        off = np.abs(ticks - waits) > _TOLERANCE_S * self.clock_rate
        broken: list[int] = []
        for index in np.flatnonzero(new_source | off).tolist():
            stood_still = index == 0 and interrupted and waits[0] > ticks[0]
            apart = bool(new_source[index]) or stood_still
            if apart or self._breaks(index, ticks, numbers, waits):
                ticks[index] = max(0, round(float(waits[index])))
                broken.append(index)
        self.discontinuities += len(broken)
        positions = np.cumsum(ticks) + self._position
        for index in broken:  # what starts anew must not write over what was there before
            ends = positions[:index] + samples[:index]
            before = max(self.end, int(ends.max(initial=0)))
            positions[index:] += max(0, before - int(positions[index]))
        if first:
            earliest = max(-self.clock_rate, int(positions[:_EARLY].min()))
            positions -= earliest
            self.origin_ns = int(arrival_ns[0]) + round(earliest * 1e9 / self.clock_rate)
        self._ssrc, self._timestamp = int(ssrc[-1]), int(timestamp[-1])
        self._sequence, self._arrival_ns = int(sequence[-1]), int(arrival_ns[-1])
        self._position = int(positions[-1])
        self.end = max(self.end, int((positions + samples).max()))
        return positions

    def _breaks(
        self,
        index: int,
        ticks: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.int64],
        waits: npt.NDArray[np.float64],
    ) -> bool:
        """Whether a timestamp that disagrees with the arrival is the wrong one of the two."""
        packets = max(1, abs(int(numbers[index])))
        if abs(int(ticks[index])) > packets * _LONGEST_PACKET_S * self.clock_rate:
            return True
        # The packets go on in order but came late: together in a burst when the network held
        # them up, one by one when the sender's clock stood still.
        ahead = slice(index + 1, index + 1 + _LOOK_AHEAD)
        sent, came = int(ticks[ahead].sum()), float(waits[ahead].sum())
        return sent > 0 and came >= sent / 2


def _wrapped(
    values: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], before: int, bits: int
) -> npt.NDArray[np.int64]:
    """Differences of neighbours, the shorter way around."""
    half = 1 << (bits - 1)
    wide = values.astype(np.int64)
    steps = wide - np.concatenate(([before], wide[:-1]))
    return ((steps + half) & ((1 << bits) - 1)) - half
