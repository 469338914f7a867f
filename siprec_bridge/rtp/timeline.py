"""Where packets lie on a stream's time line: by RTP timestamp, by arrival where that breaks.

A timestamp that goes on as the sequence numbers do is believed whatever the network did. One
that does not (new SSRC, restarted sender, a clock that stood still on hold) is replaced by the
time of arrival since the line began, so that the line keeps the call's length and no error of
one break is carried into the next. Each source keeps its own place: packets of a stranger, or a
source that comes back, move nobody else's.

A source whose sender reports tell its clock is placed by that clock: how fast its timestamps run
on the wall, and when they began, which no late packet changes.

Codecs have RTP clocks of their own and a call may change its codec: the line's own unit is told
apart from the clock of the packets. Timestamps of two clocks cannot be compared (RFC 7160), so
where the clock changes the arrival counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from siprec_bridge.rtp.clock import SourceClock

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_TOLERANCE_S = 1.0  # timestamps and arrivals may differ by so much: jitter
_EVENT_TOLERANCE_S = 10.0  # an event's packets carry the time when it began
_LONGEST_PACKET_S = 0.25
_LOOK_AHEAD = 10  # packets that show whether a late one came in a burst
_EARLY = 50  # first packets among which the earliest one is looked for
_FIRST_JITTER_NS = 200_000_000  # by at most so much is the first packet taken to be late
_SOURCES = 8  # remembered: a flood of made-up ones must not cost memory
_STEP_BACK_NS = 1_000_000_000
_STEP_AHEAD_NS = 12 * 3600 * 1_000_000_000  # no hold is that long: the clock was set


@dataclass(slots=True)
class _Source:
    """The last packet of an SSRC."""

    timestamp: int
    sequence: int
    arrival_ns: int
    position: int
    rtp_clock: int


@dataclass(slots=True)
class Timeline:
    """Positions in units of 1/`clock_rate` s. Feed packets in order of arrival, in any pieces.

    `clocks`: of the sources whose sender reports are to be believed, by SSRC.
    """

    clock_rate: int
    clocks: Mapping[int, SourceClock] = field(default_factory=dict)
    end: int = 0  # behind the last sample
    discontinuities: int = 0
    origin_ns: int | None = None  # time that position 0 stands for
    by_clock: bool = False  # that time is a source's, not that of its packets' arrival
    _sources: dict[int, _Source] = field(default_factory=dict)
    _clock_ns: int = 0  # last arrival, as it was told
    _stepped_ns: int = 0  # by how much the wall clock was set since the first packet

    def place(
        self,
        timestamp: npt.NDArray[np.uint32],
        sequence: npt.NDArray[np.uint16],
        ssrc: npt.NDArray[np.uint32],
        arrival_ns: Ints,
        samples: Ints,
        *,
        interrupted: bool = False,
        rtp_clock: int | None = None,
    ) -> Ints:
        """The position of each packet's first sample: int64, shape (n,); negative: too early.

        `samples` is the length of each packet, in the line's unit. `interrupted`: recording stood
        still before these packets (a pause), so that an unbroken timestamp proves nothing.
        `rtp_clock`: Hz of the timestamps, if not the line's own; it must divide `clock_rate`.
        """
        count = len(timestamp)
        positions = np.zeros(count, np.int64)
        if count == 0:
            return positions
        arrivals = self._steady(arrival_ns)
        changes = (np.flatnonzero(np.diff(ssrc)) + 1).tolist()
        for start, stop in zip([0, *changes], [*changes, count], strict=True):
            run = slice(start, stop)
            positions[run] = self._place_run(
                int(ssrc[start]),
                timestamp[run],
                sequence[run],
                arrivals[run],
                samples[run],
                interrupted and start == 0,
                rtp_clock or self.clock_rate,
            )
        return positions

    def locate(self, timestamp: int, ssrc: int, arrival_ns: int, rtp_clock: int) -> int:
        """Where a timestamp lies, without placing a packet: for what lasts no time of its own.

        By the source's last packet; by the arrival where that is no help.
        """
        unit = self.clock_rate
        since = arrival_ns - self._stepped_ns - (self.origin_ns or arrival_ns)
        came = round(since * (unit / 1e9))
        source = self._sources.get(ssrc)
        if source is None or source.rtp_clock != rtp_clock:
            return came
        ticks = (timestamp - source.timestamp + (1 << 31)) % (1 << 32) - (1 << 31)
        there = source.position + ticks * (unit // rtp_clock)
        return there if abs(there - came) <= _EVENT_TOLERANCE_S * unit else came

    def _steady(self, arrival_ns: Ints) -> Ints:
        """Arrivals as a clock would tell them that nobody sets."""
        if self.origin_ns is None:
            self._clock_ns = int(arrival_ns[0])
        waits: Ints = np.diff(arrival_ns, prepend=self._clock_ns)
        jumped = (waits < -_STEP_BACK_NS) | (waits > _STEP_AHEAD_NS)
        stepped: Ints = self._stepped_ns + np.cumsum(np.where(jumped, waits, 0))
        self._clock_ns, self._stepped_ns = int(arrival_ns[-1]), int(stepped[-1])
        steady: Ints = arrival_ns - stepped
        return steady

    def _place_run(
        self,
        ssrc: int,
        timestamp: npt.NDArray[np.uint32],
        sequence: npt.NDArray[np.uint16],
        arrivals: Ints,
        samples: Ints,
        interrupted: bool,
        rtp_clock: int,
    ) -> Ints:
        """Place packets of one source that came one after another."""
        source = self._sources.pop(ssrc, None)
        known = source is not None
        if source is None:
            source = _Source(int(timestamp[0]), int(sequence[0]), int(arrivals[0]), 0, rtp_clock)
        ticks = _wrapped(timestamp, source.timestamp, 32) * (self.clock_rate // rtp_clock)
        other_clock = source.rtp_clock != rtp_clock
        clock = self.clocks.get(ssrc)
        if clock is not None and clock.rate != rtp_clock:
            clock = None
        if other_clock:
            ticks[0] = 0
        numbers = _wrapped(sequence, source.sequence, 16)
        waits = np.diff(arrivals, prepend=source.arrival_ns) * (self.clock_rate / 1e9)
        off = np.abs(ticks - waits) > _TOLERANCE_S * self.clock_rate
        anew = other_clock or not (known or self.origin_ns is None)
        broken: list[int] = [0] if anew else []
        for index in np.flatnonzero(off).tolist():
            if index == 0 and anew:
                continue
            stood_still = index == 0 and interrupted and waits[0] > ticks[0]
            if stood_still or self._breaks(index, ticks, numbers, waits):
                broken.append(index)
        positions = np.cumsum(ticks)
        if clock is not None:
            positions = np.round(positions * clock.pace).astype(np.int64)
        positions += source.position
        if self.origin_ns is None:
            positions -= max(-self.clock_rate, int(positions[:_EARLY].min()))
            self.origin_ns = self._origin(positions, arrivals)
            sampled = _sampled(clock, int(timestamp[0]), int(arrivals[0]))
            if sampled is not None:
                self.by_clock = True
                self.origin_ns = sampled - round(int(positions[0]) * (1e9 / self.clock_rate))
        self._start_anew(broken, positions, arrivals, samples, timestamp, clock)
        self._sources[ssrc] = _Source(
            int(timestamp[-1]), int(sequence[-1]), int(arrivals[-1]), int(positions[-1]), rtp_clock
        )
        if len(self._sources) > _SOURCES:
            del self._sources[next(iter(self._sources))]  # the one not heard for longest
        self.end = max(self.end, int((positions + samples).max()))
        return positions

    def _origin(self, positions: Ints, arrivals: Ints) -> int:
        """When position 0 was: by the least late of the first packets."""
        starts = arrivals[:_EARLY] - np.round(positions[:_EARLY] * (1e9 / self.clock_rate))
        first = int(starts[0])
        return max(int(starts.min()), first - _FIRST_JITTER_NS)

    def _start_anew(
        self,
        broken: list[int],
        positions: Ints,
        arrivals: Ints,
        samples: Ints,
        timestamp: npt.NDArray[np.uint32],
        clock: SourceClock | None,
    ) -> None:
        """Move what follows each break to when it was sampled, or its least late packet came."""
        self.discontinuities += len(broken)
        since_origin = (arrivals - (self.origin_ns or 0)) * (self.clock_rate / 1e9)
        for index, after in zip(broken, [*broken[1:], len(positions)], strict=False):
            near = slice(index, min(after, index + _EARLY))
            ahead = positions[near] - positions[index]
            came = round(float((since_origin[near] - ahead).min()))
            sampled = _sampled(clock, int(timestamp[index]), int(arrivals[index]))
            if sampled is not None:
                came = round((sampled - (self.origin_ns or 0)) * (self.clock_rate / 1e9))
            # What starts anew must not write over what was there before.
            before = int((positions[:index] + samples[:index]).max(initial=self.end))
            positions[index:] += max(came, before) - positions[index]

    def _breaks(self, index: int, ticks: Ints, numbers: Ints, waits: Floats) -> bool:
        """Whether a timestamp that disagrees with the arrival is the wrong one of the two."""
        packets = max(1, abs(int(numbers[index])))
        if abs(int(ticks[index])) > packets * _LONGEST_PACKET_S * self.clock_rate:
            return True
        # The packets go on in order but came late: together in a burst when the network held
        # them up, one by one when the sender's clock stood still.
        ahead = slice(index + 1, index + 1 + _LOOK_AHEAD)
        sent, came = int(ticks[ahead].sum()), float(waits[ahead].sum())
        return sent > 0 and came >= sent / 2


def _sampled(clock: SourceClock | None, timestamp: int, came_ns: int) -> int | None:
    """When a packet was sampled, by its source's clock; None: that does not say."""
    if clock is None:
        return None
    at_ns = clock.when(timestamp, came_ns)
    return at_ns if abs(at_ns - came_ns) <= _TOLERANCE_S * 1e9 else None


def _wrapped(
    values: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], before: int, bits: int
) -> Ints:
    """Differences of neighbours, the shorter way around."""
    half = 1 << (bits - 1)
    wide = values.astype(np.int64)
    steps = wide - np.concatenate(([before], wide[:-1]))
    return ((steps + half) & ((1 << bits) - 1)) - half
