"""Whether two legs carry the same audio: an SRC that forks one party twice has lost the other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siprec_bridge.media.coverage import CELLS, SOUND_DBOV, Cells

_SHORTEST_SOUND = 2 * CELLS  # less is too little to tell
_LAG = CELLS // 2  # cells by which the legs may be apart
_LIKE_LEVELS = 0.8  # two parties take turns: theirs are at 0 or below
_SAME_LEVELS = 0.95  # where nothing else can be compared
_LIKE_SAMPLES = 0.7  # codecs change the samples: G.729 leaves that much
_LIKE_LOUDNESS_DB = 6  # an echo is weaker
_WINDOWS = 8
_WINDOW_S = 1.0
_FEWEST_WINDOWS = 3
_PIECE = 1 << 15  # cells that are correlated at once

Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Listened:
    """A leg: levels of its cells, its decoded audio by rate, and when its first sample was."""

    levels: Cells
    files: dict[int, Path]
    started_ns: int


def same_audio(one: Listened, other: Listened) -> bool:
    """Compare levels over the whole call, then samples where there is sound.

    Levels alone would take two parties for one who are talked over by the same music.
    """
    shift = round((other.started_ns - one.started_ns) * CELLS / 1e9)
    together = min(len(one.levels), len(other.levels) + shift) - max(0, shift)
    if together < _SHORTEST_SOUND:
        return False
    loud, loud_other = _above(one.levels), _above(other.levels)
    if min(np.count_nonzero(loud), np.count_nonzero(loud_other)) < _SHORTEST_SOUND:
        return False
    likeness, lag = _best_lag(loud, loud_other, shift)
    if likeness < _LIKE_LEVELS:
        return False
    apart = shift - lag  # cell n + apart of the one is cell n of the other
    start, stop = max(0, apart), min(len(loud), len(loud_other) + apart)
    here, there = loud[start:stop], loud_other[start - apart : stop - apart]
    both = (here > 0) & (there > 0)
    if abs(_median(here[both].astype(np.int16) - there[both])) > _LIKE_LOUDNESS_DB:
        return False
    rates = sorted(set(one.files) & set(other.files))
    peaks: list[float] = []
    if rates:
        places = np.flatnonzero(here > 0) + start
        for at in places[np.linspace(0, len(places) - 1, _WINDOWS).astype(int)].tolist():
            peak = _peak(one.files[rates[-1]], other.files[rates[-1]], rates[-1], at, at - apart)
            if peak is not None:
                peaks.append(peak)
    if len(peaks) < _FEWEST_WINDOWS:
        return likeness >= _SAME_LEVELS
    return float(np.median(peaks)) >= _LIKE_SAMPLES


def _above(levels: Cells) -> Cells:
    """Decibels above the threshold of sound; silence is 0."""
    return np.uint8(-SOUND_DBOV) - np.minimum(levels, np.uint8(-SOUND_DBOV))


def _median(differences: npt.NDArray[np.int16]) -> float:
    """Of whole decibels, by counting them: the call may have millions."""
    counts = np.bincount(differences + 256, minlength=512)
    middle = (len(differences) - 1) // 2, len(differences) // 2
    return float(np.searchsorted(np.cumsum(counts), middle, side="right").mean()) - 256


def _best_lag(one: Cells, other: Cells, shift: int) -> tuple[float, int]:
    """The highest correlation, and by how many cells the other one has to come earlier for it.

    Summed up over pieces, so that memory does not grow with the call.
    """
    mean, mean_other = float(one.mean()), float(other.mean())
    products = np.zeros(2 * _LAG + 1)
    energy = energy_other = 0.0
    for start in range(0, max(len(one), len(other)), _PIECE):
        here = _piece(one, mean, start, _PIECE)
        near = _piece(other, mean_other, start - _LAG - shift, _PIECE + 2 * _LAG)
        spectrum = np.fft.rfft(near, 2 * _PIECE) * np.conj(np.fft.rfft(here, 2 * _PIECE))
        products += np.fft.irfft(spectrum, 2 * _PIECE)[: len(products)]
        energy += float(np.dot(here, here))
        there = _piece(other, mean_other, start, _PIECE)
        energy_other += float(np.dot(there, there))
    if energy == 0 or energy_other == 0:
        return 0.0, 0
    best = int(np.argmax(products))
    return float(products[best]) / (energy * energy_other) ** 0.5, best - _LAG


def _piece(cells: Cells, mean: float, start: int, size: int) -> npt.NDArray[np.float64]:
    """How far cells are from their mean, shape (size,); 0 before the first and behind the last."""
    out = np.zeros(size)
    first, last = max(0, start), min(len(cells), start + size)
    if first < last:
        out[first - start : last - start] = cells[first:last] - mean
    return out


def _peak(one: Path, other: Path, rate: int, cell: int, cell_other: int) -> float | None:
    """The highest correlation of a window with what is near it; None: there is no sound."""
    size, play = round(_WINDOW_S * rate), rate // CELLS * 2
    here = _read(one, cell * rate // CELLS, size)
    near = _read(other, cell_other * rate // CELLS - play, size + 2 * play)
    length = 1 << (len(near) + size).bit_length()
    product = np.fft.rfft(near, length) * np.conj(np.fft.rfft(here, length))
    scores = np.fft.irfft(product, length)[: 2 * play + 1]
    squares = np.concatenate(([0.0], np.cumsum(near * near)))
    norms = np.sqrt((squares[size:] - squares[:-size]) * float(np.dot(here, here)))
    norms = norms[: 2 * play + 1]
    if not (norms > 0).any():
        return None
    return float((scores[norms > 0] / norms[norms > 0]).max())


def _read(path: Path, start: int, size: int) -> npt.NDArray[np.float64]:
    """Samples of a raw file, shape (size,); silence before and behind it."""
    out = np.zeros(size)
    skipped = min(size, max(0, -start))
    with path.open("rb") as file:
        file.seek(2 * max(0, start))
        pcm = np.frombuffer(file.read(2 * (size - skipped)), "<i2")
    out[skipped : skipped + len(pcm)] = pcm
    return out
