"""A live stream cut into utterances: what to transcribe when. No I/O, no clock."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from siprec_asr.audio import RATE, Pcm

# A pause that ends an utterance, what is kept around speech, and the longest utterance: Whisper
# hears 30 s at once.
_PAUSE_S = 0.7
_PAD_S = 0.3
_LONGEST_S = 28.0

Stretches = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Piece:
    """Audio to transcribe: `start` in seconds from the start of the stream.

    Of one `utterance` there are partial pieces, each longer than the last, then a final one.
    """

    utterance: int
    start: float
    pcm: Pcm
    final: bool


class Utterances:
    """Takes PCM as it comes, gives the pieces. `find_speech` tells stretches of speech in PCM."""

    def __init__(self, find_speech: Callable[[Pcm], Stretches]) -> None:
        self._find_speech = find_speech
        self._pcm: Pcm = np.zeros(0, np.int16)
        self._offset = 0  # of _pcm in the stream, in samples
        self._number = 0

    def cut(self, pcm: Pcm, *, last: bool = False) -> list[Piece]:
        """Add audio; the utterances that it ends, and as the last one what is being said.

        `last`: nothing follows, so all that is left is final.
        """
        self._pcm = np.concatenate([self._pcm, pcm])
        pieces: list[Piece] = []
        while True:
            found = self._find_speech(self._pcm)
            if not found:
                self._drop(len(self._pcm) if last else len(self._pcm) - round(2 * _PAD_S * RATE))
                return pieces
            end = self._end(found, last=last)
            if end is None:
                pieces.append(self._piece(found[0][0], len(self._pcm), final=False))
                return pieces
            pieces.append(self._piece(found[0][0], end, final=True))
            self._number += 1
            self._drop(end)

    def _end(self, found: Stretches, *, last: bool) -> int | None:
        """Where the first utterance ends, in samples, or None while it goes on."""
        length = len(self._pcm)
        begin, longest = found[0][0], round(_LONGEST_S * RATE)
        pause, pad = round(_PAUSE_S * RATE), round(_PAD_S * RATE)
        until = [stretch_end for _, stretch_end in found]
        for index, end in enumerate(until):
            following = found[index + 1][0] if index + 1 < len(found) else length
            if end - begin > longest:
                # Better in the pause before, however short; without one in the middle of a word.
                return begin + longest if index == 0 else until[index - 1]
            if following - end >= pause:
                return min(end + pad, length)
        if last:
            return length
        return None

    def _piece(self, speech_from: int, end: int, *, final: bool) -> Piece:
        start = max(0, speech_from - round(_PAD_S * RATE))
        return Piece(self._number, (self._offset + start) / RATE, self._pcm[start:end], final)

    def _drop(self, samples: int) -> None:
        samples = max(0, samples)
        self._pcm = self._pcm[samples:]
        self._offset += samples


def silero_speech(pcm: Pcm) -> Stretches:
    """Stretches of speech by silero-vad, which faster-whisper brings along."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    found = get_speech_timestamps(
        pcm.astype(np.float32) / 32768.0,
        VadOptions(min_speech_duration_ms=200, min_silence_duration_ms=200, speech_pad_ms=60),
    )
    return [(one["start"], one["end"]) for one in found]
