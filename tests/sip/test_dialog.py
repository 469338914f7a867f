"""What a dialog remembers: which answers got their ACK, and where its peer is. RFC 3261 §12, §13."""

import pytest

from harness.src import PEER, new_server, request, requests, responses
from siprec_bridge.sip import DialogId, InviteReceived, SipServer, UpdateReceived


def without_contact(data: bytes) -> bytes:
    return data.replace(b"Contact: <sip:src@192.0.2.10:5070>;+sip.src\r\n", b"")


def moved(data: bytes, uri: str) -> bytes:
    return data.replace(b"sip:src@192.0.2.10:5070", uri.encode())


def take(srs: SipServer, data: bytes, now: float) -> DialogId:
    """Answer an INVITE or UPDATE with 200; returns its dialog."""
    (one,) = (
        one
        for one in srs.receive(data, PEER, now)
        if isinstance(one, InviteReceived | UpdateReceived)
    )
    srs.respond(one.id, 200, now=now)
    return one.dialog


@pytest.mark.parametrize(
    ("acks", "repeated"),
    [
        ([100], [101]),
        ([100, 100], [101]),  # its answer came twice
        ([101], []),  # OpenSIPS passes the first one over
        ([7], []),  # numbered by another leg
        ([4711], []),
        ([100, 7], []),
        ([], [100, 101]),
    ],
)
def test_an_ack_counts_for_its_answer_and_those_before_and_one_of_no_invite_for_all(
    acks: list[int], repeated: list[int]
) -> None:
    srs = new_server()
    tag = take(srs, request("INVITE", number=100), 0.0).local_tag
    take(srs, request("INVITE", number=101, branch="z9hG4bK2", to_tag=tag), 0.0)

    for place, number in enumerate(acks):
        srs.receive(request("ACK", number=number, branch=f"z9hG4bKa{place}", to_tag=tag), PEER, 0.1)

    assert [one.cseq.number for one in responses(srs.advance(0.6))] == repeated


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_our_requests_go_to_the_last_contact_that_the_peer_named(method: str) -> None:
    srs = new_server()
    dialog = take(srs, request("INVITE"), 0.0)
    second = request(method, number=2, branch="z9hG4bK2", to_tag=dialog.local_tag)
    third = request(method, number=3, branch="z9hG4bK3", to_tag=dialog.local_tag)
    info = request("INFO", number=4, branch="z9hG4bK4", to_tag=dialog.local_tag)

    take(srs, moved(second, "sip:src@192.0.2.44"), 1.0)
    take(srs, without_contact(third), 2.0)
    srs.receive(moved(info, "sip:src@192.0.2.55"), PEER, 3.0)  # refreshes no target
    (bye,) = requests(srs.request(dialog, "BYE", now=4.0))

    assert bye.uri == "sip:src@192.0.2.44"


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_a_change_that_is_older_than_the_last_one_is_500_and_leaves_the_call(method: str) -> None:
    srs = new_server()
    tag = take(srs, request("INVITE", number=10), 0.0).local_tag
    take(srs, request("UPDATE", number=12, branch="z9hG4bK12", to_tag=tag), 1.0)

    outputs = srs.receive(request(method, number=11, branch="z9hG4bK11", to_tag=tag), PEER, 2.0)

    assert [one.status for one in responses(outputs)] == [500]  # RFC 3261 §12.2.2
    assert not any(isinstance(one, InviteReceived | UpdateReceived) for one in outputs)
    assert srs.dialogs == 1
    for place in range(2):  # the same number is no lower one
        take(srs, request(method, number=13, branch=f"z9hG4bK13-{place}", to_tag=tag), 3.0)


@pytest.mark.parametrize("contact", ["", "Contact: *", "Contact: <sip:broken"])
def test_a_peer_without_a_contact_is_sought_where_it_says_it_is_from(contact: str) -> None:
    srs = new_server()
    data = without_contact(request("INVITE", headers=[contact] if contact else []))

    dialog = take(srs, data, 0.0)
    (bye,) = requests(srs.request(dialog, "BYE", now=1.0))

    assert bye.uri == "sip:src@192.0.2.10"


@pytest.mark.parametrize(
    "value", ["soon", "1.5", "-90", "٣٦٠٠", "1e3", "9" * 10, "9" * 5000, "", ';"']
)
def test_a_session_interval_that_is_none_starts_no_timer(value: str) -> None:
    srs = new_server()
    headers = ["Supported: timer", f"Session-Expires: {value}"]
    outputs = srs.receive(request("INVITE", headers=headers), PEER, 0.0)
    (invite,) = (one for one in outputs if isinstance(one, InviteReceived))

    (answer,) = responses(srs.respond(invite.id, 200, now=0.0))

    assert (answer.status, answer.headers.get("Session-Expires")) == (200, None)
