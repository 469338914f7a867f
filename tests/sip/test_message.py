"""Bytes to messages and back, for well-formed, odd and hostile bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.src import request
from siprec_bridge.sip import (
    BrokenStream,
    Headers,
    KeepAlive,
    MalformedMessage,
    Request,
    StreamFramer,
    parse,
    parse_name_addr,
    parse_uri,
    serialize,
)
from siprec_bridge.sip.headers import split_first, split_list, unquote


def parsed(data: bytes) -> Request:
    message = parse(data)
    assert isinstance(message, Request)
    return message


def test_compact_names_folded_lines_and_bare_line_feeds_are_read() -> None:
    data = (
        b"\r\nINVITE sip:a@b SIP/2.0\nv : SIP/2.0/UDP  h;branch=z9hG4bKx\nf:<sip:x@y>;tag=1\n"
        b"t: <sip:a@b>\ni: id@h\nCSEQ:  7 \t INVITE\nSubject: one\n two\nl: 3\n\nabcdef"
    )

    message = parsed(data)

    assert (message.call_id, message.cseq.number, message.via.host) == ("id@h", 7, "h")
    assert message.headers.get("subject") == "one two"
    assert message.body == b"abc"


@pytest.mark.parametrize("written", ["Content-Length:\r\n 5", "l\t:\n\t 5 ", "content-length: 5"])
def test_a_stream_is_framed_by_a_length_on_a_folded_line_too(written: str) -> None:
    data = request("INVITE", body=b"v=0\r\n").replace(b"Content-Length: 5", written.encode())

    framed = StreamFramer().feed(data + request("OPTIONS"))

    assert len(framed) == 2
    assert isinstance(framed[0], bytes)
    assert parsed(framed[0]).body == b"v=0\r\n"


def test_without_content_length_a_datagram_is_all_body_and_a_stream_has_none() -> None:
    data = request("INVITE", body=b"v=0\r\n").replace(b"Content-Length: 5\r\n", b"")

    (framed, _) = StreamFramer().feed(data + b"\r\n" + request("OPTIONS"))[:2]

    assert parsed(data).body == b"v=0\r\n"
    assert isinstance(framed, bytes)
    assert parsed(framed).body == b""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((b"CSeq: 1 INVITE", b"CSeq: 1 BYE"), "CSeq names another method"),
        ((b"CSeq: 1 INVITE", b"CSeq: 99999999999 INVITE"), "bad CSeq"),
        ((b"Call-ID: call-1\r\n", b""), "no Call-ID"),
        ((b"From: <sip:src@192.0.2.10>;tag=src\r\n", b""), "no From"),
        ((b"Via: SIP/2.0/UDP", b"Via: HTTP/1.1/UDP"), "bad Via"),
        ((b"Content-Length: 0", b"Content-Length: 5"), "body shorter than its Content-Length"),
        ((b"Content-Length: 0", b"Content-Length: -5"), "bad Content-Length"),
        ((b"sip:srs@192.0.2.1 SIP/2.0", b"sip:srs@192.0.2.1 SIP/7.0"), "Version Not Supported"),
        ((b"call-1", b"call-\xfc"), "bad Call-ID"),
        ((b"Via: SIP", b"Via: ,\r\nVia: SIP"), "bad Via"),
        ((b"tag=src", b"tag=src" + b";a" * 101), "too many parameters"),
        ((b"INVITE sip:", b"IN VITE sip:"), "bad Request-URI"),
    ],
)
def test_what_breaks_a_request_is_named(change: tuple[bytes, bytes], reason: str) -> None:
    with pytest.raises(MalformedMessage, match=f"^{reason}"):
        parse(request("INVITE").replace(*change, 1))


@given(st.binary(max_size=500))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for candidate in (data, request("INVITE")[:120] + data, request("INVITE", body=b"x") + data):
        try:
            message = parse(candidate)
        except MalformedMessage:
            continue
        _ = message.call_id, message.cseq, message.via, message.from_, message.to


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Subject", "X-Some", "Record-Route", "v"]),
            st.text(
                st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp", "Zs"]), max_size=30
            ),
        ),
        max_size=5,
    ),
    st.binary(max_size=50),
)
def test_what_is_written_reads_back_equal(fields: list[tuple[str, str]], body: bytes) -> None:
    message = parsed(request("INVITE"))
    for name, value in fields:
        message.headers.add(name, value)
    message.body = body

    first = parsed(serialize(message))
    again = parsed(serialize(first))

    assert (again.headers, again.body, again.uri) == (first.headers, first.body, first.uri)


@given(st.lists(st.integers(0, 80), max_size=12))
def test_any_split_of_a_stream_gives_the_same_messages(cuts: list[int]) -> None:
    one, two = request("OPTIONS"), request("INVITE", body=b"v=0\r\n\r\n")
    stream = b"\r\n" + one + b"\r\n\r\n" + two + two
    framer, got, start = StreamFramer(), [], 0

    for cut in sorted(cut * len(stream) // 80 for cut in cuts):
        got += framer.feed(stream[start:cut])
        start = cut
    got += framer.feed(stream[start:])

    assert got == [one, KeepAlive(), two, two]


def test_a_stream_that_cannot_be_framed_is_given_up() -> None:
    with pytest.raises(MalformedMessage):
        StreamFramer(max_message=1000).feed(b"x" * 1001)
    with pytest.raises(MalformedMessage):
        StreamFramer().feed(b"INVITE x SIP/2.0\r\nContent-Length: many\r\n\r\n")
    with pytest.raises(MalformedMessage):
        StreamFramer().feed(b"INVITE x SIP/2.0\r\nContent-Length: 99999999\r\n\r\n")


def test_what_came_ahead_of_the_message_that_broke_a_stream_is_not_lost() -> None:
    one = request("OPTIONS")
    huge = request("OPTIONS").replace(b"Content-Length: 0", b"Content-Length: 99999999")

    with pytest.raises(BrokenStream) as broken:
        StreamFramer().feed(one + b"\r\n\r\n" + huge)

    assert broken.value.whole == [one, KeepAlive()]
    assert broken.value.head == huge


def test_lists_are_split_outside_of_quotes_and_brackets() -> None:
    text = '"Smith, J." <sip:a@b;x=1,2>;p=",", <sip:c@d> , ,e'

    assert split_list(text) == ['"Smith, J." <sip:a@b;x=1,2>;p=","', "<sip:c@d>", "e"]


@pytest.mark.parametrize(
    ("text", "first", "others"),
    [
        ("a, b,c", "a", ", b,c"),
        (' ,, a;x=","', 'a;x=","', ""),
        ("<sip:a,b>,c", "<sip:a,b>", ",c"),
        ('"a,b', '"a,b', ""),
        ('"a,b\\', '"a,b\\', ""),
        ("<a,b", "<a,b", ""),
        (", ,", "", ""),
    ],
)
def test_the_first_of_a_list_leaves_the_others_as_they_are(
    text: str, first: str, others: str
) -> None:
    assert split_first(text) == (first, others)


@given(st.text('ab\\"'))
def test_quoting_is_undone(text: str) -> None:
    quoted = "".join(f"\\{char}" if char in '\\"' else char for char in text)

    assert unquote(f'"{quoted}"') == text


def test_addresses_of_all_forms_are_read() -> None:
    assert parse_name_addr('"A \\"B\\" <C>" <sip:a@b;lr>;tag=1').display == 'A "B" <C>'
    assert parse_name_addr("sip:a@b;tag=2").tag == "2"
    assert parse_uri("sip:+1;x@[2001:db8::1]:5070;transport=tcp?h=v").host == "2001:db8::1"
    assert parse_uri("sip:a%20b:pw@H.example:5070").aor == "sip:a b@H.example"
    assert parse_uri("tel:+4930;phone-context=x").aor == "tel:+4930"


def test_setting_a_header_keeps_its_place_and_drops_its_doubles() -> None:
    headers = Headers([("Via", "a"), ("To", "b"), ("v", "c")])

    headers.set("via", "d")

    assert list(headers) == [("via", "d"), ("To", "b")]
