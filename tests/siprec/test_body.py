"""The forms of a body: multipart as RFC 2046 allows it and as SRCs get it wrong."""

from base64 import encodebytes
from quopri import encodestring

import pytest

from harness.src import METADATA, OFFER, multipart
from siprec_bridge import sdp
from siprec_bridge.sip import Refused
from siprec_bridge.siprec import Body, parse_body, parse_metadata

SDP = ("Content-Type: application/sdp", OFFER)
XML = (
    "Content-Type: application/rs-metadata+xml\r\nContent-Disposition: recording-session",
    METADATA,
)


def body(*parts: tuple[str, str], boundary: str = "b", closed: bool = True) -> bytes:
    written = "".join(f"--{boundary}\r\n{head}\r\n\r\n{content}\r\n" for head, content in parts)
    return (written + (f"--{boundary}--\r\n" if closed else "")).encode()


def both(content: bytes, content_type: str = "multipart/mixed;boundary=b") -> Body:
    """Take it apart; SDP and metadata are there and whole."""
    found = parse_body(content_type, None, content)
    assert found.sdp is not None
    assert [one.label for one in sdp.parse(found.sdp).media] == ["96", "97"]
    assert found.metadata is not None
    assert len(parse_metadata(found.metadata).participants) == 2
    return found


@pytest.mark.parametrize(
    ("boundary", "content_type"),
    [
        ("b", "multipart/mixed;boundary=b"),
        ("b", 'Multipart/Mixed ; Boundary = "b"'),
        ("--=_b.1", "multipart/mixed;boundary=--=_b.1"),
        ("a b;c'()+_,-./:=?", 'multipart/mixed;boundary="a b;c\'()+_,-./:=?"'),
        ("b", "multipart/related;type=x;boundary=b;charset=utf-8"),
    ],
)
def test_a_boundary_is_any_text_quoted_or_not(boundary: str, content_type: str) -> None:
    both(body(SDP, XML, boundary=boundary), content_type)


@pytest.mark.parametrize(
    "content",
    [
        b"This is MIME.\r\n" + body(SDP, XML) + b"The end.\r\n--b\r\n\r\nx",
        body(SDP, XML).replace(b"--b\r\n", b"--b \t\r\n"),
        body(SDP, XML, closed=False),
        body(SDP, XML, closed=False).rstrip(),
        body(SDP, XML).replace(b"\r\n", b"\n"),
        b"\r\n" + body(SDP, XML),
        body(SDP, XML).replace(b"\r\n\r\n", b"\r\n\r\n\r\n"),
        body(SDP, XML).replace(b"\r\n\r\n<?xml", b"\r\n\r\n \r\n\t<?xml"),
        body(SDP, XML, ("Content-Type: text/plain", "--bb\r\n--b is no delimiter")),
    ],
    ids=[
        "preamble and epilogue", "blanks after the delimiter", "not closed", "not ended",
        "line feeds", "blank line ahead", "two blank lines", "blanks before the prolog",
        "almost a delimiter",
    ],
)  # fmt: skip
def test_what_stands_around_the_parts_does_not_matter(content: bytes) -> None:
    assert both(content).warnings == ()


@pytest.mark.parametrize(
    "head",
    [
        "Content-Type: application/rs-metadata+xml",
        "Content-Type: application/rs-metadata",
        "CONTENT-TYPE:Application/RS-Metadata+XML;charset=utf-8\r\nContent-ID: <1@x>",
        "Content-Disposition: recording-session;handling=required\r\n"
        "Content-Type: application/rs-metadata+xml",
        "content-type:\r\n application/rs-metadata",
        "c: application/rs-metadata",
        "Content-Disposition: Recording-Session;handling=required\r\nContent-Type: text/xml",
        "Content-Disposition: recording-session",
    ],
)
def test_metadata_is_known_by_its_type_or_by_its_disposition(head: str) -> None:
    both(body(SDP, (head, METADATA)))


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable", "binary", "8bit"])
def test_parts_may_be_encoded_for_transfer(encoding: str) -> None:
    encode = {"base64": encodebytes, "Quoted-Printable": encodestring}.get(encoding, bytes)
    parts = [
        (f"{head}\r\nContent-Transfer-Encoding: {encoding}", encode(content.encode()).decode())
        for head, content in (SDP, XML)
    ]

    assert both(body(*parts)).warnings == ()


def test_a_part_whose_encoding_is_not_kept_is_taken_as_it_is() -> None:
    head = f"{SDP[0]}\r\nContent-Transfer-Encoding: base64"

    assert both(body((head, OFFER), XML)).warnings == ("a part is not base64 as it says",)


def test_xml_of_another_disposition_is_no_metadata() -> None:
    head = "Content-Type: application/xml\r\nContent-Disposition: render"

    found = both(body((head, "<recording/>"), SDP, XML))

    assert [one.content_type for one in found.others] == ["application/xml"]


@pytest.mark.parametrize(
    "head",
    [
        "Content-Type: application/gtd\r\nContent-Disposition: signal;handling=optional",
        "Content-Type: application/isup;version=itu-t92+",
        "Content-Type: text/plain",
        "X-Only: headers",
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_parts_of_other_kinds_are_ignored_wherever_they_stand(head: str, place: int) -> None:
    parts = [SDP, XML]
    parts.insert(place, (head, "IAM,\r\nPRN,isdn*,,NI***,"))

    assert len(both(body(*parts)).others) == 1


def test_a_part_that_has_to_be_understood_and_is_not_refuses_the_whole() -> None:
    head = "Content-Type: application/gtd\r\nContent-Disposition: signal;handling=required"

    with pytest.raises(Refused) as refused:
        parse_body("multipart/mixed;boundary=b", None, body(SDP, XML, (head, "IAM")))

    assert refused.value.status == 415
    assert refused.value.headers[0][0] == "Accept"


@pytest.mark.parametrize(
    ("content_type", "encoding", "header"),
    [
        ("text/plain", None, ("Accept", "application/rs-metadata+xml")),
        (None, None, ("Accept", "multipart/mixed")),
        ("application/rs-metadata-request", None, ("Accept", "application/sdp")),
        ("application/sdp", "gzip", ("Accept-Encoding", "identity")),
    ],
)
def test_a_refused_body_is_told_what_would_have_been_accepted(
    content_type: str | None, encoding: str | None, header: tuple[str, str]
) -> None:
    with pytest.raises(Refused) as refused:
        parse_body(content_type, encoding, b"x")

    ((name, value),) = refused.value.headers
    assert (refused.value.status, name) == (415, header[0])
    assert header[1] in value


@pytest.mark.parametrize("kind", ["application/rs-metadata+xml", "application/rs-metadata"])
def test_metadata_may_be_the_whole_body(kind: str) -> None:
    found = parse_body(kind, None, METADATA.encode())

    assert (found.sdp, found.metadata) == (None, METADATA.encode())


def nested(levels: int) -> bytes:
    """SDP and metadata in a multipart body that is a part of another one, and so on."""
    content, boundary = multipart(), "b"
    for level in range(levels):
        head = f"--n{level}\r\nContent-Type: multipart/mixed;boundary={boundary}\r\n\r\n"
        content, boundary = head.encode() + content + f"\r\n--n{level}--\r\n".encode(), f"n{level}"
    return content


@pytest.mark.parametrize("levels", [1, 3])
def test_parts_of_a_nested_multipart_part_count(levels: int) -> None:
    body = parse_body(f"multipart/mixed;boundary=n{levels - 1}", None, nested(levels))

    assert body.sdp is not None
    assert body.metadata is not None
    assert body.warnings == ()


def test_parts_are_counted_wherever_they_are() -> None:
    inner = b"\r\n--a\r\nContent-Type: text/plain\r\n\r\nhello" * 20 + b"\r\n--a--"
    outer = b"\r\n--n\r\nContent-Type: multipart/mixed;boundary=a\r\n\r\n" + inner

    with pytest.raises(Refused) as refused:
        parse_body("multipart/mixed;boundary=n", None, 3 * outer + b"\r\n--n--")

    assert refused.value.status == 400


def test_nesting_beyond_reason_is_ignored_and_noted() -> None:
    body = parse_body("multipart/mixed;boundary=n9", None, nested(10))

    assert (body.sdp, body.warnings) == (None, ("multipart parts nested too deeply ignored",))


def test_a_nested_part_that_names_no_boundary_costs_the_rest_nothing() -> None:
    outer = (
        b"--n\r\nContent-Type: multipart/related\r\n\r\n--x\r\n\r\nhello\r\n--x--\r\n"
        b"--n\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n\r\n--n--"
    )

    body = parse_body("multipart/mixed;boundary=n", None, outer)

    assert body.sdp == b"v=0\r\n"
    assert body.warnings == ("nested multipart part without boundary ignored",)


def test_the_first_of_alternatives_that_we_know_is_taken() -> None:
    inner = (
        b"--a\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
        b"--a\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n\r\n--a--\r\n"
    )
    outer = b"--n\r\nContent-Type: multipart/alternative; boundary=a\r\n\r\n" + inner + b"\r\n--n--"

    assert parse_body("multipart/mixed;boundary=n", None, outer).sdp == b"v=0\r\n"
