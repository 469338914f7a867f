"""Text that nobody said, and text that only looks like it."""

import pytest

from siprec_bridge.transcript import Segment, Suppressed, Transcript
from siprec_bridge.transcription import Guard
from siprec_bridge.transcription.guard import REASONS, GuardPolicy
from siprec_bridge.transcription.speech import SpeechMap


def said(text: str, start: float = 0.0, **figures: float) -> Segment:
    return Segment.model_validate({"text": text, "start": start, "end": start + 1.0} | figures)


def judged(*segments: Segment, speech: SpeechMap | None = None) -> list[str | None]:
    """For each segment the reason against it."""
    whole = Transcript(segments=segments)
    return [one.doubt for one in Guard("flag").judge(whole, speech).segments]


LOOP = "so we went on and on, " * 5
CASES = {
    "silence taken for speech": (
        said("Thank you.", no_speech_prob=0.7, avg_logprob=-1.2), "no_speech"),
    "a soft but certain voice": (said("Thank you.", no_speech_prob=0.7, avg_logprob=-0.4), None),
    "an unlikely voice that is one": (said("Bcc", no_speech_prob=0.1, avg_logprob=-1.4), None),
    "silence, by half of the figures": (said("Thank you.", no_speech_prob=0.9), None),
    "a guess at every word": (said("Aah hvad", avg_logprob=-2.3), "low_confidence"),
    "a window that compresses": (said("yes yes", compression_ratio=2.6), "compression"),
    "the most that Whisper lets pass": (said("yes yes", compression_ratio=2.4), None),
    "a loop within a segment": (said(LOOP), "repeated"),
    "one word for ever": (said("no, " * 9), "repeated"),
    "one word eight times": (said("no, " * 8), "repeated"),
    "one word seven times": (said("no, " * 7), None),
    "a phrase four times": (said("that is it, " * 4), "repeated"),
    "a phrase three times": (said("that is it, " * 3), None),
    "twelve words four times": (said("a b c d e f g h i j k l. " * 4), "repeated"),
    "a loop that is no more than half of it": (
        said("no " * 8 + "and then we all went back home again"), None),
    "as unlikely as Whisper lets pass": (said("Hm", no_speech_prob=0.7, avg_logprob=-1.0), None),
    "a caller who says no": (said("No no no no! No. I said no."), None),
    "a number": (said("zero zero four nine zero zero zero zero one two"), None),
    "a phrase said twice": (said("call me back, call me back"), None),
    "nothing known": (said("hello"), None),
    "no words at all": (said("..."), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_gate_has_its_reason_and_real_speech_passes(case: str) -> None:
    segment, reason = CASES[case]

    assert judged(segment) == [reason]
    assert reason is None or reason in REASONS


def test_a_loop_over_segments_keeps_its_first() -> None:
    loop = [said("Thanks for watching!", start=float(number)) for number in range(5)]

    assert judged(*loop, said("Bye.", 6.0)) == [None, *["repeated"] * 4, None]


@pytest.mark.parametrize(("text", "most"), [("Yes.", 7), ("Yes, please.", 3)])
def test_an_answer_may_come_again_and_again_but_not_for_ever(text: str, most: int) -> None:
    answers = [said(text, float(number)) for number in range(most + 1)]

    assert judged(*answers[:most]) == [None] * most
    assert judged(*answers) == [None] + ["repeated"] * most


def test_text_where_nobody_spoke_is_doubted_only_when_somebody_has_looked() -> None:
    speech = SpeechMap(8000, 800_000, ((0, 800_000),), spoken=((10.0, 20.0),))
    segments = (said("in it", 15.0), said("at its edge", 20.1), said("far off", 40.0))

    assert judged(*segments, speech=speech) == [None, None, "outside_speech"]
    assert judged(*segments) == [None, None, None]


def test_the_policy_decides_what_becomes_of_it() -> None:
    good, bad = said("hello"), said(" Thank you.", 3.0, no_speech_prob=0.7, avg_logprob=-1.2)
    heard = Transcript(language="en", segments=(good, bad))
    results = {}
    policies: tuple[GuardPolicy, ...] = ("suppress", "flag", "off")

    for policy in policies:
        results[policy] = Guard(policy).judge(heard)

    assert results["suppress"].segments == (good,)
    assert results["suppress"].text == "hello"
    assert results["suppress"].suppressed == (
        Suppressed(text="Thank you.", start=3.0, end=4.0, reason="no_speech"),
    )
    assert [one.doubt for one in results["flag"].segments] == [None, "no_speech"]
    assert results["flag"].suppressed == ()
    assert results["off"] is heard
