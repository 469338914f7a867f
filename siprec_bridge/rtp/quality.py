"""How well a stream arrives: interarrival jitter (RFC 3550 A.8), and MOS by the E-model (G.107)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_LONGEST = 4096  # packets of one call of `add`
_WEIGHTS = (15 / 16) ** np.arange(_LONGEST)[::-1] / 16

# Ie and Bpl of G.113 Appendix I, with random loss. G.711 without concealment: we fill with silence.
_CODECS = {
    "PCMU": (0.0, 4.3),
    "PCMA": (0.0, 4.3),
    "G729": (11.0, 19.0),
    "G723": (15.0, 16.1),
}
_R0 = 93.2  # all other parameters of G.107 at their defaults


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival against time stamp for packets of many streams: arrays of shape (n,).

    `transit` in ticks; `deviation[i]` from packet i-1 to i; `odd` counts the steps so far that are
    none of voice that flows: same time stamp (one frame, one event), another source, a jump.
    """

    transit: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    odd: npt.NDArray[np.int64]
    timestamp: npt.NDArray[np.uint32]
    ssrc: npt.NDArray[np.uint32]


def arrivals(
    arrivals_ns: npt.NDArray[np.int64],
    timestamp: npt.NDArray[np.uint32],
    ssrc: npt.NDArray[np.uint32],
    rates: npt.NDArray[np.float64],
) -> Arrivals:
    """For all packets of a sweep at once, `rates` in Hz: by stream it would cost too much."""
    transit = arrivals_ns * (rates / 1e9) - timestamp
    deviation = np.zeros(len(transit))
    deviation[1:] = np.abs(wrapped(np.diff(transit)))
    odd = np.zeros(len(transit), np.int64)
    odd[1:] = (timestamp[1:] == timestamp[:-1]) | (ssrc[1:] != ssrc[:-1])
    odd |= deviation > rates
    return Arrivals(transit, deviation, np.cumsum(odd), timestamp, ssrc)


@dataclass(slots=True)
class Jitter:
    """Interarrival jitter of a stream, in ticks: `now` as RFC 3550 A.8 has it, `mean` of all."""

    now: float = 0.0
    _sum: float = 0.0
    _count: int = 0
    ssrc: int | None = None  # of the last packet, as the next two
    transit: float = 0.0
    timestamp: int = 0

    @property
    def mean(self) -> float | None:
        """Over all packets so far; None: there were less than two."""
        return self._sum / self._count if self._count else None

    def add(self, of: Arrivals, slots: npt.NDArray[np.int64], rate: int) -> None:
        """Take a stream's packets, at ascending `slots`."""
        first, last, count = int(slots[0]), int(slots[-1]), len(slots)
        if last - first + 1 != count or of.odd[last] != of.odd[first]:
            for slot in slots.tolist():
                self._one(
                    float(of.transit[slot]), int(of.timestamp[slot]), int(of.ssrc[slot]), rate
                )
            return
        self._one(float(of.transit[first]), int(of.timestamp[first]), int(of.ssrc[first]), rate)
        if count > 1:
            steps = of.deviation[first + 1 : last + 1]
            self.now *= (15 / 16) ** (count - 1)
            self.now += float(np.dot(steps, _WEIGHTS[_LONGEST - count + 1 :]))
            self._note(count - 1)
            self.transit, self.timestamp = float(of.transit[last]), int(of.timestamp[last])

    def change_clock(self, ratio: float) -> None:
        """Go on with a source whose ticks come so many times as fast."""
        self.now, self.ssrc = 0.0, None
        self._sum *= ratio

    def advance(
        self, count: int, *, now: float, total: float, transit: float, timestamp: int
    ) -> None:
        """Take over what was reckoned elsewhere of the next `count` packets of the same source.

        `total`: the sum of the jitter after each of them.
        """
        self.now, self.transit, self.timestamp = now, transit, timestamp
        self._sum += total
        self._count += count

    def _one(self, transit: float, timestamp: int, ssrc: int, rate: int) -> None:
        if ssrc == self.ssrc:
            if timestamp == self.timestamp:
                return
            step = abs((transit - self.transit + 2**31) % 2**32 - 2**31)
            if step <= rate:  # else its time stamps begin anew
                self.now += (step - self.now) / 16
                self._note(1)
        else:
            self.now = 0.0
        self.ssrc, self.transit, self.timestamp = ssrc, transit, timestamp

    def _note(self, count: int) -> None:
        self._sum += self.now * count
        self._count += count


def mean_opinion(codec: str, loss_ratio: float) -> float | None:
    """MOS (1 to 4.41) of a codec at this packet loss; None: its impairment is not published.

    R = 93.2 - Id - Ie,eff. Id is 0: nothing tells a recorder the delay between the parties.
    ITU-T G.107 §7.5 and Annex B, G.113 Appendix I.
    """
    if codec not in _CODECS:
        return None
    impairment, robustness = _CODECS[codec]
    percent = 100 * loss_ratio
    rating = _R0 - impairment - (95 - impairment) * percent / (percent + robustness)
    if rating <= 0:
        return 1.0
    return max(1.0, 1 + 0.035 * rating + rating * (rating - 60) * (100 - rating) * 7e-6)


def wrapped(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Differences of 32-bit counters, the short way round."""
    around: npt.NDArray[np.float64] = steps - 2**32 * np.rint(steps / 2**32)
    return around
