"""The recording session: offers and metadata in, streams and speakers out."""

import base64
import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.src import METADATA, OFFER, multipart, request
from siprec_bridge import sdp, sip
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import Refused
from siprec_bridge.siprec import (
    Body,
    Changes,
    Fork,
    MalformedMetadata,
    PauseOrder,
    RecordingSession,
    SessionDocument,
    StreamQuality,
    parse_body,
    parse_metadata,
    read_fork,
)

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PORTS = {0: 20000, 1: 20002}


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def new_session(fork: Fork | None = None, policy: MediaPolicy | None = None) -> RecordingSession:
    numbers = iter(range(1, 100))
    return RecordingSession(
        "s",
        policy or MediaPolicy(),
        sdp_session_id=7,
        fork=fork,
        new_key=lambda size: bytes([next(numbers)] * size),
        certificate=lambda: sdp.fingerprint_of(b"ours"),
    )


def full(offer: str = OFFER, metadata: str = METADATA) -> Body:
    return Body(sdp=offer.encode(), metadata=metadata.encode())


def started(body: Body | None = None) -> RecordingSession:
    session = new_session()
    session.offer(body or full(), START)
    session.answer(PORTS, "192.0.2.1")
    return session


def test_an_offer_opens_its_streams_and_metadata_says_who_is_on_them() -> None:
    session = new_session()

    changes = session.offer(full(), START)

    assert [(one.index, one.label) for one in changes.opened] == [(0, "96"), (1, "97")]
    assert changes.needs_answer
    document = session.document()
    assert [one.name for one in document.participants] == ["Alice", "Bob"]
    assert document.group_id == "g1"
    alice = document.speaker("96", later(1))
    bob = document.speaker("97", later(1))
    assert (alice and alice.aor, bob and bob.aor) == (
        "sip:alice@example.com",
        "sip:bob@example.com",
    )
    assert document.warnings == ()


@pytest.mark.parametrize("sdp_first", [True, False])
def test_the_parts_of_a_body_come_in_any_order(sdp_first: bool) -> None:
    body = parse_body('multipart/mixed; boundary="b"', None, multipart(sdp_first=sdp_first))

    assert body.sdp is not None
    assert sdp.parse(body.sdp).media[0].label == "96"
    assert body.metadata is not None
    assert len(parse_metadata(body.metadata).participants) == 2


def test_the_same_offer_again_gets_the_same_answer_and_a_change_a_new_version() -> None:
    session = new_session()
    session.offer(full(), START)
    first = session.answer(PORTS, "192.0.2.1")

    session.offer(full(), later(1))
    again = session.answer(PORTS, "192.0.2.1")
    session.offer(full(OFFER.replace("a=sendonly", "a=inactive", 1)), later(2))
    held = session.answer(PORTS, "192.0.2.1")

    assert again == first
    assert b" 7 0 IN" in first
    assert b" 7 1 IN" in held
    assert b"a=inactive" in held


def test_hold_and_resume_of_one_stream() -> None:
    session = started()

    held = session.offer(full(OFFER.replace("a=sendonly", "a=inactive", 1)), later(5))
    back = session.offer(full(), later(9))

    assert (held.paused, held.opened, held.closed) == ((0,), (), ())
    assert (back.resumed, back.opened) == ((0,), ())


def test_a_stream_can_be_removed_and_added_again() -> None:
    session = started()

    removed = session.offer(full(OFFER.replace("m=audio 30002", "m=audio 0")), later(5))
    answer = sdp.parse(session.answer({0: 20000}, "192.0.2.1"))
    added = session.offer(full(), later(9))

    assert removed.closed == (1,)
    assert [one.port for one in answer.media] == [20000, 0]
    assert [one.index for one in added.opened] == [1]


@pytest.mark.parametrize(
    ("offer", "status"),
    [(OFFER.replace("RTP/AVP", "RTP/SAVP"), 488), (OFFER.replace("v=0", "x=0"), 400)],
)
def test_an_offer_that_is_refused_leaves_all_as_it_was(offer: str, status: int) -> None:
    session = started()
    before = session.document()

    with pytest.raises(Refused) as refusal:
        session.offer(replace(full(offer), warnings=("an odd part",)), later(5))

    assert refusal.value.status == status
    assert status == 400 or "no crypto line" in refusal.value.headers[0][1]
    assert session.document() == before


@pytest.mark.parametrize(
    ("media", "codes"),
    [
        ("m=audio 9 RTP/AVP 15\r\n", ["305"]),
        ("m=video 9 RTP/AVP 96\r\n", ["304"]),
        ("m=audio 9 RTP/SAVP 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\n", ["302"]),
        ("m=audio 9 RTP/AVP 15\r\nm=video 9 RTP/AVP 96\r\n" * 2, ["305", "304"]),
        ("", ["399"]),
    ],
    ids=["codec", "video", "srtp", "codec and video", "nothing"],
)
def test_a_488_says_in_numbers_what_did_not_fit(media: str, codes: list[str]) -> None:
    with pytest.raises(Refused) as refusal:
        new_session().offer(Body(sdp=f"v=0\r\n{media}".encode()), START)

    assert refusal.value.status == 488
    warnings = [value.split() for name, value in refusal.value.headers if name == "Warning"]
    assert [(code, agent) for code, agent, *_ in warnings] == [
        (code, "siprec-bridge") for code in codes
    ]


def test_withdrawing_an_offer_brings_back_what_was() -> None:
    session = started()
    before = session.document()

    session.offer(full(OFFER.replace("a=sendonly", "a=inactive", 1)), later(5))
    session.withdraw()

    assert session.document() == before


def test_another_codec_in_mid_call_is_followed_at_the_same_port() -> None:
    session = started()
    moved = OFFER.replace("30000 RTP/AVP 0 101", "31000 RTP/AVP 8 101").replace(
        "192.0.2.10\r\nt=", "192.0.2.11\r\nt="
    )

    changes = session.offer(full(moved), later(5))
    answer = session.answer(PORTS, "192.0.2.1")

    first, second = changes.changed  # both: where their RTCP goes has moved
    index, codecs = first.index, first.codecs
    assert [one.name for one in second.codecs] == ["PCMA"]
    assert (index, [one.name for one in codecs]) == (0, ["PCMA", "TELEPHONE-EVENT"])
    assert (changes.opened, changes.closed, changes.paused) == ((), (), ())
    assert [one.port for one in sdp.parse(answer).media] == [20000, 20002]
    assert b" 7 1 IN" in answer


def test_only_the_peers_address_changes_and_the_answer_stays_as_it_was() -> None:
    session = new_session()
    session.offer(full(), START)
    first = session.answer(PORTS, "192.0.2.1")

    changes = session.offer(
        full(OFFER.replace("30000", "31000").replace("src 1 1", "src 1 2")), START
    )

    assert session.answer(PORTS, "192.0.2.1") == first
    assert not changes.any


def test_a_new_line_gets_a_port_of_its_own_and_the_others_keep_theirs() -> None:
    session = started()
    third = OFFER + "m=audio 30004 RTP/AVP 0\r\na=sendonly\r\na=label:98\r\n"

    changes = session.offer(full(third), later(5))
    answer = sdp.parse(session.answer(PORTS | {2: 20004}, "192.0.2.1"))

    assert [(one.index, one.label) for one in changes.opened] == [(2, "98")]
    assert [one.port for one in answer.media] == [20000, 20002, 20004]
    opened = [one.opened_at for one in session.document().streams]
    assert opened == [START, START, later(5)]


def test_a_slot_that_is_used_again_takes_its_new_label_and_its_new_speaker() -> None:
    session = started()
    session.offer(full(OFFER.replace("m=audio 30002", "m=audio 0")), later(5))
    renamed = METADATA.replace(">97<", ">99<").replace("p2", "p3").replace("Bob", "Carol")

    changes = session.offer(full(OFFER.replace("label:97", "label:99"), renamed), later(9))
    answer = sdp.parse(session.answer(PORTS, "192.0.2.1"))

    assert [one.index for one in changes.opened] == [1]
    assert answer.media[1].label == "99"
    names = [session.document().speaker("97", later(at)) for at in (1, 10)]
    assert [one and one.name for one in names] == ["Bob", "Carol"]


def test_lines_that_are_gone_from_the_offer_are_closed_and_noted() -> None:
    session = started()

    changes = session.offer(full(OFFER[: OFFER.index("m=audio 30002")]), later(5))

    assert changes.closed == (1,)
    assert session.warnings[0] == "m-line 2 is gone from the offer"
    assert [one.closed_at for one in session.document().streams] == [None, later(5)]


def test_a_line_that_was_closed_ended_then_and_not_with_the_session() -> None:
    session = started()
    session.offer(full(OFFER.replace("m=audio 30002", "m=audio 0")), later(5))

    again = session.offer(full(OFFER.replace("m=audio 30002", "m=audio 0")), later(6))
    gone = session.offer(full(OFFER[: OFFER.index("m=audio 30002")]), later(7))
    session.end(later(9))

    assert (again.closed, gone.closed) == ((), ())
    assert [one.closed_at for one in session.document().streams] == [later(9), later(5)]


def test_an_invite_with_metadata_alone_gets_our_offer() -> None:
    session = new_session()

    changes = session.offer(Body(metadata=METADATA.encode()), START)
    ours = sdp.parse(session.answer(PORTS, "192.0.2.1"))
    session.acknowledged(Body(sdp=OFFER.encode()), later(0.1))

    assert changes.needs_answer
    assert [one.direction for one in ours.media] == ["recvonly", "recvonly"]
    speakers = [session.document().speaker(label, later(1)) for label in ("1", "2")]
    assert [one and one.name for one in speakers] == ["Alice", "Bob"]


def test_sdp_that_is_none_is_400() -> None:
    with pytest.raises(Refused) as refusal:
        new_session().offer(Body(sdp=b"hello"), START)

    assert refusal.value.status == 400


def test_without_metadata_the_call_is_recorded_all_the_same() -> None:
    changes = new_session().offer(Body(sdp=OFFER.encode()), START)

    assert len(changes.opened) == 2


def test_broken_metadata_is_noted_and_the_call_goes_on() -> None:
    session = new_session()

    changes = session.offer(full(metadata="<recording><participant"), START)

    assert len(changes.opened) == 2
    assert session.warnings[0].startswith("metadata: not well-formed")


def test_a_participant_who_takes_a_stream_over_speaks_from_then_on() -> None:
    session = started()
    carol = (
        '<recording><datamode>partial</datamode><participant participant_id="p3">'
        '<nameID aor="sip:carol@example.com"><name>Carol</name></nameID></participant>'
        '<participantstreamassoc participant_id="p3"><send>t2</send></participantstreamassoc>'
        '<participantstreamassoc participant_id="p2"/></recording>'
    )

    changes = session.offer(Body(metadata=carol.encode()), later(10), invite=False)

    assert changes.metadata_changed
    assert not changes.needs_answer
    document = SessionDocument.model_validate_json(session.document().model_dump_json())
    names = [document.speaker("97", later(at)) for at in (5, 15)]
    assert [one and one.name for one in names] == ["Bob", "Carol"]
    assert [one.name for one in document.on_stream("97")] == ["Bob", "Carol"]


def test_labels_that_differ_are_matched_by_order_and_flagged() -> None:
    renamed = METADATA.replace(">96<", ">1<").replace(">97<", ">2<")

    session = started(full(metadata=renamed))

    speaker = session.document().speaker("97", START)
    assert speaker is not None
    assert speaker.name == "Bob"
    assert "labels of metadata and SDP differ: matched by order" in session.warnings


def test_two_speakers_on_one_stream_are_no_speaker() -> None:
    both = METADATA.replace("<send>t2</send>", "<send>t1</send>")

    document = started(full(metadata=both)).document()

    assert document.speaker("96", START) is None
    assert [one.name for one in document.on_stream("96")] == ["Alice", "Bob"]


def test_audio_that_trails_the_last_word_of_the_metadata_still_has_its_speaker() -> None:
    session = started()
    session.end(later(10))

    document = session.document()

    trailing = document.speaker("96", later(12))
    assert trailing is not None
    assert trailing.name == "Alice"
    assert {one.state for one in document.streams} == {"closed"}


def test_an_invite_without_sdp_gets_our_offer_and_its_answer_comes_in_the_ack() -> None:
    session = new_session()

    asked = session.offer(Body(), START)
    ours = sdp.parse(session.answer(PORTS, "192.0.2.1"))
    changes = session.acknowledged(Body(sdp=OFFER.encode()), later(0.1))

    assert len(asked.opened) == 2
    assert [(one.port, one.direction) for one in ours.media] == [
        (20000, "recvonly"),
        (20002, "recvonly"),
    ]
    assert (changes.opened, changes.closed) == ((), ())
    # The metadata may know the streams by the labels of our offer.
    assert [one.label for one in ours.media] == ["1", "2"]
    assert [one.label for one in session.document().streams] == ["1", "2"]


def test_an_answer_that_nobody_waits_for_changes_nothing() -> None:
    session = started()
    before = session.document()
    gone = Body(sdp=OFFER.replace("sendonly", "inactive").encode())

    assert session.acknowledged(gone, later(1)) == Changes()
    assert session.document() == before


def test_a_refresh_without_sdp_crosses_no_offer_of_ours() -> None:
    session = new_session()
    session.offer(Body(), START)

    changes = session.offer(Body(metadata=METADATA.encode()), later(0.1), invite=False)

    assert changes.metadata_changed
    assert not changes.needs_answer


def test_an_offer_that_crosses_ours_is_491_and_one_after_the_answer_is_taken() -> None:
    session = new_session()
    session.offer(Body(), START)
    session.answer(PORTS, "192.0.2.1")

    with pytest.raises(Refused) as refused:
        session.offer(full(), later(0.1))
    late = session.acknowledged(Body(sdp=OFFER.encode()), later(0.2))
    next_one = session.offer(full(OFFER.replace("sendonly", "inactive", 1)), later(0.3))
    media = sdp.parse(session.answer(PORTS, "192.0.2.1")).media

    assert refused.value.status == 491
    assert (late.needs_answer, next_one.needs_answer, next_one.opened) == (False, True, ())
    assert [one.direction for one in media] == ["inactive", "recvonly"]


def test_an_ack_without_the_answer_leaves_what_we_offered_and_is_noted() -> None:
    session = new_session()
    session.offer(Body(), START)
    session.answer(PORTS, "192.0.2.1")

    session.acknowledged(Body(), later(0.1))

    assert len(session.streams_open()) == 2
    assert session.warnings == ("the ACK brought no answer to our offer",)
    assert not session.offer(full(), later(1)).closed


def test_a_reinvite_without_sdp_gets_our_last_description_and_its_ack_may_change_it() -> None:
    session = started()

    session.offer(Body(), later(1))
    again = sdp.parse(session.answer(PORTS, "192.0.2.1"))
    changes = session.acknowledged(
        Body(sdp=OFFER.replace("sendonly", "inactive").encode()), later(1.1)
    )

    assert [one.port for one in again.media] == [20000, 20002]
    assert changes.paused == (0, 1)


@pytest.mark.parametrize(
    ("metadata", "warning"),
    [
        ("<recording>", "metadata: not well-formed"),
        (
            METADATA.replace("complete", "partial").replace('participant participant_id="p2"',
                                                            'participant x="p2"'),
            "metadata names participants that it has never described",
        ),
    ],
    ids=["broken", "in part"],
)  # fmt: skip
def test_metadata_that_was_lost_is_lost_until_a_complete_document_comes(
    metadata: str, warning: str
) -> None:
    session = started(full(metadata=metadata))
    lost, warnings = session.metadata_lost, session.warnings

    session.offer(Body(metadata=METADATA.encode()), later(1), invite=False)

    assert lost
    assert warnings[0].startswith(warning)
    assert not session.metadata_lost


def test_an_update_without_a_body_changes_nothing() -> None:
    assert started().offer(Body(), later(1), invite=False) == Changes()


@pytest.mark.parametrize(
    ("kind", "encoding", "content", "status"),
    [
        ("text/plain", None, b"hi", 415),
        ("application/sdp", "gzip", b"v=0", 415),
        ("multipart/mixed", None, b"--x", 400),
        (None, None, b"x", 415),
        (
            "multipart/mixed;boundary=b",
            None,
            b"--b\r\nContent-Type: x/y\r\nContent-Disposition: z;handling=required\r\n\r\n--b--",
            415,
        ),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    kind: str | None, encoding: str | None, content: bytes, status: int
) -> None:
    with pytest.raises(Refused) as refusal:
        parse_body(kind, encoding, content)

    assert refusal.value.status == status


@given(st.binary(max_size=300))
def test_any_bytes_are_metadata_or_malformed(data: bytes) -> None:
    for candidate in (data, METADATA[:200].encode() + data, b"<recording>" + data):
        with contextlib.suppress(MalformedMetadata):
            parse_metadata(candidate)


@given(st.binary(max_size=300))
def test_any_body_is_taken_apart_or_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):
        parse_body("multipart/mixed;boundary=b", None, b"--b\r\n" + data)


@pytest.mark.parametrize(
    ("call_type", "direction"), [("origCall", "outbound"), ("termCall", "inbound")]
)
def test_broadworks_says_whose_call_it_is_and_which_way_it_went(
    call_type: str, direction: str
) -> None:
    data = (
        "<extensiondata><broadWorksRecordingMetadata xmlns='urn:b'>"
        "<serviceProviderID>ACME</serviceProviderID>"
        f"<callType><{call_type}><callingPartyNumber>1</callingPartyNumber></{call_type}></callType>"
        "</broadWorksRecordingMetadata></extensiondata></recording>"
    )
    session = new_session()
    session.offer(full(metadata=METADATA.replace("</recording>", data)), START)

    assert session.document().call_ids == {"tenant": "ACME", "direction": direction}


def test_vendor_data_is_kept_and_its_call_ids_get_one_name() -> None:
    vendor = (
        '<v:data xmlns:v="urn:vendor"><v:ucid>00FA</v:ucid><v:x a="1"/></v:data>'
        "<extensiondata><callID>half-1</callID></extensiondata>"
    )
    session = new_session(Fork(call_ids={"cisco_guid": "1-2"}))

    session.offer(full(metadata=METADATA.replace("</recording>", vendor + "</recording>")), START)

    document = session.document()
    assert document.call_ids == {"cisco_guid": "1-2", "ucid": "00FA", "call_id": "half-1"}
    assert len(document.extensions) == 2
    assert "00FA" in document.extensions[0]
    assert len(document.participants) == 2


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("cp037", "cp037"),  # EBCDIC: the DTD would not be seen in the octets
        ("utf-7", "UTF-7"),
        ("latin-1", "ISO-8859-1"),
    ],
)
def test_entities_are_refused_in_whatever_encoding(encoding: str, declared: str) -> None:
    bomb = '<!DOCTYPE recording [<!ENTITY a "aaaa">]><recording>&a;</recording>'
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    wide = encoding.startswith("utf-16")
    data = (declaration + bomb).encode(encoding) if wide else declaration.encode()
    data = data if wide else data + bomb.encode(encoding)

    with pytest.raises(MalformedMetadata):
        parse_metadata(data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_a_document_is_read_in_the_encoding_that_it_declares(encoding: str) -> None:
    text = METADATA.replace("UTF-8", encoding.upper()).replace("Alice", "Zoë")

    metadata = parse_metadata(text.encode(encoding))

    assert [one.name for one in metadata.participants] == ["Zoë", "Bob"]


def test_octets_that_are_no_utf_8_are_stored_as_latin_1_and_echoed_as_they_came() -> None:
    offer = OFFER.encode().replace(b"label:96", b"label:M\xfcller").replace(b"97", b"\xff")
    data = request("INVITE", headers=["X-UCID: 1%"]).replace(b"1%", b"\xfc")
    data = data.replace(b"From: <", b'From: "M\xfcller" <')
    invite = sip.parse(data)
    assert isinstance(invite, sip.Request)
    session = new_session(read_fork(invite))

    session.offer(Body(sdp=offer), START)

    stored = SessionDocument.model_validate_json(session.document().model_dump_json())
    assert [one.label for one in stored.streams] == ["M\xfcller", "\xff"]
    assert stored.participants[0].name == "M\xfcller"
    assert stored.call_ids == {"ucid": "\xfc"}
    assert b"a=label:M\xfcller" in session.answer(PORTS, "192.0.2.1")


def test_the_reasons_of_a_refusal_are_short_however_many_lines_were_offered() -> None:
    lines = "".join(f'm=vi"deo{one} 9 RTP/AVP 31\r\n' for one in range(200))

    with pytest.raises(Refused) as refused:
        new_session().offer(Body(sdp=f"v=0\r\n{lines}".encode()), START)

    ((_, warning),) = refused.value.headers
    assert len(warning) < 600
    assert warning.count('"') == 2


def secured(key: int, suite: str = "AES_CM_128_HMAC_SHA1_80", octets: int = 30) -> str:
    """The offer with both streams encrypted, by a key of this octet repeated."""
    text = base64.b64encode(bytes([key] * octets)).decode()
    secure = OFFER.replace("RTP/AVP", "RTP/SAVP")
    return secure.replace("a=label", f"a=crypto:1 {suite} inline:{text}\r\na=label")


def test_keys_reach_the_media_side_and_change_with_the_offer_only() -> None:
    session = new_session()

    opened = session.offer(full(secured(7)), START).opened
    first = session.answer(PORTS, "192.0.2.1")
    same = session.offer(full(secured(7)), later(1)).changed
    again = session.answer(PORTS, "192.0.2.1")
    (new, _) = session.offer(full(secured(8)), later(2)).changed
    after = session.answer(PORTS, "192.0.2.1")
    (other, _) = session.offer(full(secured(9, "AEAD_AES_128_GCM", 28)), later(3)).changed

    keys = [one.keys for one in (*opened, new, other) if one.keys is not None]
    assert [one.remote[0] for one in keys] == [7, 7, 8, 9]
    assert [one.local for one in keys] == [
        bytes([1] * 30),
        bytes([2] * 30),
        bytes([1] * 30),
        bytes([3] * 28),
    ]
    assert (same, first) == ((), again)
    ours = base64.b64encode(keys[0].local)
    assert ours in first
    assert ours in after
    assert base64.b64encode(keys[0].remote) not in first
    assert b"RTP/SAVP" in first


def test_a_secured_line_that_is_taken_away_leaves_no_keys_in_the_answer() -> None:
    session = new_session()
    session.offer(full(secured(7)), START)
    session.answer(PORTS, "192.0.2.1")

    session.offer(full(secured(7).replace("m=audio 30002", "m=audio 0")), later(1))
    first, second = sdp.parse(session.answer(PORTS, "192.0.2.1")).media

    assert (first.port, len(first.crypto_lines)) == (20000, 1)
    assert (second.port, second.crypto_lines) == (0, ())


def test_lines_of_one_offer_may_each_get_their_keys_another_way() -> None:
    session = new_session()
    theirs = f"a=fingerprint:{sdp.fingerprint_of(b'theirs')}\r\na=setup:actpass\r\na=label:97"
    by_dtls = OFFER.replace("a=label:97", theirs).replace("30002 RTP/AVP", "30002 UDP/TLS/RTP/SAVP")
    third = "m=audio 30004 RTP/SAVP 0\r\na=label:98\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:"
    third += base64.b64encode(bytes(30)).decode() + "\r\n"

    session.offer(full(by_dtls + third), START)
    media = sdp.parse(session.answer(PORTS | {2: 20004}, "192.0.2.1")).media

    assert [one.port for one in media] == [20000, 20002, 20004]
    assert [one.attribute("fingerprint") is not None for one in media] == [False, True, False]
    assert [len(one.crypto_lines) for one in media] == [0, 0, 1]


def test_no_document_and_no_repr_holds_a_key() -> None:
    session = new_session()

    changes = session.offer(full(secured(65)), START)
    sdp_answer = session.answer(PORTS, "192.0.2.1")

    told = session.document().model_dump_json() + repr((changes, session._now))
    for key in (bytes([65] * 30), bytes([1] * 30)):
        assert base64.b64encode(key).decode() not in told
        assert repr(key)[2:-1] not in told
    assert b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:AQEB" in sdp_answer


def test_an_invite_without_an_offer_gets_none_where_srtp_is_required() -> None:
    session = new_session(policy=MediaPolicy(srtp="require"))

    with pytest.raises(Refused) as refusal:
        session.offer(Body(), START)

    assert refusal.value.status == 488


def test_the_quality_of_a_stream_that_was_open_twice_is_weighed_by_packets() -> None:
    session = started()
    before = StreamQuality(packets=100, lost=0, loss_ratio=0.0, jitter_ms=1.0, mos=4.4)
    nothing = StreamQuality(packets=0, lost=0)
    after = StreamQuality(packets=300, lost=100, loss_ratio=0.25, jitter_ms=5.0)

    for one in (before, nothing, after):
        session.note_quality(0, one)

    assert session.document().streams[0].quality == StreamQuality(
        packets=400, lost=100, loss_ratio=0.2, jitter_ms=4.0, mos=4.4
    )


def test_where_rtcp_goes_is_told_to_the_media_side_when_it_changes() -> None:
    session = new_session()

    first = session.offer(full(), START).opened
    moved = session.offer(full(OFFER.replace("a=label:96", "a=label:96\r\na=rtcp:4000")), later(1))
    muxed = session.offer(full(OFFER.replace("a=label:96", "a=label:96\r\na=rtcp-mux")), later(2))

    assert [(one.rtcp, one.rtcp_mux) for one in (*first, *moved.changed, *muxed.changed)] == [
        (("192.0.2.10", 30001), False),
        (("192.0.2.10", 30003), False),
        (("192.0.2.10", 4000), False),
        (("192.0.2.10", 30000), True),
    ]
    assert b"a=rtcp-mux" in session.answer(PORTS, "192.0.2.1")


def by_dtls(certificate: bytes, tls_id: str = "") -> Body:
    named = f"a=fingerprint:{sdp.fingerprint_of(certificate)}\r\na=setup:actpass\r\n"
    named += f"a=tls-id:{tls_id * 20}\r\n" if tls_id else ""
    offer = OFFER.replace("RTP/AVP", "UDP/TLS/RTP/SAVP").replace("a=label", named + "a=label")
    return full(offer)


def test_a_reinvite_with_the_same_fingerprint_changes_nothing_and_another_one_is_followed() -> None:
    session = new_session()
    opened = session.offer(by_dtls(b"theirs"), START).opened
    first = session.answer(PORTS, "192.0.2.1")
    again = session.offer(by_dtls(b"theirs"), later(1))
    same = session.answer(PORTS, "192.0.2.1")
    other = session.offer(by_dtls(b"another"), later(2))
    session.withdraw()

    assert [one.fingerprints for one in opened] == [(sdp.fingerprint_of(b"theirs"),)] * 2
    assert (again.opened, again.changed, again.closed) == ((), (), ())
    assert same == first
    assert b"a=setup:passive" in first
    assert f"a=fingerprint:{sdp.fingerprint_of(b'ours')}".encode() in first
    assert [one.fingerprints for one in other.changed] == [(sdp.fingerprint_of(b"another"),)] * 2
    assert session.offer(by_dtls(b"theirs"), later(3)).changed == ()
    plain = session.offer(full(), later(4))
    assert [one.fingerprints for one in plain.changed] == [(), ()]


def test_an_association_that_has_a_name_gets_one_of_ours_until_it_is_another() -> None:
    session = new_session()
    names = []
    for at, tls_id in enumerate(("a", "a", "b", "")):
        session.offer(by_dtls(b"theirs", tls_id), later(at))
        media = sdp.parse(session.answer(PORTS, "192.0.2.1")).media
        names.append([one.attribute("tls-id") for one in media])

    assert names[0] == names[1]
    assert len({*names[0], *names[2]}) == 4
    assert all(name is not None and 20 <= len(name) <= 255 for name in (*names[0], *names[2]))
    assert names[3] == [None, None]


def test_without_a_certificate_of_ours_dtls_is_488_that_says_so() -> None:
    session = RecordingSession("s", MediaPolicy(), sdp_session_id=7, new_key=bytes)

    with pytest.raises(Refused) as refused:
        session.offer(by_dtls(b"theirs"), START)

    assert refused.value.status == 488
    assert refused.value.headers == (("Warning", '302 siprec-bridge "DTLS-SRTP is refused"'),)


def test_a_handshake_that_failed_and_a_full_disk_are_warnings_of_the_session() -> None:
    session = started()

    session.note_handshake(0, "its certificate is not the one of the SDP")
    session.note_handshake(7, "of no stream")
    session.note_unwritten(1, "no space left")
    session.note_unwritten(1, "no space left")

    assert session.warnings == (
        "DTLS-SRTP on label 96: its certificate is not the one of the SDP",
        "label 97 could not be written, audio may be missing: no space left",
    )


def test_what_was_odd_of_a_body_is_noted_once_and_no_peer_can_fill_the_memory_with_it() -> None:
    session = started(replace(full(), warnings=("an odd part",)))

    session.offer(replace(full(), warnings=("an odd part", "x" * 100_000)), later(1))
    noted = session.warnings
    many = tuple(f"part {number} is odd" for number in range(1000))
    session.offer(replace(full(), warnings=many), later(2))

    assert (noted[0], len(noted)) == ("an odd part", 2)
    assert len(session.warnings) == 50
    assert max(map(len, session.warnings)) == 512


def with_labels(first: str, second: str) -> str:
    head, middle, _ = re.split("label:9[67]", OFFER)
    return f"{head}label:{first}{middle}label:{second}\r\n"


def metadata_for(first: str, second: str) -> str:
    """Alice is on the first label, Bob on the second."""
    return METADATA.replace(">96<", f">{first}<").replace(">97<", f">{second}<")


def on_lines(session: RecordingSession) -> dict[int, list[str]]:
    """Who is on each m-line now."""
    document = session.document()
    names = {one.id: one.name or "" for one in document.participants}
    return {
        stream.index: [names[one.participant_id] for one in stream.presences if one.until is None]
        for stream in document.streams
    }


def test_a_line_that_takes_another_label_in_mid_call_has_the_people_of_that_label() -> None:
    session = started()

    session.offer(full(with_labels("1", "97"), metadata_for("1", "97")), later(5))

    assert on_lines(session) == {0: ["Alice"], 1: ["Bob"]}
    assert session.warnings == ()


@pytest.mark.parametrize("metadata", [None, METADATA.encode()], ids=["alone", "metadata as before"])
def test_lines_that_swap_their_labels_swap_their_people(metadata: bytes | None) -> None:
    session = started()

    changes = session.offer(Body(sdp=with_labels("97", "96").encode(), metadata=metadata), later(5))

    assert changes.metadata_changed
    assert on_lines(session) == {0: ["Bob"], 1: ["Alice"]}


def test_lines_without_a_label_are_called_by_their_place() -> None:
    session = started(full(re.sub("a=label:.*\r\n", "", OFFER)))

    assert [one.label for one in session.document().streams] == ["1", "2"]
    assert session.warnings[:2] == ("m-line 1 has no label", "m-line 2 has no label")
    assert b"a=label" not in session.answer(PORTS, "192.0.2.1")


def test_a_label_on_two_lines_is_the_first_one_s_and_both_are_recorded_apart() -> None:
    session = started(full(with_labels("96", "96")))
    answer = sdp.parse(session.answer(PORTS, "192.0.2.1"))

    assert [one.label for one in answer.media] == ["96", "96"]  # as offered
    assert [one.label for one in session.document().streams] == ["96", "96.2"]
    assert on_lines(session) == {0: ["Alice"], 1: []}
    assert session.warnings[0] == "label 96 is on two m-lines"


def test_a_label_that_moves_on_to_another_line_takes_its_people_along() -> None:
    session = started()
    moved = OFFER.replace("audio 30000", "audio 0")
    moved += "m=audio 30004 RTP/AVP 0\r\na=sendonly\r\na=label:96\r\n"

    session.offer(full(moved), later(5))

    assert on_lines(session) == {0: [], 1: ["Bob"], 2: ["Alice"]}
    streams = session.document().streams
    assert len({one.label for one in streams}) == 3  # our own names stay apart


def test_a_new_stream_of_partial_metadata_takes_its_label_from_the_one_before() -> None:
    session = started()
    carol = (
        '<recording xmlns="urn:ietf:params:xml:ns:recording:1"><datamode>partial</datamode>'
        '<participant participant_id="p3"><nameID aor="sip:carol@example.com"><name>Carol</name>'
        '</nameID></participant><stream stream_id="t3" session_id="s1"><label>97</label></stream>'
        '<participantstreamassoc participant_id="p3"><send>t3</send></participantstreamassoc>'
        "</recording>"
    )

    session.offer(Body(metadata=carol.encode()), later(5), invite=False)

    assert on_lines(session) == {0: ["Alice"], 1: ["Carol"]}


def test_lines_that_are_called_the_same_from_now_on_are_told_apart() -> None:
    session = started()

    session.offer(full(OFFER.replace("label:97", "label:96")), later(5))

    first, second = session.document().streams
    assert [one.until for one in first.presences] == [None]
    assert [one.until for one in second.presences] == [later(5)]


def test_a_cancelled_change_is_undone_on_lines_that_it_added_removed_held_or_resumed() -> None:
    session = started(full(OFFER.replace("a=sendonly", "a=inactive", 1)))
    changed = OFFER.replace("audio 30002", "audio 0")
    changed += "m=audio 30004 RTP/AVP 0\r\na=sendonly\r\na=label:98\r\n"
    session.offer(Body(sdp=changed.encode()), later(5))

    undone = session.cancelled(later(6))

    assert [one.index for one in undone.opened] == [1]
    assert (undone.closed, undone.paused, undone.resumed) == ((2,), (0,), ())
    held, removed = session.document().streams
    assert [(one.since, one.until) for one in held.pauses] == [(START, later(5)), (later(6), None)]
    assert [(one.since, one.until) for one in removed.active] == [
        (START, later(5)),
        (later(6), None),
    ]


def test_what_was_ordered_while_a_change_was_followed_outlasts_its_cancel() -> None:
    session = started()
    session.offer(Body(sdp=OFFER.replace("audio 30002", "audio 0").encode()), later(5))
    session.pause(PauseOrder(by="alice"), later(6))
    session.note_unwritten(0, "No space left on device")

    undone = session.cancelled(later(7))

    assert [one.index for one in undone.opened] == [1]
    assert (undone.paused, undone.resumed) == ((1,), ())
    assert session.streams_paused() == (0, 1)
    assert any("No space left" in one for one in session.warnings)


def test_a_cancelled_change_of_codec_is_undone_on_its_line_alone() -> None:
    session = started()
    session.offer(full(OFFER.replace("30002 RTP/AVP 8", "30002 RTP/AVP 0")), later(5))

    undone = session.cancelled(later(6))

    assert [(one.index, one.codecs[0].name) for one in undone.changed] == [(1, "PCMA")]
    assert (undone.opened, undone.closed, undone.paused, undone.resumed) == ((), (), (), ())


def test_an_offer_of_ours_that_was_cancelled_is_pending_no_more() -> None:
    session = started()
    session.offer(Body(), later(1))

    session.cancelled(later(2))

    assert session.offer(full(), later(3)).needs_answer
