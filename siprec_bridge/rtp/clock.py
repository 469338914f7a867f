"""A source's clock from its sender reports: RTP timestamp to the sender's wall clock. RFC 3550 §6.4.

A crystal keeps its error for hours, so that a straight line through the reports says when each
timestamp was sampled, whatever the network did to the packets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from siprec_bridge.rtp.rtcp import SenderReport

ClockFault = Literal["no_time", "jumps", "odd_rate"]
Floats = npt.NDArray[np.float64]

_SPAN_S = 30.0  # reports of a shorter time tell the offset, but not the pace
_WORST_PACE = 1e-3  # no crystal is off by 1000 ppm
_SCATTER_S = 0.05  # of the timestamps: many name those of the last packet that was sent
_SCATTER_OF_ARRIVAL_S = 0.5  # more of it: somebody's clock was set
_OUTLIERS = 0.2  # so many of the reports may be odd ones


@dataclass(frozen=True, slots=True)
class SourceClock:
    """`timestamp` was sampled at `at_ns`; a tick lasts `pace` / `rate` seconds.

    `at_ns` is on our clock: `offset_ns` ahead of the sender's, by its least late report.
    """

    rate: int
    timestamp: int
    at_ns: int
    pace: float
    offset_ns: int

    def when(self, timestamp: int, near_ns: int) -> int:
        """When this timestamp was sampled: of its turns of 32 bits the one nearest to `near_ns`."""
        turn = 2**32
        ticks_now = (near_ns - self.at_ns) / 1e9 / self.pace * self.rate
        ticks = (timestamp - self.timestamp) % turn
        ticks += turn * round((ticks_now - ticks) / turn)
        return self.at_ns + round(ticks * self.pace / self.rate * 1e9)

    def shifted(self, offset_ns: int) -> "SourceClock":
        """The same with another offset between the clocks."""
        return replace(self, at_ns=self.at_ns + offset_ns - self.offset_ns, offset_ns=offset_ns)


def source_clock(
    reports: Sequence[tuple[int, SenderReport]], rates: Sequence[int]
) -> SourceClock | ClockFault:
    """The clock of one source by its reports, each with its arrival in ns, in order.

    `rates`: RTP clocks in Hz that the stream may have. A fault says why the reports are no help:
    no wall clock in them, timestamps or times that jump, or a rate that is none of these.
    """
    # A sender that knows no time says zero.
    timed = [(at, one) for at, one in reports if one.ntp >> 32]
    if not timed:
        return "no_time"
    first = timed[0][1]
    ntp_ns = [(one.ntp * 1_000_000_000) >> 32 for _, one in timed]
    stamps = np.array([one.timestamp for _, one in timed], np.int64)
    steps = (np.diff(stamps) + 2**31) % 2**32 - 2**31
    ticks = np.concatenate(([0], np.cumsum(steps))).astype(np.float64)
    seconds = np.array([one - ntp_ns[0] for one in ntp_ns], np.float64) / 1e9
    late = np.array([at - one for (at, _), one in zip(timed, ntp_ns, strict=True)], np.int64)
    spread = np.quantile(late, 1 - _OUTLIERS / 2) - np.quantile(late, _OUTLIERS / 2)
    if spread > _SCATTER_OF_ARRIVAL_S * 1e9:
        return "jumps"
    fault: ClockFault = "odd_rate"
    for rate in rates if len(timed) > 1 else rates[:1] if len(set(rates)) == 1 else ():
        pace = _pace(ticks / rate, seconds, (len(timed) + 1) // 2)
        if pace is None:
            if _pace(ticks / rate, seconds, 1) is not None:
                fault = "jumps"  # from one report to the next it is this rate
            continue
        rest = seconds - pace * ticks / rate
        middle = float(np.median(rest))
        fits = np.abs(rest - middle) <= _SCATTER_S
        if np.count_nonzero(~fits) > _OUTLIERS * len(rest):
            fault = "jumps"
            continue
        offset = int(late[fits].min())
        at_ns = ntp_ns[0] + round(middle * 1e9) + offset
        return SourceClock(rate, first.timestamp, at_ns, pace, offset)
    return fault


def _pace(sampled: Floats, told: Floats, apart: int) -> float | None:
    """Seconds of the sender's wall clock for each of its RTP clock; None: no such clock.

    Both are counted from the first report.
    The median of slopes from each report to the one so many behind it: single odd reports do not
    move it, and over half of the time each, neither does the scatter of all.
    """
    runs, waits = sampled[apart:] - sampled[:-apart], told[apart:] - told[:-apart]
    there = runs > 0
    if told[-1] < _SPAN_S or not there.any():
        return 1.0
    pace = float(np.median(waits[there] / runs[there]))
    return pace if abs(pace - 1) <= _WORST_PACE else None
