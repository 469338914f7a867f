"""What sequence numbers tell: packets lost, repeated, out of order. RFC 3550 §6.4.1, A.1, A.3."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MAX_DROPOUT = 3000  # a larger jump is another stream under the same SSRC. RFC 3550 A.1
_WINDOW = 1024  # how far back a late packet is told from a repeated one


@dataclass(frozen=True, slots=True)
class Reception:
    """The source that is heard now: extended highest sequence number, packets due and come."""

    ssrc: int
    highest: int
    expected: int
    received: int


@dataclass(slots=True)
class SequenceTracker:
    """Counts over one port's packets in order of arrival; a new SSRC starts a new count."""

    packets: int = 0
    duplicates: int = 0
    reordered: int = 0
    _lost_before: int = 0  # in the runs before the current one
    _ssrc: int | None = None
    _first: int = 0  # extended sequence numbers of the current run
    _highest: int = 0
    _seen: int = 0  # bit i: `_highest` - i has come
    _run_packets: int = 0

    @property
    def lost(self) -> int:
        """Packets that have not come (yet)."""
        return self._lost_before + self._lost_in_run

    @property
    def reception(self) -> Reception | None:
        """What a receiver report tells of the current source. RFC 3550 A.3."""
        if self._ssrc is None:
            return None
        expected = self._highest - self._first + 1
        return Reception(self._ssrc, self._highest, expected, self._run_packets)

    @property
    def _lost_in_run(self) -> int:
        if self._ssrc is None:
            return 0
        return max(0, self._highest - self._first + 1 - self._run_packets)

    def add(self, sequence: npt.NDArray[np.uint16], ssrc: npt.NDArray[np.uint32]) -> None:
        """Count packets: arrays of shape (n,) in order of arrival."""
        if len(sequence) == 0:
            return
        steps = np.diff(sequence.astype(np.int32))
        orderly = (
            self._ssrc is not None
            and int(sequence[0]) == (self._highest + 1) & 0xFFFF
            and bool((ssrc == self._ssrc).all())
            and bool(((steps == 1) | (steps == -65535)).all())
        )
        if orderly:
            self.advance(len(sequence))
            return
        for number, source in zip(sequence.tolist(), ssrc.tolist(), strict=True):
            self._add_one(number, source)

    def advance(self, count: int) -> None:
        """Count packets of the same source that came in order, next after the highest one."""
        self.packets += count
        self._run_packets += count
        self._highest += count
        kept = min(count, _WINDOW)
        self._seen = ((self._seen << kept) | ((1 << kept) - 1)) & ((1 << _WINDOW) - 1)

    def rebase(self) -> None:
        """Begin a new count with the next packet: what came in between was not to be kept."""
        self._lost_before += self._lost_in_run
        self._ssrc = None

    def _add_one(self, number: int, source: int) -> None:
        step = (number - self._highest + 0x8000) % 0x10000 - 0x8000
        if source != self._ssrc or abs(step) > _MAX_DROPOUT:
            self._lost_before += self._lost_in_run
            self._ssrc, self._first, self._highest = source, number, number
            self._seen, self._run_packets = 1, 1
            self.packets += 1
            return
        if step > 0:
            self._highest += step
            self._seen = ((self._seen << step) | 1) & ((1 << _WINDOW) - 1)
        elif -step >= _WINDOW or self._seen >> -step & 1:
            self.duplicates += 1
            return
        else:
            self.reordered += 1
            self._seen |= 1 << -step
            self._first = min(self._first, self._highest + step)
        self.packets += 1
        self._run_packets += 1
