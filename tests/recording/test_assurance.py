"""The verdict on a session: what its document expected against what its files have."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from siprec_bridge.media import Covered, FinishedAudio, FinishedLeg
from siprec_bridge.recording.assurance import assure
from siprec_bridge.siprec import (
    Assurance,
    Presence,
    SessionDocument,
    Span,
    StreamDocument,
    StreamQuality,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
WHOLE = Covered(expected=60.0, captured=60.0, received=60.0, sound=30.0)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stream(index: int = 0, *active: tuple[float, float | None]) -> StreamDocument:
    return StreamDocument(
        index=index,
        label=str(index + 1),
        state="closed",
        opened_at=START,
        active=tuple(
            Span(since=after(since), until=None if until is None else after(until))
            for since, until in active or ((0.0, 60.0),)
        ),
    )


def leg(index: int = 0, covered: Covered = WHOLE, undecoded: int = 0) -> FinishedLeg:
    return FinishedLeg(
        stream_id=f"s-{index}",
        index=index,
        label=str(index + 1),
        file=f"s-{index}.wav",
        started_at=START,
        duration=60.0,
        sample_rate=8000,
        packets=3000,
        undecoded=undecoded,
        covered=covered,
    )


def judged(
    *legs: FinishedLeg,
    streams: tuple[StreamDocument, ...] | None = None,
    cause: str = "bye",
    audio: FinishedAudio | None = None,
) -> Assurance:
    document = SessionDocument(session_id="s", streams=streams or (stream(0), stream(1)))
    return assure(document, audio or FinishedAudio(legs), after(60.0), cause)


def codes(of: Assurance) -> list[tuple[str, str | None]]:
    return [(one.code, one.label) for one in of.findings]


def test_a_call_that_came_as_a_whole_is_complete() -> None:
    found = judged(leg(0), leg(1))

    assert (found.verdict, found.findings) == ("complete", ())
    assert [(one.expected, one.captured, one.silence) for one in found.streams] == [
        (60.0, 60.0, 0.5)
    ] * 2


def test_a_call_without_any_audio_is_nothing_and_one_leg_without_is_incomplete() -> None:
    nothing, half = judged(), judged(leg(0))

    assert (nothing.verdict, codes(nothing)) == (
        "nothing",
        [("nothing_received", "1"), ("nothing_received", "2")],
    )
    assert (half.verdict, codes(half)) == (
        "incomplete",
        [("nothing_received", "2"), ("one_way", "2")],
    )
    assert [one.verdict for one in half.streams] == ["complete", "nothing"]


def test_where_nothing_was_to_come_nothing_is_missed() -> None:
    held = stream(0, (0.0, 0.5)), stream(1).model_copy(update={"active": ()})

    assert judged(streams=held).verdict == "complete"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"late": 2.0, "captured": 58.0}, "started_late"),
        ({"early": 2.0, "captured": 58.0}, "ended_early"),
        ({"gaps": 3, "longest_gap": 2.0, "captured": 57.0}, "gap"),
        ({"gaps": 30, "longest_gap": 0.02, "captured": 59.4}, "loss"),
        ({"late": 1.9, "early": 1.9, "captured": 56.2}, None),
        ({"gaps": 20, "longest_gap": 0.02, "captured": 59.6}, None),
        ({"late": 9.0, "left_out": 5.0, "captured": 51.0}, None),
        ({"early": 31.0, "left_out": 5.0, "captured": 29.0}, "ended_early"),
    ],
)
def test_what_is_missing_has_a_name(change: dict[str, Any], code: str | None) -> None:
    covered = replace(WHOLE, **change)

    found = judged(leg(0, covered), leg(1, covered))

    assert codes(found) == ([] if code is None else [(code, "1"), (code, "2")])
    assert found.verdict == ("complete" if code is None else "incomplete")


def test_a_party_without_a_sound_while_the_other_one_speaks_is_one_way() -> None:
    mute = replace(WHOLE, sound=0.05)

    assert codes(judged(leg(0), leg(1, mute))) == [("one_way", "2")]
    assert codes(judged(leg(0, mute), leg(1, mute))) == []
    assert judged(leg(0), leg(1, mute)).streams[1].verdict == "incomplete"


def test_legs_of_unequal_length_and_the_same_audio_twice_are_found() -> None:
    short = replace(WHOLE, captured=50.0, longest_gap=1.0, gaps=10)

    unequal = judged(leg(0), leg(1, short))
    twice = judged(audio=FinishedAudio((leg(0), leg(1)), identical=(("1", "2"),)))

    assert codes(unequal) == [("loss", "2"), ("unequal_legs", "2")]
    assert (twice.verdict, codes(twice)) == ("incomplete", [("identical_legs", "1")])


def test_packets_that_nobody_can_hear_are_found() -> None:
    refused = stream(0).model_copy(
        update={"quality": StreamQuality(packets=0, lost=0, unauthenticated=7)}
    )

    damaged = judged(audio=FinishedAudio((leg(0),), damaged=("s-1.spool",)))
    (locked,) = judged(streams=(refused,)).findings

    assert codes(judged(leg(0, undecoded=500), leg(1))) == [("undecoded", "1")]
    assert codes(damaged) == [("damaged", "2"), ("one_way", "2")]
    assert [one.verdict for one in damaged.streams] == ["complete", "nothing"]
    assert locked.detail == "60.0 s were expected, 7 packets that no key opens"


def test_a_stream_of_which_a_part_cannot_be_read_is_incomplete() -> None:
    in_part = judged(audio=FinishedAudio((leg(0), leg(1)), damaged=("s-1.damaged.spool",)))

    assert codes(in_part) == [("damaged", "2")]
    assert [one.verdict for one in in_part.streams] == ["complete", "incomplete"]


def test_a_call_in_which_the_bridge_died_is_not_complete() -> None:
    assert codes(judged(leg(0), leg(1), cause="bridge_restarted")) == [("bridge_restarted", None)]


def test_expected_is_when_it_was_answered_not_on_hold_and_somebody_was_there() -> None:
    one = stream(0, (0.0, 20.0), (30.0, None)).model_copy(
        update={
            "presences": (
                Presence(participant_id="a", since=after(5.0), until=after(35.0)),
                Presence(participant_id="b", since=after(10.0), until=after(12.0)),
                Presence(participant_id="a", since=after(50.0)),
            )
        }
    )

    spans = [
        ((since - START).total_seconds(), (until - START).total_seconds())
        for since, until in one.expected(after(60.0))
    ]

    assert spans == [(5.0, 20.0), (30.0, 35.0), (50.0, 60.0)]
