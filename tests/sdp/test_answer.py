"""Offers of real SRCs and the answers to them; hostile bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.src import OFFER
from siprec_bridge.sdp import (
    Codec,
    MalformedSdp,
    Media,
    MediaPolicy,
    SessionDescription,
    answer,
    parse,
    plan,
)

POLICY = MediaPolicy()


def answered(offer: str, ports: dict[int, int] | None = None) -> SessionDescription:
    parsed = parse(offer.encode())
    plans = plan(parsed, POLICY)
    local = ports or {one.index: 20000 + 2 * one.index for one in plans if one.accepted}
    return answer(parsed, plans, local, address="192.0.2.1", session_id=1, version=1)


def one_line(media: str) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n{media}\r\n"


def test_every_line_is_answered_recvonly_with_its_label_and_our_port() -> None:
    first, second = answered(OFFER).media

    assert (first.label, first.direction, first.port) == ("96", "recvonly", 20000)
    assert [codec.name for codec in first.codecs] == ["PCMU", "TELEPHONE-EVENT"]
    assert (second.label, second.direction, second.port) == ("97", "recvonly", 20002)
    assert second.codecs == (Codec(8, "PCMA", 8000),)


@pytest.mark.parametrize(
    ("time", "answers"),
    [("0 0", "0 0"), ("3700000000 0", "3700000000 0"), ("", "0 0"), ("now then", "0 0")],
)
def test_the_time_is_the_offer_s(time: str, answers: str) -> None:
    text = answered(OFFER.replace("t=0 0", f"t={time}")).write().decode()

    assert f"\r\nt={answers}\r\n" in text


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        ("m=video 5000 RTP/AVP 96\r\na=rtpmap:96 H264/90000", "video is not recorded"),
        ("m=audio 5000 UDP/TLS/RTP/SAVP 0", "DTLS-SRTP is refused"),
        ("m=audio 5000 TCP/RTP/AVP 0", "TCP/RTP/AVP is not supported"),
        ("m=audio 5000 RTP/AVP 15", "no codec in common"),
        ("m=audio 0 RTP/AVP 0", "offered at port 0"),
    ],
)
def test_a_line_that_cannot_be_recorded_is_answered_at_port_0(media: str, reason: str) -> None:
    offer = OFFER + media + "\r\na=label:9\r\n"

    lines = answered(offer).media

    assert [line.port for line in lines] == [20000, 20002, 0]
    assert lines[2].label == "9"
    refused = plan(parse(offer.encode()), POLICY)[2]
    assert (refused.reason, refused.paused) == (reason, False)


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ("sendonly", "recvonly"),
        ("sendrecv", "recvonly"),
        ("recvonly", "inactive"),
        ("inactive", "inactive"),
    ],
)
def test_directions_are_mirrored_for_one_who_only_listens(offered: str, expected: str) -> None:
    (line,) = answered(one_line(f"m=audio 5000 RTP/AVP 0\r\na={offered}")).media

    assert line.direction == expected


def test_a_direction_of_the_session_holds_for_lines_without_one() -> None:
    offer = one_line("a=inactive\r\nm=audio 5000 RTP/AVP 0")

    assert answered(offer).media[0].direction == "inactive"


def test_the_old_hold_by_an_address_of_zeros_is_understood() -> None:
    offer = one_line("m=audio 5000 RTP/AVP 0\r\nc=IN IP4 0.0.0.0")

    assert plan(parse(offer.encode()), POLICY)[0].paused


@pytest.mark.parametrize(
    ("attributes", "port"),
    [
        ("", 5001),
        ("a=rtcp:5009", 5009),
        ("a=rtcp:5009 IN IP4 192.0.2.9", 5009),
        ("a=rtcp:65536", 5001),
        ("a=rtcp-mux", 5000),
        # The one of RFC 3605 is for who cannot share a port. RFC 5761 §5.1.1
        ("a=rtcp:9 IN IP4 0.0.0.0\r\na=rtcp-mux", 5000),
    ],
)
def test_rtcp_goes_where_the_offer_says(attributes: str, port: int) -> None:
    offer = one_line(f"m=audio 5000 RTP/AVP 0\r\n{attributes}".rstrip())

    (one,) = plan(parse(offer.encode()), POLICY)

    assert one.rtcp == ("192.0.2.9", port)


def test_a_line_at_the_highest_port_there_is_has_none_for_its_rtcp() -> None:
    (one,) = plan(parse(one_line("m=audio 65535 RTP/AVP 0").encode()), POLICY)

    assert (one.accepted, one.remote[1], one.rtcp[1]) == (True, 65535, 0)


def test_feedback_profile_and_rtcp_mux_are_accepted_where_they_are_offered() -> None:
    offer = one_line(
        "m=audio 5000 RTP/AVPF 0\r\na=rtcp-mux\r\na=rtcp-fb:* nack\r\nm=audio 5002 RTP/AVP 0"
    )

    first, second = answered(offer).media

    assert (first.protocol, first.rtcp_mux, first.port) == ("RTP/AVPF", True, 20000)
    assert (second.protocol, second.rtcp_mux) == ("RTP/AVP", False)


def test_refused_lines_keep_their_place_their_kind_and_their_protocol() -> None:
    offer = one_line(
        "m=video 5000 RTP/AVPF 96 97\r\na=label:v\r\nm=audio 5002 RTP/AVP 0\r\n"
        "m=audio 5004 RTP/SAVP 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\n"
        "m=application 5006 UDP/BFCP *\r\nm=image 0 udptl t38"
    )

    lines = answered(offer).media

    assert [(one.kind, one.protocol, one.port) for one in lines] == [
        ("video", "RTP/AVPF", 0),
        ("audio", "RTP/AVP", 20002),
        ("audio", "RTP/SAVP", 0),
        ("application", "UDP/BFCP", 0),
        ("image", "udptl", 0),
    ]
    # RFC 3264 §6: one format at least, though nobody will send it.
    assert [one.formats for one in lines] == [("96",), ("0",), ("0",), ("*",), ("t38",)]
    assert lines[2].attribute("crypto") is None


@pytest.mark.parametrize(
    ("connection", "direction"),
    [
        ("", "recvonly"),
        ("c=IN IP4 192.0.2.7\r\n", "recvonly"),
        ("c=IN IP4 224.2.36.42/127\r\n", "recvonly"),
        ("c=IN IP6 2001:db8::7\r\n", "recvonly"),
        ("c=IN IP4 src.example.com\r\n", "recvonly"),
        ("c=IN\r\n", "recvonly"),
        ("c=IN IP4 0.0.0.0\r\n", "inactive"),
    ],
)
@pytest.mark.parametrize("place", ["session", "media"])
def test_whatever_address_is_offered_we_answer_with_ours(
    connection: str, direction: str, place: str
) -> None:
    head, media = "v=0\r\no=x 1 1 IN IP4 0.0.0.0\r\n", "m=audio 5000 RTP/AVP 0\r\na=sendonly\r\n"
    offer = head + connection + media if place == "session" else head + media + connection

    reply = answered(offer)

    assert (reply.connection, reply.media[0].connection) == ("192.0.2.1", "192.0.2.1")
    assert (reply.media[0].port, reply.media[0].direction) == (20000, direction)


@pytest.mark.parametrize(
    "attribute",
    ["a=record:on", "a=record:paused", "a=recordpref:nopreference", "a=recordaware", "a=record"],
)
def test_what_concerns_the_recorded_parties_is_tolerated_and_not_answered(attribute: str) -> None:
    plain = one_line("m=audio 5000 RTP/AVP 0\r\na=sendonly\r\na=label:1")

    for offer in (f"{plain}{attribute}\r\n", plain.replace("m=audio", f"{attribute}\r\nm=audio")):
        assert answered(offer) == answered(plain)


@pytest.mark.parametrize(("address", "family"), [("192.0.2.1", "IP4"), ("2001:db8::1", "IP6")])
def test_an_answer_says_whose_it_is_and_its_version_by_the_family_of_our_address(
    address: str, family: str
) -> None:
    offer = parse(OFFER.encode())

    reply = answer(
        offer, plan(offer, POLICY), {0: 20000, 1: 20002}, address=address, session_id=7, version=3
    )

    lines = reply.write().decode().split("\r\n")
    assert lines[:4] == [
        "v=0", f"o=siprec-bridge 7 3 IN {family} {address}", "s=siprec-bridge",
        f"c=IN {family} {address}",
    ]  # fmt: skip
    assert parse(reply.write()).media[0].connection == address


MEDIA = st.builds(
    Media,
    kind=st.sampled_from(["audio", "video"]),
    port=st.integers(0, 65535),
    protocol=st.sampled_from(["RTP/AVP", "RTP/SAVP"]),
    formats=st.lists(st.integers(0, 127).map(str), min_size=1, max_size=4).map(tuple),
    connection=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    direction=st.sampled_from(["sendonly", "recvonly", "inactive", "sendrecv"]),
    attributes=st.lists(
        st.tuples(
            st.sampled_from(["label", "ptime", "x-y"]), st.from_regex(r"[!-~]{1,8}", fullmatch=True)
        ),
        max_size=3,
    ).map(tuple),
)


@given(st.lists(MEDIA, max_size=4).map(tuple))
def test_what_is_written_reads_back_equal(media: tuple[Media, ...]) -> None:
    description = SessionDescription("a 1 1 IN IP4 192.0.2.1", connection="192.0.2.1", media=media)

    assert parse(description.write()) == description


@given(st.binary(max_size=400))
def test_any_bytes_are_a_description_or_malformed(data: bytes) -> None:
    for candidate in (data, b"v=0\r\n" + data, OFFER.encode() + data):
        try:
            offer = parse(candidate)
        except MalformedSdp:
            continue
        plans = plan(offer, POLICY)
        ports = {one.index: 20000 for one in plans if one.accepted}
        reply = answer(offer, plans, ports, address="192.0.2.1", session_id=1, version=1)
        assert len(parse(reply.write()).media) == len(offer.media)


@pytest.mark.parametrize(
    "line",
    [
        "a=rtpmap:0 PCMU/{}",
        "a=rtpmap:0 PCMU/8000/{}",
        "a=rtpmap:{} PCMU/8000",
        "a=fmtp:{} x",
        "a=ptime:{}",
        "a=rtcp:{}",
        "m=audio 9 RTP/AVP {}",
    ],
)
def test_thousands_of_digits_are_no_number(line: str) -> None:
    text = f"v=0\r\nm=audio 30000 RTP/AVP 0\r\n{line.format('1' * 5000)}\r\n"

    first, *_ = plan(parse(text.encode()), MediaPolicy())

    assert (first.accepted, first.rtcp) == (True, ("", 30001))


def test_a_port_of_thousands_of_digits_is_malformed() -> None:
    with pytest.raises(MalformedSdp):
        parse(b"v=0\r\nm=audio " + b"1" * 5000 + b" RTP/AVP 0\r\n")


def test_codecs_are_answered_in_the_order_of_the_src_with_their_parameters() -> None:
    offered = (
        "m=audio 5000 RTP/AVP 18 111 97 8 15 13 101 96\r\n"
        "a=rtpmap:111 opus/48000/2\r\na=fmtp:111 stereo=1;useinbandfec=1\r\n"
        "a=rtpmap:97 AMR-WB/16000\r\na=fmtp:97 octet-align=1\r\n"
        "a=rtpmap:101 telephone-event/8000\r\na=rtpmap:96 X-OURS/8000\r\na=fmtp:18 annexb=no"
    )

    (line,) = answered(one_line(offered)).media

    assert line.formats == ("18", "111", "97", "8", "13", "101")
    assert ("rtpmap", "111 OPUS/48000/2") in line.attributes
    assert ("rtpmap", "8 PCMA/8000") in line.attributes
    assert ("fmtp", "97 octet-align=1") in line.attributes


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("", "useinbandfec=1"),
        ("a=fmtp:111 minptime=10; useinbandfec=0\r\n", "minptime=10;useinbandfec=1"),
        ("a=fmtp:111 minptime=10; useinbandfec=1\r\n", "minptime=10; useinbandfec=1"),
    ],
)
def test_the_sender_of_opus_is_asked_for_copies_of_its_frames(offered: str, answer: str) -> None:
    text = one_line(f"m=audio 5000 RTP/AVP 111\r\na=rtpmap:111 opus/48000/2\r\n{offered}".rstrip())

    (line,) = answered(text).media

    assert ("fmtp", f"111 {answer}") in line.attributes


@pytest.mark.parametrize(
    "codec",
    [
        Codec(97, "AMR", 8000, fmtp="octet-align=1; interleaving=30"),
        Codec(97, "AMR", 8000, fmtp="octet-align=1; crc=1"),
        Codec(97, "AMR-WB", 16000, fmtp="octet-align=1; robust-sorting=1"),
        Codec(97, "AMR", 8000, 2),
        Codec(97, "OPUS", 24000, 2),
        Codec(97, "L16", 7999),
        Codec(97, "L16", 8000, 6),
        Codec(97, "PCMU", 8000, 2),
        Codec(97, "SPEEX", 16000),
    ],
    ids=str,
)
def test_what_cannot_be_decoded_is_refused(codec: Codec) -> None:
    fmtp = f"\r\na=fmtp:97 {codec.fmtp}" if codec.fmtp else ""
    text = one_line(f"m=audio 5000 RTP/AVP 97\r\na=rtpmap:{codec.rtpmap}{fmtp}")

    (one,) = plan(parse(text.encode()), POLICY)

    assert (one.accepted, one.reason) == (False, "no codec in common")


def test_a_policy_chooses_among_the_codecs() -> None:
    text = one_line("m=audio 5000 RTP/AVP 9 8 18")

    (one,) = plan(parse(text.encode()), MediaPolicy(("G729", "PCMA")))

    assert [codec.name for codec in one.codecs] == ["PCMA", "G729"]
