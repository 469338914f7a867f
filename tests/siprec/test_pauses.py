"""Pausing by order and muting, beside the SRC's own hold."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.src import METADATA, OFFER
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import Refused
from siprec_bridge.siprec import Body, Pause, PauseOrder, RecordingSession

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
HOLD_FIRST = OFFER.replace("a=sendonly", "a=inactive", 1)
CARD = PauseOrder(by="agent 7", reason="card number")


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def full(offer: str = OFFER, metadata: str = METADATA) -> Body:
    return Body(sdp=offer.encode(), metadata=metadata.encode())


def started() -> RecordingSession:
    session = RecordingSession("s", MediaPolicy(), sdp_session_id=7)
    session.offer(full(), START)
    return session


def states(session: RecordingSession) -> list[str]:
    return [one.state for one in session.document().streams]


def pauses(session: RecordingSession, label: str) -> tuple[Pause, ...]:
    stream = session.document().stream(label)
    assert stream is not None
    return stream.pauses


def test_a_paused_session_records_no_stream_and_says_who_wanted_it_when_and_why() -> None:
    session = started()

    paused = session.pause(CARD, later(1))
    resumed = session.resume(None, None, later(4))

    assert (paused.paused, paused.needs_answer) == ((0, 1), False)
    assert resumed.resumed == (0, 1)
    (pause,) = pauses(session, "97")
    assert pause == Pause(
        cause="operator", since=later(1), until=later(4), by="agent 7", reason="card number"
    )


def test_a_stream_is_paused_by_its_label_alone_and_an_order_is_for_one_thing() -> None:
    session = started()

    paused = session.pause(PauseOrder(label="97"), later(1))

    assert paused.paused == (1,)
    assert states(session) == ["active", "paused"]
    with pytest.raises(ValueError, match="not both"):
        PauseOrder(label="97", participant_id="p1")


def test_a_stream_that_joins_a_paused_session_is_paused_as_well() -> None:
    session = started()
    session.pause(CARD, later(1))

    third = OFFER + "m=audio 30004 RTP/AVP 0\r\na=sendonly\r\na=label:98\r\n"
    changes = session.offer(full(third), later(2))

    assert [one.index for one in changes.opened] == [2]
    assert changes.paused == (2,)


def test_the_src_resuming_does_not_lift_what_somebody_ordered_nor_the_other_way_round() -> None:
    session = started()
    session.offer(full(HOLD_FIRST), later(1))
    ordered = session.pause(CARD, later(2))
    back = session.offer(full(), later(3))
    held = states(session)
    session.offer(full(HOLD_FIRST), later(4))
    lifted = session.resume(None, None, later(5))

    assert (ordered.paused, ordered.any) == ((1,), True)
    assert (back.resumed, back.any) == ((), True)
    assert held == ["paused", "paused"]
    assert lifted.resumed == (1,)
    assert states(session) == ["paused", "active"]
    assert [(one.cause, one.since, one.until) for one in pauses(session, "96")] == [
        ("hold", later(1), later(3)),
        ("operator", later(2), later(5)),
        ("hold", later(4), None),
    ]


def test_a_muted_participant_is_silent_on_whichever_stream_he_comes() -> None:
    session = started()
    session.pause(PauseOrder(participant_id="p2", by="supervisor"), later(1))
    first = states(session)
    swapped = (
        METADATA.replace("<send>t1", "<send>t0").replace("<send>t2", "<send>t1")
        .replace("<send>t0", "<send>t2")
    )  # fmt: skip

    changes = session.offer(Body(metadata=swapped.encode()), later(2), invite=False)

    assert first == ["active", "paused"]
    assert (changes.paused, changes.resumed) == ((0,), (1,))
    (muted,) = pauses(session, "96")
    assert (muted.cause, muted.participant_id, muted.by) == ("mute", "p2", "supervisor")


def test_a_mute_outlasts_the_pause_of_its_session() -> None:
    session = started()
    session.pause(PauseOrder(participant_id="p1"), later(1))
    session.pause(CARD, later(2))

    lifted = session.resume(None, None, later(3))

    assert lifted.resumed == (1,)
    assert states(session) == ["paused", "active"]


def test_an_order_for_what_is_not_there_is_refused() -> None:
    session = started()

    with pytest.raises(LookupError, match="no stream has the label 12"):
        session.pause(PauseOrder(label="12"), START)
    with pytest.raises(LookupError, match="no participant has the id p9"):
        session.pause(PauseOrder(participant_id="p9"), START)
    with pytest.raises(LookupError, match="the session is not paused"):
        session.resume(None, None, START)
    assert states(session) == ["active", "active"]


def test_an_offer_that_is_refused_leaves_an_order_in_force() -> None:
    session = started()
    session.pause(CARD, later(1))

    with pytest.raises(Refused):
        session.offer(full(OFFER.replace("RTP/AVP", "RTP/SAVP")), later(2))

    assert states(session) == ["paused", "paused"]
    assert not session.pause(CARD, later(3)).any
    assert len(pauses(session, "96")) == 1


def test_the_end_of_a_stream_is_the_end_of_its_pauses() -> None:
    session = started()
    session.pause(CARD, later(1))

    session.end(later(2))

    assert [one.until for one in pauses(session, "96")] == [later(2)]


TARGETS: list[tuple[str | None, str | None]] = [
    (None, None), ("96", None), ("97", None), (None, "p1"), (None, "p2"),
]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(["pause", "resume", "hold", "unhold"]), st.sampled_from(TARGETS)),
        max_size=30,
    )
)
def test_a_stream_is_recorded_exactly_when_no_pause_of_it_goes_on_and_what_is_over_stays_so(
    steps: list[tuple[str, tuple[str | None, str | None]]],
) -> None:
    session = started()
    recorded = {0: True, 1: True}  # as the media side was told
    before: list[tuple[Pause, ...]] = [(), ()]
    for number, (step, (label, participant)) in enumerate(steps):
        at = later(number)
        try:
            match step:
                case "pause":
                    changes = session.pause(PauseOrder(label, participant), at)
                case "resume":
                    changes = session.resume(label, participant, at)
                case _:
                    changes = session.offer(full(HOLD_FIRST if step == "hold" else OFFER), at)
        except LookupError:
            continue
        recorded |= dict.fromkeys(changes.paused, False) | dict.fromkeys(changes.resumed, True)
        streams = session.document().streams
        for stream in streams:
            going_on = [one for one in stream.pauses if one.until is None]
            assert recorded[stream.index] is (not going_on) is (stream.state == "active")
            over = [one for one in before[stream.index] if one.until is not None]
            assert all(one in stream.pauses for one in over)
        assert changes.pauses_changed is ([one.pauses for one in streams] != before)
        before = [one.pauses for one in streams]
