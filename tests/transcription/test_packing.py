"""Legs that share a file: nobody's words become another's."""

import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.provider import Outcome, ScriptedProvider
from siprec_bridge.provider import AudioFile, Job, ProviderError
from siprec_bridge.transcript import Segment, Transcript, Word
from siprec_bridge.transcription.packing import SEAM_S, PackingPolicy, Seat, seat, transcribe_packed
from siprec_bridge.transcription.packing import unseat as take_apart
from siprec_bridge.transcription.prepare import Preparation
from siprec_bridge.transcription.speech import SpeechOptions


def leg(key: str, seconds: float) -> AudioFile:
    return AudioFile(key, Path(f"{key}.wav"), seconds)


def call(id: str, *seconds: float) -> Job:
    return Job(id, tuple(leg(str(number), length) for number, length in enumerate(seconds, 1)))


# Alice speaks from 0 to 10, Bob from 11 to 21.
ALICE, BOB = Seat("a", leg("1", 10.0), 0.0), Seat("a", leg("2", 10.0), 10.0 + SEAM_S)
FILE = (ALICE, BOB)


def said(text: str, start: float, end: float, *words: tuple[str, float, float]) -> Segment:
    told = tuple(Word(text=word, start=begins, end=ends) for word, begins, ends in words)
    return Segment(text=text, start=start, end=end, words=told)


def texts(parts: Sequence[Transcript | None]) -> list[str | None]:
    return [None if one is None else one.text for one in parts]


@pytest.mark.parametrize(
    ("policy", "files"),
    [
        ("off", [["a1"], ["a2"], ["b1"], ["b2"], ["b3"]]),
        ("call", [["a1", "a2"], ["b1"], ["b2", "b3"]]),
        ("calls", [["a1", "a2"], ["b1"], ["b2", "b3"]]),
    ],
)
def test_legs_that_fit_into_a_window_share_a_file(
    policy: PackingPolicy, files: list[list[str]]
) -> None:
    jobs = [call("a", 15.0, 14.0), call("b", 40.0, 9.0, 8.0)]

    found = seat(jobs, policy)

    assert sorted([one.job + one.audio.key for one in file] for file in found) == files
    for file in found:
        if len(file) > 1:
            assert file[1].start == file[0].end + SEAM_S
            assert file[-1].end <= 30.0


def test_several_calls_share_a_file_only_where_that_is_wanted() -> None:
    jobs = [call("a", 7.0), call("b", 6.0)]

    assert [len(file) for file in seat(jobs, "call")] == [1, 1]
    assert [[one.job for one in file] for file in seat(jobs, "calls")] == [["a", "b"]]


@pytest.mark.parametrize(
    ("segments", "heard"),
    [
        # Each in its leg; an end that strays over the seam, as recognisers' ends do.
        ([said("hello", 0.5, 10.6), said("good day", 10.9, 20.0)], ["hello", "good day"]),
        # An end that strays into the other's leg by less than its padding.
        ([said("hello", 0.5, 11.2), said("good day", 11.4, 20.0)], ["hello", "good day"]),
        # Across both, without words: no telling who said what.
        ([said("hello good day", 8.0, 14.0)], [None, None]),
        # Half a second of the other's speech is too much.
        ([said("hello yes", 0.5, 11.5), said("good day", 12.0, 20.0)], [None, None]),
        # In the seam alone: somebody's, or made up.
        ([said("hi", 1, 2), said("hm", 10.3, 10.7), said("so", 12, 13)], [None, None]),
        # Across both, with words: cut between them.
        (
            [said("Hello! Good day.", 8, 14, ("Hello!", 8, 9), ("Good", 12, 13), ("day.", 13, 14))],
            ["Hello!", "Good day."],
        ),
        # A word across the seam.
        ([said("hello day", 8, 14, ("hello", 8, 9), ("day", 9.5, 12))], [None, None]),
        # A word whose times are the wrong way round.
        ([said("hello day", 8, 14, ("hello", 8, 9), ("day", 12, 9))], [None, None]),
        # A leg in which nothing was heard may have been overlooked.
        ([said("hello", 0.5, 9.0)], ["hello", None]),
        ([], [None, None]),
    ],
)
def test_what_is_not_clearly_of_one_leg_is_to_be_heard_again(
    segments: list[Segment], heard: list[str | None]
) -> None:
    assert texts(take_apart(FILE, Transcript(segments=tuple(segments)))) == heard


def test_times_are_those_of_the_leg() -> None:
    told = said("good day", 10.6, 21.4, ("good", 10.6, 12.0), ("day", 20.0, 21.4))

    parts = take_apart(FILE, Transcript(language="en", segments=(said("hi", 1, 2), told)))

    assert parts[1] is not None
    [segment] = parts[1].segments
    assert (segment.start, segment.end) == (0.0, 10.0)
    assert [(word.start, word.end) for word in segment.words] == [(0.0, 1.0), (9.0, 10.0)]
    assert parts[1].language == "en"


def test_a_leg_with_doubtful_text_is_judged_by_a_window_of_its_own() -> None:
    phantom = said("Thank you.", 12, 13).model_copy(
        update={"no_speech_prob": 0.9, "avg_logprob": -1.5}
    )

    assert texts(take_apart(FILE, Transcript(segments=(said("hello", 1, 2), phantom)))) == [
        "hello",
        None,
    ]


async def written(files: Sequence[Sequence[Seat]]) -> list[AudioFile]:
    return [AudioFile(str(number), Path("x"), one[-1].end) for number, one in enumerate(files)]


def speaking(answers: dict[str, Segment]) -> Callable[[Job, int], Outcome]:
    """By length of the file: what is said in it."""
    return lambda job, company: {
        one.key: Transcript(segments=(answers[f"{one.duration:g}"],)) for one in job.audio
    }


async def test_a_torn_file_is_heard_again_leg_by_leg_and_nothing_of_it_is_kept() -> None:
    provider = ScriptedProvider(
        speaking(
            {
                "18": said("hello good day", 5.0, 12.0),
                "9": said("hello", 1.0, 2.0),
                "8": said("good day", 1.0, 2.0),
                "40": said("long story", 1.0, 39.0),
            }
        )
    )

    run, packed, again = await transcribe_packed(
        provider, [call("a", 9.0, 40.0), call("b", 8.0)], "calls", written
    )

    assert (packed, again) == (2, 2)
    assert {
        id: {key: one.text for key, one in heard.items()}
        for id, heard in run.outcomes.items()
        if not isinstance(heard, ProviderError)
    } == {"a": {"1": "hello", "2": "long story"}, "b": {"1": "good day"}}
    assert [len(job.audio) for job in provider.given] == [2, 1, 1]


async def test_the_error_of_a_shared_file_is_that_of_all_in_it() -> None:
    def answer(job: Job, company: int) -> Outcome:
        return ProviderError("bad_output") if job.id == "a" else {"1": Transcript()}

    provider = ScriptedProvider(answer)

    run, _, again = await transcribe_packed(
        provider, [call("a", 9.0), call("b", 8.0, 40.0)], "calls", written
    )

    assert {id: str(outcome) for id, outcome in run.outcomes.items()} == {
        "a": "bad_output",
        "b": "bad_output",
    }
    assert again == 0


async def test_where_no_file_can_be_written_each_leg_is_sent_as_it_is() -> None:
    async def full(files: Sequence[Sequence[Seat]]) -> list[AudioFile]:
        raise OSError(28, "No space left on device")

    provider = ScriptedProvider()

    run, packed, _ = await transcribe_packed(provider, [call("a", 9.0, 8.0)], "call", full)

    outcome = run.outcomes["a"]
    assert not isinstance(outcome, ProviderError)
    assert {key: one.text for key, one in outcome.items()} == {"1": "hello", "2": "hello"}
    assert packed == 0


async def test_a_file_holds_each_leg_where_it_is_said_to_be(tmp_path: Path) -> None:
    legs = []
    for number, (seconds, level) in enumerate(((1.0, 500), (2.5, -700))):
        path = tmp_path / f"{number}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.full(round(seconds * 8000), level, "<i2").tobytes())
        legs.append(AudioFile(str(number), path, seconds))
    [seats] = seat([Job("a", tuple(legs))], "call")

    [joined] = await Preparation(8000, SpeechOptions()).join([seats], tmp_path / "new")

    with wave.open(str(joined.path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert joined.duration == len(pcm) / 8000 == 4.5
    for one in seats:
        part = pcm[round(one.start * 8000) : round(one.end * 8000)]
        assert set(part) == {500 if one.audio.key == "0" else -700}
    assert not pcm[round(2.5 * 8000) : round(3.5 * 8000)].any()


_TIMES = st.floats(-1.0, 25.0).map(lambda seconds: round(seconds, 2))


@given(st.lists(st.lists(st.tuples(_TIMES, _TIMES), max_size=5), max_size=6))
def test_whatever_times_words_have_no_leg_gets_what_may_be_anothers(
    told: list[list[tuple[float, float]]],
) -> None:
    segments = []
    for number, times in enumerate(told):
        words = [(f"w{number}x{place}", *pair) for place, pair in enumerate(times)]
        text = " ".join(word for word, *_ in words)
        start = min((min(pair) for pair in times), default=0.0)
        segments.append(said(text, start, max((max(pair) for pair in times), default=1.0), *words))
    seam = 10.0 + SEAM_S / 2
    sides = {
        f"w{number}x{place}": (min(pair) <= seam, max(pair) > seam)
        for number, times in enumerate(told)
        for place, pair in enumerate(times)
    }

    parts = take_apart(FILE, Transcript(segments=tuple(segments)))

    for place, part in enumerate(parts):
        for segment in part.segments if part is not None else ():
            assert segment.text.split() == [word.text for word in segment.words]
            assert min(segment.start, segment.end) >= 0
            assert max(segment.start, segment.end) <= 10.0
            for word in segment.words:
                assert sides[word.text][place]
                assert not sides[word.text][1 - place]
