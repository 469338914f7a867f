"""Text that nobody said: what recognisers make up out of noise, silence or themselves. Pure.

A gate applies only where its figure is known: many recognisers tell none of them, and a leg that no
voice detector has heard has no map.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

from siprec_bridge.transcript import Segment, Suppressed, Transcript
from siprec_bridge.transcription.speech import SpeechMap

GuardPolicy = Literal["suppress", "flag", "off"]

# openai-whisper's own figures. With the first two it takes a window for silence; beyond the second
# or the third it decodes again, at temperatures up to 1, so that what arrives has failed each time.
NO_SPEECH_PROB: Final = 0.6
AVG_LOGPROB: Final = -1.0
COMPRESSION_RATIO: Final = 2.4
# A low likelihood alone is also that of names, dialects and bad lines. At twice Whisper's figure
# its tokens had 13 % each: then it is no reading of anything.
HOPELESS_LOGPROB: Final = 2 * AVG_LOGPROB

# Repetition: callers say "no no no no" and "yes, yes"; loops do not end at that.
_WORDS_IN_A_ROW = 8  # the same word
_PHRASES_IN_A_ROW = 4  # the same two to twelve words, in one segment or as segments
_LONGEST_PHRASE = 12
_BESIDE_S = 0.2  # how far a recogniser's times may miss the speech that it heard

REASONS: Final = ("no_speech", "low_confidence", "compression", "repeated", "outside_speech")


@dataclass(frozen=True, slots=True)
class Guard:
    """Takes out of transcripts what was hardly said, or marks it, as the policy says."""

    policy: GuardPolicy = "suppress"

    def judge(self, transcript: Transcript, speech: SpeechMap | None = None) -> Transcript:
        """The transcript, with doubtful segments in `suppressed` or with their `doubt` named.

        `speech` is on the same time line as the transcript.
        """
        if self.policy == "off":
            return transcript
        doubts = doubtful(transcript.segments, speech)
        if not doubts:
            return transcript
        if self.policy == "flag":
            flagged = tuple(
                one.model_copy(update={"doubt": doubts.get(number)})
                for number, one in enumerate(transcript.segments)
            )
            return transcript.model_copy(update={"segments": flagged})
        kept = tuple(one for number, one in enumerate(transcript.segments) if number not in doubts)
        taken = tuple(
            Suppressed(text=one.text.strip(), start=one.start, end=one.end, reason=doubts[number])
            for number, one in enumerate(transcript.segments)
            if number in doubts
        )
        return transcript.model_copy(
            update={"segments": kept, "suppressed": transcript.suppressed + taken}
        )


def doubtful(segments: Sequence[Segment], speech: SpeechMap | None = None) -> Mapping[int, str]:
    """Segments that were hardly said, by place, each with the first reason that applies."""
    found: dict[int, str] = {}
    for number, segment in enumerate(segments):
        if not segment.text.strip():
            continue
        for reason, gate in _GATES.items():
            if gate(segment):
                found[number] = reason
                break
        else:
            if speech is not None and not speech.is_spoken(segment.start, segment.end, _BESIDE_S):
                found[number] = "outside_speech"
    return {number: "repeated" for number in _echoes(segments)} | found


def _is_silence(segment: Segment) -> bool:
    return (
        segment.no_speech_prob is not None
        and segment.avg_logprob is not None
        and segment.no_speech_prob > NO_SPEECH_PROB
        and segment.avg_logprob < AVG_LOGPROB
    )


def _is_hopeless(segment: Segment) -> bool:
    return segment.avg_logprob is not None and segment.avg_logprob < HOPELESS_LOGPROB


def _compresses(segment: Segment) -> bool:
    return segment.compression_ratio is not None and segment.compression_ratio > COMPRESSION_RATIO


def _loops(segment: Segment) -> bool:
    """The same words over and over make up most of the segment."""
    words = _words(segment.text)
    # One word eight times is two of it four times.
    for size in range(2, min(_LONGEST_PHRASE, len(words) // _PHRASES_IN_A_ROW) + 1):
        run = longest = size
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else size
            longest = max(longest, run)
        if longest >= _PHRASES_IN_A_ROW * size and longest > len(words) / 2:
            return True
    return False


_GATES: Mapping[str, Callable[[Segment], bool]] = {
    "no_speech": _is_silence,
    "low_confidence": _is_hopeless,
    "compression": _compresses,
    "repeated": _loops,
}


def _echoes(segments: Sequence[Segment]) -> set[int]:
    """Places of segments that repeat the one before, in runs too long to be a caller's; not the first."""
    echoes: set[int] = set()
    said = [(tuple(_words(one.text)), number) for number, one in enumerate(segments)]
    for words, group in groupby((one for one in said if one[0]), key=lambda one: one[0]):
        places = [number for _, number in group]
        if len(places) >= (_WORDS_IN_A_ROW if len(words) == 1 else _PHRASES_IN_A_ROW):
            echoes.update(places[1:])
    return echoes


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
