"""Where there is speech in a leg, and the two time lines: the call's, and that of what is sent.

What is sent to a recogniser is the pieces that hold speech, in order, with a short pause of silence
(the guard) between two of them. What comes back is told in its time, and is put back on the call's.
Pure: positions are samples, times are seconds.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt

from siprec_bridge.transcript import Segment, Transcript, Word

_MIN_SILENCE_S = 0.3  # shorter pauses lie within words and sentences
_HYSTERESIS = 0.15  # speech goes on until its probability is so far below the threshold
_STRAY_S = 0.3  # a segment's end that reaches so little into another piece strayed there
_WORTH_CUTTING = 0.1  # of the audio; for less, the recogniser gets the file as it is
_STILL = 33.0  # of 32768, -60 dBFS: where nothing is louder for a while, no detector is asked
_STILL_FRAMES = 8
_STOP_FRAMES = 5

Frames = npt.NDArray[np.float32]
Pcm = npt.NDArray[np.int16]


class VoiceDetector(Protocol):
    """Tells speech from the rest, frame by frame; it remembers what went before."""

    sample_rate: int  # Hz
    frame: int  # samples

    def __call__(self, frames: Pcm) -> Frames:
        """Probability of speech in each frame: int16, shape (n, frame), to float32, shape (n,)."""
        ...

    def reset(self) -> None:
        """Forget what was heard: another leg begins."""
        ...


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What counts as speech, in the names of the field."""

    threshold: float = 0.5
    min_speech_ms: int = 250
    max_speech_s: float = 30.0
    pad_ms: int = 400
    guard_ms: int = 200


@dataclass(frozen=True)
class SpeechMap:
    """The pieces of a leg that hold speech, and where they stand in what is sent.

    `pieces` are [start, end) in samples at `rate`, in order and apart; `total` samples are the
    whole leg. Between two pieces that did not touch, `guard` samples of silence are sent.
    `spoken` is where the detector heard speech, [start, end) in seconds, without any padding.
    """

    rate: int
    total: int
    pieces: tuple[tuple[int, int], ...]
    guard: int = 0
    spoken: tuple[tuple[float, float], ...] = ()

    @property
    def packed(self) -> float:
        """Seconds of what is sent."""
        return self.packed_samples / self.rate

    @property
    def packed_samples(self) -> int:
        """The same in samples."""
        return self._places[-1] + self._length(len(self.pieces) - 1) if self.pieces else 0

    @property
    def is_whole(self) -> bool:
        """Nothing is cut: both time lines are the same."""
        return self.packed_samples == self.total

    def guard_before(self, piece: int) -> int:
        """Samples of silence that are sent ahead of this piece; none where nothing was cut."""
        touches = piece == 0 or self.pieces[piece][0] == self.pieces[piece - 1][1]
        return 0 if touches else self.guard

    def is_spoken(self, start: float, end: float, within: float) -> bool:
        """Whether speech was detected in this stretch of the call, or so many seconds beside it."""
        first = bisect_right(self.spoken, start - within, key=lambda run: run[1])
        return first < len(self.spoken) and self.spoken[first][0] < end + within

    def unpack(self, transcript: Transcript) -> Transcript:
        """What was heard in what was sent, on the call's time line.

        A segment with words is split where silence was cut between two of them, so that no word
        lies in silence; one without words keeps its text, and its ends lie in pieces.
        """
        if self.is_whole or not self.pieces:
            return transcript
        segments = [part for one in transcript.segments for part in self._unpacked(one)]
        return transcript.model_copy(update={"segments": tuple(segments)})

    @cached_property
    def _places(self) -> list[int]:
        """Where each piece begins in what is sent."""
        places, at = [], 0
        for number in range(len(self.pieces)):
            at += self.guard_before(number)
            places.append(at)
            at += self._length(number)
        return places

    def _length(self, piece: int) -> int:
        start, end = self.pieces[piece]
        return end - start

    def _piece_of(self, seconds: float) -> int:
        at = seconds * self.rate
        piece = max(0, bisect_right(self._places, at) - 1)
        if piece + 1 < len(self.pieces):
            past = at - self._places[piece] - self._length(piece)
            if past > self._places[piece + 1] - at:
                return piece + 1
        return piece

    def _on_call(self, seconds: float, piece: int) -> float:
        """The time on the call, within this piece."""
        start, end = self.pieces[piece]
        at = start + seconds * self.rate - self._places[piece]
        return min(max(at, start), end) / self.rate

    def _reach(self, first: int, last: int, start: float, end: float) -> tuple[float, float]:
        begins = self._on_call(start, first)
        return begins, max(begins, self._on_call(end, last))

    def _unpacked(self, segment: Segment) -> Iterator[Segment]:
        if not segment.words:
            start, end = self._reach(*self._pieces_under(segment), segment.start, segment.end)
            yield segment.model_copy(update={"start": self._ms(start), "end": self._ms(end)})
            return
        placed = [(self._piece_of((one.start + one.end) / 2), one) for one in segment.words]
        # Pieces that touch are one stretch: nothing was cut between them.
        stretches = [
            list(group) for _, group in groupby(placed, key=lambda one: self._stretches[one[0]])
        ]
        texts = texts_of(segment.text, [[word.text for _, word in one] for one in stretches])
        for number, (stretch, text) in enumerate(zip(stretches, texts, strict=True)):
            words = tuple(self._word(word, piece) for piece, word in stretch)
            start = segment.start if number == 0 else stretch[0][1].start
            end = segment.end if number == len(stretches) - 1 else stretch[-1][1].end
            begins, ends = self._reach(stretch[0][0], stretch[-1][0], start, end)
            yield segment.model_copy(
                update={
                    "text": text,
                    "start": self._ms(begins),
                    "end": self._ms(max(ends, words[-1].end)),
                    "words": words,
                }
            )

    def _word(self, word: Word, piece: int) -> Word:
        start, end = self._reach(piece, piece, word.start, word.end)
        return word.model_copy(update={"start": self._ms(start), "end": self._ms(end)})

    def _ms(self, seconds: float) -> float:
        return min(round(seconds, 3), self.total / self.rate)

    def _pieces_under(self, segment: Segment) -> tuple[int, int]:
        """First and last piece of a segment, without those that it merely strays into."""
        first = self._piece_of(segment.start)
        last = max(first, self._piece_of(segment.end))
        if first < last and self._overlap(first, segment) < _STRAY_S:
            first += 1
        if first < last and self._overlap(last, segment) < _STRAY_S:
            last -= 1
        return first, last

    def _overlap(self, piece: int, segment: Segment) -> float:
        place = self._places[piece] / self.rate
        end = place + self._length(piece) / self.rate
        return min(end, segment.end) - max(place, segment.start)

    @cached_property
    def _stretches(self) -> list[int]:
        """For each piece the number of its stretch: it rises where silence was cut."""
        numbers, number = [], 0
        for piece in range(len(self.pieces)):
            if piece and self.pieces[piece][0] != self.pieces[piece - 1][1]:
                number += 1
            numbers.append(number)
        return numbers


def listen(blocks: Iterable[Pcm], detector: VoiceDetector) -> tuple[Frames, Frames]:
    """Speech (probability) and loudness (RMS) of each frame of the blocks, which are one leg.

    Blocks: int16, (samples,), of any length. What is still is not worth the detector's time.
    """
    speech, loudness = [], []
    left = np.zeros(0, np.int16)
    for block in blocks:
        pcm = np.concatenate([left, block])
        whole = len(pcm) // detector.frame * detector.frame
        frames, left = pcm[:whole].reshape(-1, detector.frame), pcm[whole:]
        if not len(frames):
            continue
        loud = np.sqrt((frames.astype(np.float32) ** 2).mean(axis=1, dtype=np.float32))
        near = np.convolve(loud > _STILL, np.ones(2 * _STILL_FRAMES + 1), "same") > 0
        near = near[: len(frames)] if len(near) > len(frames) else near
        found = np.zeros(len(frames), np.float32)
        if near.any():
            found[near] = detector(frames[near])
        speech.append(found)
        loudness.append(loud)
    if not speech:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    return np.concatenate(speech), np.concatenate(loudness)


def map_speech(
    speech: Frames,
    loudness: Frames,
    frame_s: float,
    options: SpeechOptions,
    *,
    rate: int,
    total: int,
) -> SpeechMap:
    """The map of a leg of `total` samples at `rate`, from what `listen` found.

    No pieces: there is no speech at all. The whole leg is one piece where cutting saves little.
    """
    length = total / rate
    pad, guard = options.pad_ms / 1000, options.guard_ms / 1000
    spoken = tuple(
        (start * frame_s, end * frame_s) for start, end in _runs(speech, frame_s, options)
    )
    padded: list[tuple[float, float]] = []
    for begins, ends in spoken:
        if ends - begins < options.min_speech_ms / 1000:
            continue
        start, end = max(0.0, begins - pad), min(length, ends + pad)
        if padded and start - padded[-1][1] <= guard:  # cutting would save nothing
            padded[-1] = (padded[-1][0], end)
        else:
            padded.append((start, end))
    pieces = tuple(
        (round(start * rate), min(total, round(end * rate)))
        for long in padded
        for start, end in _split(*long, loudness, frame_s, options.max_speech_s)
    )
    cut = SpeechMap(rate, total, pieces, round(guard * rate), spoken)
    if pieces and cut.packed_samples > (1 - _WORTH_CUTTING) * total:
        return SpeechMap(rate, total, ((0, total),), 0, spoken)
    return cut


def _runs(speech: Frames, frame_s: float, options: SpeechOptions) -> Iterator[tuple[int, int]]:
    """Stretches of speech in frames; pauses shorter than the least silence are part of them."""
    going = np.flatnonzero(speech >= options.threshold - _HYSTERESIS)
    if not len(going):
        return
    begins = speech >= options.threshold
    gaps = np.flatnonzero(np.diff(going) * frame_s > _MIN_SILENCE_S) + 1
    for run in np.split(going, gaps):
        loud = run[begins[run]]
        if len(loud):
            yield int(loud[0]), int(run[-1]) + 1


def _split(
    start: float, end: float, loudness: Frames, frame_s: float, longest: float
) -> Iterator[tuple[float, float]]:
    """Pieces of at most `longest` seconds, cut at the quietest frame of their second halves."""
    while end - start > longest:
        first = int((start + longest / 2) / frame_s) + 1
        last = int((start + longest) / frame_s)
        window = loudness[first:last]
        # Over a few frames: a single one may be the stop within a "p".
        level = np.convolve(window, np.ones(_STOP_FRAMES), "same")
        cut = (first + int(np.argmin(level))) * frame_s if len(window) else start + longest
        yield start, cut
        start = cut
    yield start, end


def texts_of(text: str, groups: Sequence[Sequence[str]]) -> list[str]:
    """The text, cut ahead of each group's first word; put together of the words if they differ."""
    cuts, at = [0], 0
    for number, group in enumerate(groups):
        for place, word in enumerate(group):
            found = text.find(word.strip(), at)
            if found < 0:
                return [" ".join(one.strip() for one in words) for words in groups]
            if number and not place:
                cuts.append(found)
            at = found + len(word.strip())
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
