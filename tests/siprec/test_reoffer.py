"""What we offer in a call when the SRC asks for it: a re-INVITE without SDP. RFC 3261 §14.2.

A call controller, such as Cisco's, holds a call by an offer and resumes it by a re-INVITE without one.
"""

from datetime import UTC, datetime, timedelta

from harness.src import METADATA, OFFER
from siprec_bridge import sdp
from siprec_bridge.sdp import Media, MediaPolicy
from siprec_bridge.siprec import Body, PauseOrder, RecordingSession

PORTS = {0: 20000, 1: 20002}


def later(seconds: float) -> datetime:
    return datetime(2026, 5, 4, 12, 0, tzinfo=UTC) + timedelta(seconds=seconds)


def new_session(policy: MediaPolicy | None = None) -> RecordingSession:
    return RecordingSession("s", policy or MediaPolicy(), sdp_session_id=7)


def full(offer: str = OFFER) -> Body:
    return Body(sdp=offer.encode(), metadata=METADATA.encode())


def started(body: Body | None = None) -> RecordingSession:
    session = new_session()
    session.offer(body or full(), later(0))
    session.answer(PORTS, "192.0.2.1")
    return session


def reoffered(session: RecordingSession, at: float) -> tuple[Media, ...]:
    session.offer(Body(), later(at))
    return sdp.parse(session.answer(PORTS, "192.0.2.1")).media


def test_what_is_on_hold_can_be_resumed_by_the_answer_to_our_offer() -> None:
    session = started()
    session.offer(full(OFFER.replace("sendonly", "inactive")), later(1))

    lines = reoffered(session, 2)
    changes = session.acknowledged(Body(sdp=OFFER.encode()), later(2.1))

    assert [one.direction for one in lines] == ["recvonly", "recvonly"]
    assert [one.port for one in lines] == [20000, 20002]
    assert changes.resumed == (0, 1)


def test_a_hold_outlasts_our_offer_until_an_answer_lifts_it() -> None:
    session = started()
    session.offer(full(OFFER.replace("sendonly", "inactive")), later(1))

    reoffered(session, 2)
    session.acknowledged(Body(), later(0.1))

    assert session.streams_paused() == (0, 1)


def test_all_that_can_be_recorded_is_offered_with_payload_types_as_they_were() -> None:
    one_line = "\r\n".join(OFFER.split("\r\n")[:-4]) + "\r\n"
    session = new_session()
    session.offer(full(one_line.replace("AVP 0 101", "AVP 9 97").replace(
        "a=rtpmap:101 telephone-event/8000", "a=rtpmap:97 AMR/8000")), later(0))  # fmt: skip
    session.answer({0: 20000}, "192.0.2.1")

    changes = session.offer(Body(), later(1))
    (line,) = sdp.parse(session.answer({0: 20000}, "192.0.2.1")).media
    answered = session.acknowledged(
        Body(sdp=one_line.replace("AVP 0 101", "AVP 8").encode()), later(1.1)
    )

    names = {codec.payload_type: codec.name for codec in line.codecs}
    assert list(names.items())[:2] == [(9, "G722"), (97, "AMR")]
    assert names.items() >= {(0, "PCMU"), (8, "PCMA"), (18, "G729"), (101, "TELEPHONE-EVENT")}
    # Media may come before the answer does. RFC 3264 §5.1
    ((opened,),) = ([one.codecs for one in changes.changed],)
    assert {codec.payload_type for codec in opened} == set(names)
    assert [[codec.name for codec in one.codecs] for one in answered.changed] == [["PCMA"]]


def test_payload_types_that_the_call_has_used_otherwise_are_not_offered_anew() -> None:
    session = started(full(OFFER.replace("101 telephone-event", "101 iLBC").replace("101 tel", "")))

    line = reoffered(session, 1)[0]

    names = [(codec.payload_type, codec.name) for codec in line.codecs]
    assert (101, "ILBC") in names
    assert "TELEPHONE-EVENT" in [name for _, name in names]
    assert len({one for one, _ in names}) == len(names)


def test_each_codec_is_offered_once_and_each_payload_type_means_one_thing() -> None:
    remapped = OFFER.replace("AVP 0 101", "AVP 96 101 18 100").replace(
        "rtpmap:0 PCMU/8000",
        "rtpmap:96 PCMU/8000\r\na=rtpmap:18 iLBC/8000\r\na=rtpmap:100 X-NONE/8000",
    )
    session = started(full(remapped))

    line = reoffered(session, 1)[0]

    named = [(codec.payload_type, codec.name) for codec in line.codecs]
    assert named[:3] == [(96, "PCMU"), (18, "ILBC"), (101, "TELEPHONE-EVENT")]
    assert len({name for _, name in named}) == len({one for one, _ in named}) == len(named)
    assert {(8, "PCMA"), (9, "G722")} <= set(named)


def test_a_line_that_was_refused_stays_refused_and_a_policy_is_kept() -> None:
    video = OFFER + "m=video 30004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    session = new_session(policy=MediaPolicy(codecs=("PCMU", "PCMA"), telephone_event=False))
    session.offer(full(video), later(0))
    session.answer(PORTS, "192.0.2.1")

    lines = reoffered(session, 1)

    assert [one.port for one in lines] == [20000, 20002, 0]
    assert {codec.name for one in lines[:2] for codec in one.codecs} == {"PCMU", "PCMA"}


def test_an_answer_opens_nothing_that_was_not_offered() -> None:
    session = started(full(OFFER.replace("audio 30002", "audio 0")))

    reoffered(session, 1)
    changes = session.acknowledged(
        Body(sdp=(OFFER + "m=audio 30004 RTP/AVP 0\r\n").encode()), later(1.1)
    )

    assert (changes.opened, session.streams_open()) == ((), (0,))
    assert "the answer has more than we offered" in session.warnings


def test_a_second_invite_without_sdp_opens_no_stream_twice() -> None:
    session = new_session()
    session.offer(Body(), later(0))
    session.answer(PORTS, "192.0.2.1")
    session.acknowledged(Body(), later(0.1))

    again = session.offer(Body(), later(1))

    assert (again.opened, again.needs_answer) == ((), True)


def test_metadata_may_come_with_the_answer_in_the_ack() -> None:
    session = new_session()
    session.offer(Body(), later(0))
    session.answer(PORTS, "192.0.2.1")

    changes = session.acknowledged(full(OFFER.replace("sendonly", "inactive", 1)), later(0.1))

    assert (changes.metadata_changed, changes.paused) == (True, (0,))
    document = session.document()
    assert [one.name for one in document.participants] == ["Alice", "Bob"]
    assert document.warnings == ()


def test_a_mute_that_sdp_and_metadata_move_there_and_back_stays() -> None:
    session = started()
    session.pause(PauseOrder(participant_id="p1"), later(1))
    reoffered(session, 2)
    relabelled = OFFER.replace("label:96", "label:x").replace("label:97", "label:96")
    moved = METADATA.replace("<send>t1<", "<send>t<").replace("<send>t2<", "<send>t1<")
    both = Body(
        sdp=relabelled.replace("label:x", "label:97").encode(),
        metadata=moved.replace("<send>t<", "<send>t2<").encode(),
    )

    changes = session.acknowledged(both, later(2.1))

    assert (changes.paused, changes.resumed) == ((), ())
    assert session.streams_paused() == (0,)


def test_an_offer_is_answered_also_where_ours_before_it_never_was() -> None:
    session = new_session()
    session.offer(Body(), later(0))
    session.answer(PORTS, "192.0.2.1")
    session.acknowledged(Body(), later(0.1))

    session.offer(full(OFFER.replace("a=label:97", "a=label:97\r\na=inactive", 1)), later(1))
    lines = sdp.parse(session.answer(PORTS, "192.0.2.1")).media

    assert [(one.label, one.direction) for one in lines] == [("96", "recvonly"), ("97", "inactive")]
    assert [one.formats for one in lines] == [("0", "101"), ("8",)]


def test_an_ack_with_metadata_alone_brings_no_answer_and_the_next_offer_is_taken() -> None:
    session = new_session()
    session.offer(Body(), later(0))
    session.answer(PORTS, "192.0.2.1")

    changes = session.acknowledged(Body(metadata=full().metadata), later(0.1))

    assert changes.metadata_changed
    assert "the ACK brought no answer to our offer" in session.warnings
    assert session.offer(full(), later(1)).needs_answer
