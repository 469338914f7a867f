"""Session timers that are ours with an SRC that knows no UPDATE: re-INVITEs that change nothing.

RFC 4028 §7.4 and §8, RFC 3261 §14.
"""

import pytest

from harness.src import OFFER, PEER, TCP_PEER, multipart, new_server, request, requests, statuses
from siprec_bridge.sip import (
    DialogEnded,
    DialogId,
    InviteReceived,
    Output,
    Peer,
    Request,
    RequestAnswered,
    SipServer,
    UpdateReceived,
)

OURS = b"v=0\r\no=siprec-bridge 7 3 IN IP4 192.0.2.1\r\n"
NO_UPDATE = "Allow: INVITE, ACK, BYE, CANCEL, OPTIONS"


def call(
    srs: SipServer,
    *,
    peer: Peer = PEER,
    allow: str = NO_UPDATE,
    seconds: int = 100,
    acknowledged: bool = True,
) -> DialogId:
    """A call whose timer is ours to refresh."""
    timed = ["Supported: timer", f"Session-Expires: {seconds};refresher=uas", allow]
    outputs = srs.receive(request("INVITE", headers=timed, body=multipart()), peer, 0.0)
    (invite,) = (one for one in outputs if isinstance(one, InviteReceived))
    srs.respond(invite.id, 200, now=0.0, content_type="application/sdp", body=OURS)
    if acknowledged:
        ack = request("ACK", branch="z9hG4bKa", to_tag=invite.dialog.local_tag)
        srs.receive(ack, peer, 0.1)
    return invite.dialog


def answer(ours: Request, status: int, *headers: str, body: bytes = b"") -> bytes:
    """The SRC's answer to a request of ours."""
    lines = [f"SIP/2.0 {status} Whatever"]
    lines += [f"{name}: {ours.headers.get(name)}" for name in ("Via", "From", "To", "Call-ID")]
    lines += [f"CSeq: {ours.cseq}", *headers]
    lines += ["Content-Type: application/sdp"] if body else []
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def ended(outputs: list[Output]) -> list[str]:
    return [one.cause for one in outputs if isinstance(one, DialogEnded)]


def told(outputs: list[Output]) -> list[tuple[str, int]]:
    return [
        (one.method, one.response.status) for one in outputs if isinstance(one, RequestAnswered)
    ]


def until(srs: SipServer, end: float) -> list[Output]:
    outputs: list[Output] = []
    while (at := srs.next_deadline()) is not None and at <= end:
        outputs += srs.advance(at)
    return outputs


def test_what_we_said_last_is_offered_once_more_and_its_answer_acknowledged() -> None:
    srs = new_server()
    dialog = call(srs)

    (reinvite,) = requests(srs.advance(50.0))
    contact = "Contact: <sip:src@192.0.2.77:5070>"
    taken = srs.receive(answer(reinvite, 200, contact, body=OFFER.encode()), PEER, 50.1)
    again = srs.receive(answer(reinvite, 200, contact, body=OFFER.encode()), PEER, 50.6)

    assert (reinvite.method, reinvite.body) == ("INVITE", OURS)
    assert reinvite.content_type == "application/sdp"
    assert reinvite.headers.get("Session-Expires") == "100;refresher=uac"
    assert "+sip.srs" in (reinvite.headers.get("Contact") or "")
    (ack,) = requests(taken)
    assert (ack.method, str(ack.cseq), ack.uri) == ("ACK", "1 ACK", "sip:src@192.0.2.77:5070")
    assert ack.via.branch != reinvite.via.branch
    assert (ack.call_id, ack.from_.tag) == (dialog.call_id, dialog.local_tag)
    assert told(taken) == [("INVITE", 200)]
    assert ([one.method for one in requests(again)], told(again)) == (["ACK"], [])
    assert [one.method for one in requests(until(srs, 100.2))] == ["INVITE"]


@pytest.mark.parametrize("peer", [PEER, TCP_PEER])
def test_a_refusal_is_acknowledged_in_its_transaction_and_ends_nothing(peer: Peer) -> None:
    srs = new_server()
    call(srs, peer=peer)

    (reinvite,) = requests(srs.advance(50.0))
    refused = srs.receive(answer(reinvite, 488), peer, 50.1)

    (ack,) = requests(refused)
    assert (ack.method, ack.via.branch) == ("ACK", reinvite.via.branch)
    assert (told(refused), ended(refused)) == ([("INVITE", 488)], [])
    assert [one.method for one in requests(until(srs, 100.2))] == ["INVITE"]


def test_offers_that_cross_are_491_on_both_sides_and_ours_is_made_again() -> None:
    srs = new_server()
    tag = call(srs).local_tag
    (reinvite,) = requests(srs.advance(50.0))

    theirs = request("INVITE", number=2, branch="z9hG4bK2", to_tag=tag, body=multipart())
    crossed = srs.receive(theirs, PEER, 50.05)
    refused = srs.receive(answer(reinvite, 491), PEER, 50.1)
    again = request("INVITE", number=3, branch="z9hG4bK3", to_tag=tag, body=multipart())
    taken = srs.receive(again, PEER, 50.2)
    waiting = until(srs, 52.2)  # theirs has its turn
    (change,) = (one for one in taken if isinstance(one, InviteReceived))
    srs.respond(change.id, 200, now=52.3, content_type="application/sdp", body=OURS)
    srs.receive(request("ACK", number=3, branch="z9hG4bKa3", to_tag=tag), PEER, 52.4)

    assert (statuses(crossed), statuses(taken)) == ([491], [100])
    assert [one.method for one in requests(refused)] == ["ACK"]
    assert requests(waiting) == []
    assert ended(crossed + refused + taken) == []
    # Theirs asked for no timer: there is none from then on.
    assert requests(until(srs, 300.0)) == []


def test_a_refresh_after_491_comes_within_two_seconds_or_so() -> None:
    srs = new_server()
    call(srs)
    (reinvite,) = requests(srs.advance(50.0))
    srs.receive(answer(reinvite, 491), PEER, 50.1)

    (again,) = requests(until(srs, 52.2))

    assert (again.method, str(again.cseq), again.body) == ("INVITE", "2 INVITE", OURS)


def test_an_update_with_a_body_that_crosses_our_offer_is_491_and_one_without_is_taken() -> None:
    srs = new_server()
    tag = call(srs).local_tag
    srs.advance(50.0)

    offer = request("UPDATE", number=2, branch="z9hG4bK2", to_tag=tag, body=multipart())
    bare = request("UPDATE", number=3, branch="z9hG4bK3", to_tag=tag)

    assert statuses(srs.receive(offer, PEER, 50.1)) == [491]
    assert any(isinstance(one, UpdateReceived) for one in srs.receive(bare, PEER, 50.2))


def test_no_offer_is_made_while_one_of_theirs_is_not_answered() -> None:
    srs = new_server()
    tag = call(srs).local_tag
    srs.receive(request("INVITE", number=2, branch="z9hG4bK2", to_tag=tag), PEER, 49.9)

    before = requests(until(srs, 56.0))
    srs.receive(request("CANCEL", number=2, branch="z9hG4bK2"), PEER, 56.1)
    after = requests(until(srs, 58.0))

    assert before == []
    assert {str(one.cseq) for one in after} == {"1 INVITE"}


def test_no_offer_is_made_while_an_answer_of_ours_waits_for_its_ack() -> None:
    srs = new_server(min_session_expires=30)
    tag = call(srs, seconds=30, acknowledged=False).local_tag

    before = requests(until(srs, 20.0))
    srs.receive(request("ACK", branch="z9hG4bKa", to_tag=tag), PEER, 20.1)
    after = requests(until(srs, 22.0))

    assert before == []
    assert {str(one.cseq) for one in after} == {"1 INVITE"}


def test_a_peer_that_knows_nothing_of_the_call_ends_it() -> None:
    srs = new_server()
    call(srs)
    (reinvite,) = requests(srs.advance(50.0))

    outputs = srs.receive(answer(reinvite, 481), PEER, 50.1)

    assert [one.method for one in requests(outputs)] == ["ACK"]
    assert ended(outputs) == ["peer_gone"]


@pytest.mark.parametrize("provisional", [True, False])
def test_a_peer_that_does_not_answer_loses_its_call_when_the_session_expires(
    provisional: bool,
) -> None:
    srs = new_server()
    call(srs)
    (reinvite,) = requests(srs.advance(50.0))
    if provisional:
        srs.receive(answer(reinvite, 100), PEER, 50.1)

    outputs = until(srs, 100.0)
    late = srs.receive(answer(reinvite, 487), PEER, 100.5) if provisional else []
    rest = until(srs, 200.0)

    assert ended(outputs + rest) == ["session_expired"]
    assert requests(outputs)[-1].method == "BYE"
    assert [one.method for one in requests(late)] == (["ACK"] if provisional else [])
    assert srs.next_deadline() is None  # nothing is kept of a call that is over


@pytest.mark.parametrize("status", [405, 501])
def test_a_peer_that_turns_out_to_know_no_update_is_sent_a_reinvite(status: int) -> None:
    srs = new_server()
    call(srs, allow="X-Allow: nothing said")
    (update,) = requests(srs.advance(50.0))

    outputs = srs.receive(answer(update, status), PEER, 50.1)
    (reinvite,) = requests(srs.advance(50.1))

    assert update.method == "UPDATE"
    assert ended(outputs) == []
    assert (reinvite.method, reinvite.body) == ("INVITE", OURS)


def test_a_503_is_acknowledged_before_another_server_is_asked() -> None:
    srs = new_server()
    call(srs)
    (reinvite,) = requests(srs.advance(50.0))

    refused = srs.receive(answer(reinvite, 503), PEER, 50.1)
    (elsewhere,) = requests(srs.redirect(reinvite.via.branch, ("192.0.2.20", 5060), 50.2))
    repeated = srs.receive(answer(reinvite, 503), PEER, 50.6)
    taken = srs.receive(answer(elsewhere, 200, body=OFFER.encode()), PEER, 50.7)

    assert [one.method for one in requests(refused)] == ["ACK"]
    assert [one.method for one in requests(repeated)] == ["ACK"]
    assert (elsewhere.method, elsewhere.body) == ("INVITE", OURS)
    assert told(refused + repeated + taken) == [("INVITE", 200)]
