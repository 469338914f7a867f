"""What a message of 64 KB may cost, whatever is in it: 20 ms, and no more than its length."""

import contextlib
import gc
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from harness.src import METADATA, OFFER, TCP_PEER, multipart, request, responses, statuses
from harness.srs import Srs
from siprec_bridge.recording.ladder import LadderKeeper
from siprec_bridge.sip import DigestAuthority, KeepAlive, MalformedMessage, StreamFramer
from siprec_bridge.store import Database

SIZE = 64_000
BUDGET_S = 0.020
AUTHORITY = DigestAuthority("here", {"src": "secret"}, b"seal")

Message = Callable[[int], bytes]


def repeated(pattern: str, size: int) -> str:
    """The pattern with a number of its own (`#`) as often as it fits."""
    if "#" not in pattern:
        return pattern * (size // len(pattern))
    each = len(pattern.replace("#", "10000"))
    return "".join(pattern.replace("#", str(10000 + one)) for one in range(size // each))


def header(text: str, size: int) -> bytes:
    """An INVITE with more header text ahead of its own headers."""
    head, tail = request("INVITE", body=multipart()).split(b"\r\n", 1)
    start, pattern, end = text.split("|")
    middle = repeated(pattern, size - len(tail) - len(text) - 64)
    return head + f"\r\n{start}{middle}{end}\r\n".encode() + tail


def fields(pattern: str, size: int) -> bytes:
    """An INVITE with more lines behind its own headers."""
    data = request("INVITE", body=multipart())
    mark = b"Content-Type:"
    return data.replace(mark, repeated(pattern, size - len(data) - 64).encode() + mark, 1)


def after(mark: bytes, pattern: str, size: int) -> bytes:
    """An INVITE with more text behind a part of its own headers."""
    data = request("INVITE", body=multipart())
    return data.replace(mark, mark + repeated(pattern, size - len(data)).encode(), 1)


def offer(text: str, size: int) -> bytes:
    """An INVITE whose SDP is followed by more."""
    start, pattern, end = text.split("|")
    more = start + repeated(pattern, size - 2000) + end
    return request("INVITE", body=multipart(sdp=OFFER + more + "\r\n"))


def metadata(text: str, size: int) -> bytes:
    """An INVITE whose metadata holds more."""
    start, pattern, end = text.split("|")
    more = start + repeated(pattern, size - 2000) + end
    return request(
        "INVITE",
        body=multipart(metadata=METADATA.replace("</recording>", more + "</recording>")),
    )


def nested(opening: str, closing: str, size: int) -> bytes:
    count = (size - 2000) // (len(opening) + len(closing))
    return metadata(f"{opening * count}| |{closing * count}", 2000)


def body(text: str, size: int) -> bytes:
    """An INVITE with a multipart body of nothing but this."""
    start, pattern, end = text.split("|")
    return request("INVITE", body=(start + repeated(pattern, size - 500) + end).encode())


NASTY: dict[str, Message] = {
    "via fields": partial(fields, "Via: SIP/2.0/UDP h#;branch=z9hG4bK#\r\n"),
    "via values": partial(header, "Via: |SIP/2.0/UDP h#;branch=z9hG4bK#, |SIP/2.0/UDP h"),
    "empty via values": partial(header, "Via: |,|SIP/2.0/UDP h"),
    "unknown fields": partial(fields, "X-#: a\r\n"),
    "shortest fields": partial(fields, "a:\r\n"),
    "lines that are no fields": partial(fields, "a\r\n"),
    "bare line feeds": partial(fields, "a\n"),
    "one long word": partial(header, "Subject: |a|"),
    "one long name": partial(header, "|a|: b"),
    "folded lines": partial(fields, " b\r\n"),
    "folded blanks": partial(header, "Subject: a|\r\n                               |"),
    "blanks in a Content-Length": partial(header, "l:| |\rx"),
    "blanks ahead of a Content-Length": partial(header, "l| |:\rx"),
    "blanks in a Call-ID": partial(header, "i: a| |b"),
    "blanks in a broken Call-ID": partial(header, "i:| |\rx"),
    "parentheses": partial(after, b"From: ", "("),
    "brackets": partial(after, b"From: ", "<"),
    "closing brackets": partial(after, b"From: <sip:src@192.0.2.10>", ">"),
    "bracketed values": partial(header, "Contact: |<a>,|<sip:a@b>"),
    "quotes": partial(after, b"From: ", '"'),
    "an unclosed quote": partial(header, 'Contact: "|a|'),
    "backslashes in quotes": partial(header, 'From: "|\\|" <sip:a@b>;tag=1'),
    "escapes in quotes": partial(header, 'From: "|\\a|" <sip:a@b>;tag=1'),
    "parameters of the From": partial(after, b"tag=src", ";p#=v"),
    "flags of the From": partial(after, b"tag=src", ";a"),
    "semicolons in the From": partial(after, b"tag=src", ";"),
    "quoted parameters": partial(after, b"tag=src", ';a="\\""'),
    "parameters of the Via": partial(after, b";rport", ";p#=v"),
    "semicolons in the Via": partial(after, b";rport", ";"),
    "colons in the URI": partial(after, b"To: <sip:", ":"),
    "escapes in the URI": partial(after, b"From: <sip:", "%41"),
    "contacts": partial(header, "Contact: |<sip:a@b>, |<sip:a@b>"),
    "commas in the Contact": partial(header, "Contact: |,|<sip:a@b>"),
    "extensions required": partial(header, "Require: |a#,|b"),
    "extensions supported": partial(header, "Session-Expires: 90\r\nSupported: |a#,|b"),
    "routes": partial(header, "Record-Route: |<sip:a@b;lr>,|<sip:a@b>"),
    "routes in fields": partial(fields, "Record-Route: <sip:a@b;lr>\r\n"),
    "credentials": partial(header, 'Authorization: Digest realm="here",|a#=b,|c=d'),
    "credentials of one comma": partial(header, 'Authorization: Digest realm="here"|,|'),
    "fields of credentials": partial(fields, 'Authorization: Digest realm="b"\r\n'),
    "parameters of the Session-Expires": partial(header, "Session-Expires: 90|;a#=b|"),
    "parameters of the Content-Type": partial(header, "Content-Type: multipart/mixed|;a#=b|"),
    "a long boundary": partial(header, "Content-Type: multipart/mixed;boundary=|b|"),
    "words of a URL": partial(header, "Subject: |a|"),
    "URLs": partial(header, "Subject: |a://|"),
    "URLs with a colon": partial(header, "Subject: |a://b:|"),
    "digests": partial(header, 'Subject: |nonce="|'),
    "SDP lines": partial(offer, "|a\r\n|a=x"),
    "SDP attributes": partial(offer, "|a=x#:y\r\n|a=x"),
    "SDP attributes without a name": partial(offer, "|a=\r\n|a=x"),
    "SDP blank lines": partial(offer, "|\r\n|a=x"),
    "formats": partial(offer, "m=audio 30004 RTP/AVP |0 |8"),
    "formats of all kinds": partial(offer, "m=audio 30004 RTP/AVP |# |8"),
    "codecs": partial(offer, "m=audio 30004 RTP/AVP 0\r\n|a=rtpmap:97 C#/8000\r\n|a=label:1"),
    "format parameters": partial(offer, "m=audio 30004 RTP/AVP 0\r\n|a=fmtp:0 p#\r\n|a=label:1"),
    "m-lines": partial(offer, "|m=audio 30004 RTP/AVP 0\r\n|a=x"),
    "m-lines refused": partial(offer, "|m=#x 30004 RTP/AVP 0\r\n|a=x"),
    "m-lines with all formats": partial(
        offer,
        "|m=audio 3000 RTP/AVP " + " ".join(map(str, range(128))) + "\r\n|a=x",
    ),
    "labels": partial(offer, "|m=audio 3000 RTP/AVP 0\r\na=label:#\r\n|a=x"),
    "labels of one name": partial(offer, "|m=audio 3000 RTP/AVP 0\r\na=label:1\r\n|a=x"),
    "crypto lines": partial(offer, "|a=crypto:# AES_CM_128_HMAC_SHA1_80 inline:#\r\n|a=x"),
    "candidates": partial(offer, "|a=candidate:# 1 UDP 1 192.0.2.1 9 typ host\r\n|a=x"),
    "long digits": partial(offer, "m=audio 30004 RTP/AVP 0\r\na=rtpmap:0 PCMU/|1|"),
    "connections": partial(offer, "|c=IN IP4 192.0.2.1\r\n|a=x"),
    "boundary-like lines": partial(body, "--b\r\n\r\n|--bb\r\n|--b--"),
    "boundaries with blanks": partial(body, "--b\r\n\r\n--b| |x"),
    "dashes": partial(body, "--b\r\n\r\n\r\n|-|"),
    "line ends": partial(body, "--b\r\n|\r\n|--b--"),
    "carriage returns": partial(body, "--b\r\n|\r|--b--"),
    "parts": partial(body, "|--b\r\n\r\nx\r\n|--b--"),
    "empty parts": partial(body, "|--b\r\n|--b--"),
    "headers of a part": partial(body, "--b\r\n|a#: b\r\n|\r\nx\r\n--b--"),
    "folded headers of a part": partial(body, "--b\r\na: b|\r\n c|\r\n\r\nx\r\n--b--"),
    "parameters of a part": partial(body, "--b\r\nContent-Type: text/plain|;a#=b|\r\n\r\nx"),
    "elements": partial(metadata, "|<a/>|"),
    "elements of all names": partial(metadata, "|<a#/>|"),
    "foreign elements": partial(metadata, '<x xmlns="o">|<a/>|</x>'),
    "foreign elements of all names": partial(metadata, '<x xmlns="o">|<a#/>|</x>'),
    "elements with texts": partial(metadata, "|<a>b</a>c|"),
    "foreign elements with attributes": partial(metadata, '<x xmlns="o">|<a b#="c"/>|</x>'),
    "attributes": partial(metadata, "<a |a#='' |/>"),
    "attributes of a participant": partial(metadata, "<participant |a#='' |/>"),
    "attributes of a foreign element": partial(metadata, "<a xmlns='o' |a#='' |/>"),
    "namespaces of one element": partial(metadata, "<a |xmlns:a#='b#' |/>"),
    "namespaces of many elements": partial(metadata, "|<a xmlns='b#'/>|"),
    "deep elements": partial(nested, "<a>", "</a>"),
    "deep foreign elements": partial(nested, '<a xmlns="o">', "</a>"),
    "deep participants": partial(nested, "<participant>", "</participant>"),
    "unclosed elements": partial(metadata, "|<a>|"),
    "references": partial(metadata, "<a>|&#65;|</a>"),
    "entities": partial(metadata, "<a>|&lt;|</a>"),
    "undeclared entities": partial(metadata, "<a>|&a#;|</a>"),
    "comments": partial(metadata, "|<!---->|"),
    "instructions": partial(metadata, "|<?a?>|"),
    "sections": partial(metadata, "<a>|<![CDATA[a]]>|</a>"),
    "line ends in a text": partial(metadata, "<a>|\r\n|</a>"),
    "blanks in a name": partial(
        metadata, "<participant participant_id='p3'><name>|a |</name></participant>"
    ),
    "participants": partial(
        metadata, "|<participant participant_id='p#'><name>#</name></participant>|"
    ),
    "one participant": partial(metadata, "|<participant id='p'><send>t#</send></participant>|"),
    "participants on one stream": partial(
        metadata, "|<participant id='#'><send>t1</send></participant>|"
    ),
    "streams": partial(metadata, "|<stream stream_id='s#'><label>#</label></stream>|"),
    "streams of one label": partial(
        metadata, "|<stream stream_id='s#'><label>96</label></stream>|"
    ),
    "associations": partial(
        metadata,
        "|<participantstreamassoc participant_id='p1'><send>t#</send></participantstreamassoc>|",
    ),
    "streams of an association": partial(
        metadata,
        "<participantstreamassoc participant_id='p1'>|<send>#</send>|</participantstreamassoc>",
    ),
    "sessions": partial(metadata, "|<session session_id='#'/>|"),
    "sessions attended": partial(
        metadata,
        "|<participantsessionassoc participant_id='#' session_id='s1'><associate-time>"
        "2026-05-04T12:00:00Z</associate-time></participantsessionassoc>|",
    ),
    "groups": partial(metadata, "|<group group_id='#'/>|"),
    "call ids": partial(metadata, "|<ucid>#</ucid>|"),
}


def cost(data: bytes, database: Database, authority: DigestAuthority | None = None) -> float:
    """Seconds of CPU that a message takes from the stream to the answer; the best of several."""
    taken: list[float] = []
    gc.collect()
    for number in range(20):  # others at the same core make it look dear
        framer, srs = StreamFramer(), Srs(authority)
        keeper = LadderKeeper(
            database, session_of=lambda _: None, clock=lambda: datetime(2026, 5, 4, tzinfo=UTC)
        )
        begun = time.process_time()
        with contextlib.suppress(MalformedMessage):  # the connection is closed
            for message in framer.feed(data):
                if not isinstance(message, KeepAlive):
                    keeper.note(message, TCP_PEER, sent=False)
                    srs.receive(message, TCP_PEER)
        taken.append(time.process_time() - begun)
        if taken[-1] < BUDGET_S / 10 or (number >= 4 and min(taken) < 0.75 * BUDGET_S):
            break  # far from the limit: no need to look closer
    return min(taken)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'unused.db'}")


@pytest.mark.parametrize("kind", NASTY)
def test_a_nasty_message_costs_little_and_no_more_than_its_length(
    kind: str, database: Database
) -> None:
    authority = AUTHORITY if "credentials" in kind else None
    small, big = NASTY[kind](SIZE // 4), NASTY[kind](SIZE)
    assert 0.8 * SIZE < len(big) <= 65_536

    of_big = cost(big, database, authority)
    of_small = cost(small, database, authority)

    assert of_big <= BUDGET_S
    # Four times the length; below a fifth of the budget a clock of this grain tells nothing.
    assert of_big <= max(BUDGET_S / 5, 6 * of_small)


# Where answers go cannot be read.
UNANSWERABLE = {"parameters of the Via"}


@pytest.mark.parametrize("kind", NASTY)
def test_whoever_sends_a_nasty_message_gets_an_answer(kind: str) -> None:
    answers = statuses(Srs().receive(NASTY[kind](SIZE)))

    assert bool(answers) is (kind not in UNANSWERABLE)
    assert answers[-1:] in ([], [200], [400], [420])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unknown fields", "too many headers"),
        ("lines that are no fields", "too many headers"),
        ("via values", "too many values in Via"),
        ("parameters of the From", "too many parameters"),
        ("parameters of the Content-Type", "Bad Content-Type (too many parameters)"),
        ("parts", "Too Many Body Parts"),
        ("m-lines", "Malformed SDP (too many m-lines)"),
    ],
)
def test_a_limit_is_named_to_whom_it_stops(kind: str, reason: str) -> None:
    *_, answer = responses(Srs().receive(NASTY[kind](SIZE)))

    assert (answer.status, answer.reason) == (400, reason)


@pytest.mark.parametrize("kind", ["elements", "deep elements", "deep foreign elements"])
def test_metadata_beyond_a_limit_is_noted_and_the_call_recorded(kind: str) -> None:
    srs = Srs()

    assert statuses(srs.receive(NASTY[kind](SIZE))) == [100, 200]
    (session,) = srs.sessions.values()
    assert any("more than" in one for one in session.document().warnings)


@pytest.mark.parametrize("octets", [b"\n", b"\r", b"\r\n\r\n"])
def test_line_ends_on_a_stream_cost_no_more_than_their_number(octets: bytes) -> None:
    def seconds(size: int) -> float:
        framer = StreamFramer()
        begun = time.process_time()
        framer.feed(octets * (size // len(octets)))
        return time.process_time() - begun

    assert min(seconds(SIZE) for _ in range(5)) <= BUDGET_S


def test_a_message_that_comes_octet_by_octet_costs_no_more_than_its_octets() -> None:
    """A long head is not looked through again for every octet of the body."""
    data = fields("X-#: a\r\n", SIZE // 2).replace(b"Content-Length: ", b"X-Content-Length: ", 1)
    head, _, _ = data.partition(b"\r\n\r\n")
    whole = head + b"\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000
    framer = StreamFramer()

    begun = time.process_time()
    got = [one for start in range(len(whole)) for one in framer.feed(whole[start : start + 1])]

    assert got == [whole]
    # A search of the head for each octet takes seconds.
    assert time.process_time() - begun < 0.5
