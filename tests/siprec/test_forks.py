"""Calls by their headers: forks that send no metadata, and how SIPREC is told from them."""

from datetime import UTC, datetime

import pytest

from harness.src import METADATA, OFFER, multipart, request
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import Request, parse
from siprec_bridge.siprec import Body, RecordingSession, SessionDocument, is_siprec, read_fork

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ONE_LINE = OFFER[: OFFER.index("m=audio 30002")]


def fork(leg: str, **parameters: str) -> Request:
    """An INVITE of a phone's built-in bridge, with one party's voice."""
    said = {
        "x-refci": "4711",
        "x-nearendclusterid": "berlin",
        "x-nearenddevice": "SEP0011",
        "x-nearendaddr": "200",
        "x-farendrefci": "4710",
        "x-farendaddr": "0301234",
    } | {name.replace("_", "-"): value for name, value in parameters.items()}
    params = ";".join(f"{name}={value}" for name, value in said.items())
    data = request("INVITE").replace(
        b"From: <sip:src@192.0.2.10>",
        f'From: "Ada" <sip:200@192.0.2.10;x-{leg};{params}>'.encode(),
    )
    message = parse(data.replace(b";+sip.src", b""))
    assert isinstance(message, Request)
    return message


def recorded(invite: Request) -> SessionDocument:
    session = RecordingSession("s", MediaPolicy(), sdp_session_id=1, fork=read_fork(invite))
    session.offer(Body(), START)
    session.answer({0: 20000}, "192.0.2.1")
    session.acknowledged(Body(sdp=ONE_LINE.encode()), START)
    return session.document()


def test_both_forks_of_one_call_share_a_group_and_each_has_its_speaker() -> None:
    near, far = recorded(fork("nearend")), recorded(fork("farend"))

    assert near.group_id == far.group_id == "cisco-berlin-4711"
    assert [len(one.streams) for one in (near, far)] == [1, 1]
    assert (near.warnings, far.warnings) == ((), ())
    speakers = [one.speaker("1", START) for one in (near, far)]
    assert [(one.name, one.aor) for one in speakers if one] == [
        ("Ada", "sip:200@192.0.2.10"),
        (None, "sip:0301234@192.0.2.10"),
    ]
    assert [one.aor for one in near.participants] == [one.aor for one in far.participants]
    assert far.call_ids["cisco_farend_refci"] == "4710"


def test_headers_say_whose_call_it_is_and_which_way_it_went() -> None:
    data = request("INVITE").replace(
        b"\r\nContact:", b"\r\nX-Tenant-ID: acme\r\nX-Call-Direction: Inbound\r\nContact:", 1
    )
    invite = parse(data)
    assert isinstance(invite, Request)

    assert read_fork(invite).call_ids == {"tenant": "acme", "direction": "inbound"}


def test_forks_of_different_calls_are_not_joined() -> None:
    calls = [
        fork("nearend"), fork("nearend", x_refci="4712"), fork("nearend", x_nearendclusterid="ulm")
    ]  # fmt: skip

    assert len({recorded(one).group_id for one in calls}) == 3
    assert recorded(fork("nearend", x_refci="")).group_id is None


def test_metadata_that_comes_after_all_says_who_is_there() -> None:
    session = RecordingSession(
        "s", MediaPolicy(), sdp_session_id=1, fork=read_fork(fork("nearend"))
    )
    session.offer(Body(sdp=OFFER.encode(), metadata=METADATA.encode()), START)

    document = session.document()

    assert [one.name for one in document.participants] == ["Alice", "Bob"]
    assert document.group_id == "g1"


@pytest.mark.parametrize(
    ("data", "siprec"),
    [
        (request("INVITE", headers=["Require: siprec"]).replace(b";+sip.src", b""), True),
        (request("INVITE"), True),  # +sip.src
        (request("INVITE", body=multipart()).replace(b";+sip.src", b""), True),
        (
            request("INVITE", body=OFFER.encode(), content_type="application/sdp").replace(
                b";+sip.src", b""
            ),
            False,
        ),
        (request("INVITE").replace(b";+sip.src", b""), False),
    ],
    ids=["require", "contact", "metadata", "sdp only", "nothing"],
)
def test_any_sign_of_siprec_counts(data: bytes, siprec: bool) -> None:
    message = parse(data)
    assert isinstance(message, Request)

    assert is_siprec(message) is siprec
