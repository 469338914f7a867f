"""What of a stream is there: where audio arrived, where its sender left out silence, how loud it is.

Kept in cells of 10 ms, an octet each: 360 kB for an hour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

CELLS: Final = 100  # a second
SOUND_DBOV: Final = -50  # speech is at -26 (ITU-T P.56), the noise of a telephone line below -60

_MISSING, _RECEIVED, _LEFT_OUT = 0, 1, 2
_FLOOR_DBOV = -96
_SHORTEST_EDGE = CELLS // 5  # at the ends of a stretch, where signalling and media do not fit

Ints = npt.NDArray[np.int64]
Cells = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Covered:
    """Of the time in which audio was expected; all in seconds.

    `captured` was received or, `left_out`, is silence that its sender did not send. `late` and
    `early`: without audio at the start and at the end. `gaps` are the other stretches without.
    `sound`: how much of what was received is louder than -50 dBov, `received` how much that is.
    """

    expected: float
    captured: float
    left_out: float = 0.0
    late: float = 0.0
    early: float = 0.0
    gaps: int = 0
    longest_gap: float = 0.0
    received: float = 0.0
    sound: float = 0.0


class Coverage:
    """Cells of a time line in units of 1/`unit` s, up to `longest_s`."""

    def __init__(self, unit: int, longest_s: float) -> None:
        self._cell = unit // CELLS
        self._most = round(longest_s * CELLS)
        self._cells: Cells = np.zeros(0, np.uint8)
        self._end = 0

    def receive(self, positions: Ints, lengths: Ints) -> None:
        """Note packets of audio, at least one, by place and length: shape (n,)."""
        first = self._nearest(positions)
        last = self._nearest(positions + lengths)
        breaks = np.flatnonzero((first[1:] > last[:-1]) | (first[1:] < first[:-1])) + 1
        for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(first)], strict=True):
            self._mark(int(first[start]), int(last[start:stop].max()), _RECEIVED)

    def leave_out(self, start: int, stop: int) -> None:
        """Note that the sender had nothing to send from one place to another."""
        ends = self._nearest(np.array([start, stop], np.int64))
        self._mark(int(ends[0]), int(ends[1]), _LEFT_OUT)

    def cells(self, count: int) -> Cells:
        """The first cells."""
        return np.pad(self._cells[: min(count, self._end)], (0, max(0, count - self._end)))

    def gaps(self, spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Start and length in seconds of what is missing within these stretches, in order."""
        found: list[tuple[float, float]] = []
        for start, stop in self._in_cells(spans):
            starts, lengths = _runs(self._between(start, stop) == _MISSING)
            found += [
                ((start + at) / CELLS, length / CELLS)
                for at, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            ]
        return found

    def covered(self, spans: Sequence[tuple[float, float]], levels: Cells) -> Covered:
        """What there is within these stretches, in seconds on the line, in order and disjoint.

        `levels`: see `Levels`, from the line's beginning.
        """
        total = missing = left_out = received = sound = late = early = 0
        gaps: list[int] = []
        ranges = self._in_cells(spans)
        for number, (start, stop) in enumerate(ranges):
            cells = self._between(start, stop)
            total += len(cells)
            missing += int((cells == _MISSING).sum())
            left_out += int((cells == _LEFT_OUT).sum())
            received += int((cells == _RECEIVED).sum())
            there = max(0, -start)  # cells before the line's beginning
            heard = levels[max(0, start) : max(0, stop)]
            here = cells[there : there + len(heard)]
            sound += int(((here == _RECEIVED) & (heard <= -SOUND_DBOV)).sum())
            starts, lengths = _runs(cells == _MISSING)
            for at, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                if at == 0 and number == 0:
                    late = length
                elif at + length == len(cells) and number == len(ranges) - 1:
                    early = length
                elif (at > 0 and at + length < len(cells)) or length > _SHORTEST_EDGE:
                    gaps.append(length)
        expected = sum(stop - start for start, stop in spans)
        return Covered(
            expected=expected,
            captured=max(0.0, min(expected, (total - missing) / CELLS)),
            left_out=left_out / CELLS,
            late=late / CELLS,
            early=early / CELLS,
            gaps=len(gaps),
            longest_gap=max(gaps, default=0) / CELLS,
            received=received / CELLS,
            sound=sound / CELLS,
        )

    def _between(self, start: int, stop: int) -> Cells:
        """Cells from one to another; there is nothing before the line and behind it."""
        inside = self._cells[max(0, start) : max(0, min(stop, self._end))]
        before = min(max(0, -start), stop - start)
        return np.pad(inside, (before, stop - start - before - len(inside)))

    def _in_cells(self, spans: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        """Stretches in cells; one that no line can have, since a clock was set, is cut."""
        found: list[tuple[int, int]] = []
        for since, until in spans:
            start, stop = round(since * CELLS), round(until * CELLS)
            stop = min(stop, max(start, 0) + self._most)
            found.append((max(start, stop - self._most), stop))
        return found

    def _nearest(self, places: Ints) -> Ints:
        cells: Ints = np.clip((places + self._cell // 2) // self._cell, 0, self._most)
        return cells

    def _mark(self, start: int, stop: int, what: int) -> None:
        if stop > len(self._cells):
            grown = np.zeros(min(self._most, max(2 * stop, 60 * CELLS)), np.uint8)
            grown[: self._end] = self._cells[: self._end]
            self._cells = grown
        part = self._cells[start:stop]
        if what == _RECEIVED:
            part[:] = what
        else:
            part[part == _MISSING] = what
        self._end = max(self._end, stop)


class Levels:
    """The level of each cell of audio at one rate, as it comes: 0 is full scale, 96 nothing."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._position = 0  # samples taken
        self._left: npt.NDArray[np.int16] = np.zeros(0, np.int16)
        self._cells = bytearray()  # small arrays, kept, would hold on to the heap around them

    def take(self, pcm: npt.NDArray[np.int16]) -> None:
        """Go on with samples, shape (n,)."""
        pcm = np.concatenate((self._left, pcm))
        begun = self._position - len(self._left)
        self._position = begun + len(pcm)
        cell = begun * CELLS // self._rate  # the first of these samples begins it
        ends = self._position * CELLS // self._rate
        borders = -(-np.arange(cell, ends + 1, dtype=np.int64) * self._rate // CELLS) - begun
        if len(borders) < 2:
            self._left = pcm
            return
        self._left = pcm[borders[-1] :].copy()
        whole = pcm[: borders[-1]].astype(np.float64)
        sizes = np.diff(borders)
        mean = np.add.reduceat(whole, borders[:-1]) / sizes
        power = np.add.reduceat(whole * whole, borders[:-1]) / sizes - mean * mean
        level = 10 * np.log10(np.maximum(power, 0) / 32768**2 + 1e-12)
        self._cells += np.round(-np.clip(level, _FLOOR_DBOV, 0)).astype(np.uint8).tobytes()

    @property
    def cells(self) -> Cells:
        """One for each whole cell so far."""
        return np.frombuffer(bytes(self._cells), np.uint8)


def _runs(wanted: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Starts and lengths of the runs of True."""
    none = np.int8(0)  # of the cells' own width: a call has hundreds of thousands an hour
    edges = np.flatnonzero(np.diff(wanted.view(np.int8), prepend=none, append=none))
    lengths: Ints = edges[1::2] - edges[::2]
    return edges[::2], lengths
