"""Each party's words into one conversation."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.transcript import (
    Conversation,
    KeyPress,
    Participant,
    RunFacts,
    Segment,
    Suppressed,
    Transcript,
    Word,
)
from siprec_bridge.transcription import RecordedLeg, merge

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ALICE, BOB, CAROL = (Participant(id=name, name=name) for name in ("Alice", "Bob", "Carol"))
FACTS = RunFacts(provider="whisper", model="base", status="success")


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def said(*segments: tuple[float, float, str], language: str = "en") -> Transcript:
    return Transcript(
        language=language,
        segments=tuple(Segment(text=text, start=start, end=end) for start, end, text in segments),
    )


def speaker(label: str, at: datetime) -> Participant | None:
    return {"1": ALICE, "2": BOB if at < later(100) else CAROL}.get(label)


def merged(legs: Sequence[RecordedLeg], heard: dict[str, Transcript]) -> Conversation:
    return merge(
        legs, heard, speaker, session_id="s", sip_call_id="c", group_id=None,
        participants=(ALICE, BOB), started_at=START, ended_at=later(20), facts=FACTS,
    )  # fmt: skip


def test_legs_that_began_at_different_times_meet_on_the_wall_clock() -> None:
    legs = [RecordedLeg("1", later(0.5), 10), RecordedLeg("2", later(3), 10)]

    talk = merged(legs, {"1": said((1, 2, "hi"), (6, 7, "fine")), "2": said((0, 1, "how are you"))})

    assert [(one.participant, one.start, one.text) for one in talk.utterances] == [
        (ALICE, 1.5, "hi"),
        (BOB, 3.0, "how are you"),
        (ALICE, 6.5, "fine"),
    ]
    assert talk.utterances[1].starts_at == later(3)
    assert talk.text == "hi\nhow are you\nfine"
    assert (talk.language, talk.duration) == ("en", 20.0)


def test_an_utterance_is_cut_where_another_takes_the_stream_over() -> None:
    words = tuple(
        Word(text=text, start=start, end=start + 1) for text, start in (("bye", 98), ("hello", 100))
    )
    transcript = Transcript(
        segments=(Segment(text="bye hello", start=98, end=101, words=words),), language="en"
    )

    talk = merged([RecordedLeg("2", START, 200)], {"2": transcript})

    assert [(one.participant, one.text) for one in talk.utterances] == [
        (BOB, "bye"),
        (CAROL, "hello"),
    ]


def test_who_is_there_in_the_middle_of_it_said_what_has_no_words() -> None:
    talk = merged([RecordedLeg("2", START, 200)], {"2": said((99, 104, "hello"), (95, 104, "bye"))})

    assert [(one.participant, one.text) for one in talk.utterances] == [
        (BOB, "bye"),
        (CAROL, "hello"),
    ]


def test_words_are_on_the_clock_of_the_session_and_cut_parts_begin_and_end_with_theirs() -> None:
    words = tuple(Word(text=f" w{at}", start=at, end=at + 0.5) for at in (94, 95, 98, 99))
    transcript = Transcript(segments=(Segment(text="w", start=90, end=103, words=words),))

    talk = merged([RecordedLeg("2", later(3), 200)], {"2": transcript})

    assert [(one.text, one.start, one.end) for one in talk.utterances] == [
        ("w94 w95", 97.0, 98.5),
        ("w98 w99", 101.0, 102.5),
    ]
    assert [(word.start, word.end) for one in talk.utterances for word in one.words] == [
        (97.0, 97.5), (98.0, 98.5), (101.0, 101.5), (102.0, 102.5),
    ]  # fmt: skip


def test_silence_is_a_valid_conversation() -> None:
    legs = [RecordedLeg("1", START, 5), RecordedLeg("2", START, 5)]

    for heard in ({}, {"1": Transcript(), "2": said((0, 1, "  "))}):
        talk = merged(legs, heard)
        assert (talk.utterances, talk.text) == ((), "")
        assert len(talk.legs) == 2
        assert Conversation.model_validate_json(talk.model_dump_json()) == talk


def test_parties_who_speak_different_languages_have_no_common_one() -> None:
    legs = [RecordedLeg("1", START, 5), RecordedLeg("2", START, 5)]

    talk = merged(legs, {"1": said((0, 1, "hi")), "2": said((2, 3, "hallo"), language="de")})

    assert talk.language is None
    assert [one.language for one in talk.utterances] == ["en", "de"]


TIMES = st.floats(0, 1000)
TEXT = st.text(max_size=5).filter(lambda text: "\0" not in text)


@given(
    st.dictionaries(
        st.sampled_from(["1", "2", "3"]),
        st.tuples(TIMES, st.lists(st.tuples(TIMES, TIMES, TEXT), max_size=5)),
    )
)
def test_nothing_said_is_lost_and_time_never_runs_backwards(
    legs: dict[str, tuple[float, list[tuple[float, float, str]]]],
) -> None:
    recorded = [RecordedLeg(label, later(start), 1000) for label, (start, _) in legs.items()]

    talk = merged(recorded, {label: said(*segments) for label, (_, segments) in legs.items()})

    spoken = [text for _, segments in legs.values() for _, _, text in segments if text.strip()]
    assert sorted(one.text for one in talk.utterances) == sorted(text.strip() for text in spoken)
    starts = [one.start for one in talk.utterances]
    assert starts == sorted(starts)
    assert all(one.end >= one.start and one.ends_at >= one.starts_at for one in talk.utterances)


def test_keys_of_a_leg_are_told_on_the_clock_of_the_session() -> None:
    legs = [RecordedLeg("1", later(3), 10, keys=(KeyPress(key="5", start=1.5, duration=0.1),))]

    talk = merged(legs, {})

    assert talk.legs[0].keys == (KeyPress(key="5", start=4.5, duration=0.1),)


def test_what_was_set_aside_is_in_the_document_and_in_no_text() -> None:
    phantom = Suppressed(text="Thank you.", start=2, end=3, reason="no_speech")
    heard = Transcript(suppressed=(phantom,), speech=4.5)

    talk = merged([RecordedLeg("1", later(3), 10)], {"1": heard})

    assert (talk.text, talk.utterances) == ("", ())
    (kept,) = talk.suppressed
    assert (kept.label, kept.start, kept.end, kept.reason) == ("1", 5.0, 6.0, "no_speech")
    assert talk.legs[0].speech == 4.5
    assert Conversation.model_validate_json(talk.model_dump_json()) == talk


def test_a_doubt_stays_with_its_utterance() -> None:
    segment = Segment(text="Thank you.", start=2, end=3, doubt="no_speech")

    talk = merged([RecordedLeg("1", later(3), 10)], {"1": Transcript(segments=(segment,))})

    assert [one.doubt for one in talk.utterances] == ["no_speech"]
