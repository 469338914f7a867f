"""The answer to what we offered once more, to keep a session timer running. RFC 4028 §7.4."""

from datetime import UTC, datetime, timedelta

import pytest

from harness.src import METADATA, OFFER
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import Refused
from siprec_bridge.siprec import Body, Changes, RecordingSession

PORTS = {0: 20000, 1: 20002}
NOTHING = Changes()
MUTE = "m=video 30004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"


def later(seconds: float) -> datetime:
    return datetime(2026, 5, 4, 12, 0, tzinfo=UTC) + timedelta(seconds=seconds)


def started(offer: str = OFFER) -> tuple[RecordingSession, bytes]:
    """A session and what it answered."""
    session = RecordingSession("s", MediaPolicy(), sdp_session_id=7, new_key=bytes)
    session.offer(Body(sdp=offer.encode(), metadata=METADATA.encode()), later(0))
    return session, session.answer(PORTS, "192.0.2.1")


@pytest.mark.parametrize(
    "offer",
    [
        OFFER,
        OFFER + MUTE,
        OFFER.replace("sendonly", "inactive", 1),
        OFFER.replace("RTP/AVP 8\r\n", "RTP/SAVP 8\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 "
                      "inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj\r\n"),
    ],
    ids=["plain", "with a refused line", "on hold", "encrypted"],
)  # fmt: skip
def test_an_answer_that_says_what_the_src_said_before_changes_nothing(offer: str) -> None:
    session, ours = started(offer)
    before = session.document()
    answer = offer.replace("m=video 30004", "m=video 0")

    changes = session.refreshed(Body(sdp=answer.encode()), later(50))

    assert changes == NOTHING
    assert session.document() == before
    assert session.answer(PORTS, "192.0.2.1") == ours  # also the version in its o-line


def test_an_answer_need_not_repeat_labels_and_there_may_be_none() -> None:
    session, _ = started()
    unlabelled = OFFER.replace("a=label:96\r\n", "").replace("a=label:97\r\n", "")
    before = session.document()

    assert session.refreshed(Body(sdp=unlabelled.encode()), later(50)) == NOTHING
    assert session.refreshed(Body(), later(51)) == NOTHING
    assert session.document() == before


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (OFFER + "m=audio 30006 RTP/AVP 0\r\n", 488),
        (OFFER[: OFFER.rindex("m=")], 488),
        (OFFER.replace("m=audio", "m=video"), 488),
        (OFFER.replace("AVP 0 101", "AVP 77").replace("AVP 8", "AVP 77"), 488),
        ("nonsense", 400),
    ],
    ids=["a line more", "a line less", "another kind", "no codec of ours", "no SDP"],
)
def test_what_is_no_answer_to_our_offer_is_refused_and_all_goes_on(
    answer: str, status: int
) -> None:
    session, ours = started()
    before = session.document()

    with pytest.raises(Refused) as refused:
        session.refreshed(Body(sdp=answer.encode()), later(50))

    assert refused.value.status == status
    assert session.document() == before
    assert session.answer(PORTS, "192.0.2.1") == ours


def test_a_line_that_we_refused_stays_refused_whatever_the_answer_says() -> None:
    session, _ = started(OFFER + MUTE)

    with pytest.raises(Refused):
        session.refreshed(Body(sdp=(OFFER + MUTE).encode()), later(50))

    assert session.streams_open() == (0, 1)


def test_an_src_that_changes_something_with_its_answer_is_followed() -> None:
    session, _ = started()
    held = OFFER.replace("sendonly", "inactive", 1).replace("m=audio 30002", "m=audio 0")
    carol = METADATA.replace("Alice", "Carol")

    changes = session.refreshed(Body(sdp=held.encode(), metadata=carol.encode()), later(50))

    assert (changes.paused, changes.closed, changes.opened) == ((0,), (1,), ())
    assert (changes.metadata_changed, changes.needs_answer) == (True, False)
    assert session.document().participants[0].name == "Carol"
