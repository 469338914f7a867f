"""Requests of ours where Contact or Route name another transport than the dialog has.

RFC 3261 §12.2.1.1, §18.1.1 and §19.1.5.
"""

import pytest

from harness.src import multipart, new_server, request, requests
from siprec_bridge.sip import (
    DialogId,
    InviteReceived,
    NextServerWanted,
    Output,
    Peer,
    Request,
    RequestAnswered,
    Send,
    SipServer,
)


def peer_over(transport: str) -> Peer:
    return Peer(transport, "192.0.2.10", 5070, 7, "192.0.2.1", 5060)


def call(srs: SipServer, transport: str, contact: str, route: str = "") -> DialogId:
    routes = [f"Record-Route: {route}"] if route else []
    data = request("INVITE", headers=routes, body=multipart())
    data = data.replace(b"<sip:src@192.0.2.10:5070>", f"<{contact}>".encode())
    outputs = srs.receive(data, peer_over(transport), 0.0)
    (invite,) = (one for one in outputs if isinstance(one, InviteReceived))
    srs.respond(invite.id, 200, now=0.0)
    ack = request("ACK", branch="z9hG4bKa", to_tag=invite.dialog.local_tag)
    srs.receive(ack, peer_over(transport), 0.1)
    return invite.dialog


def wanted(outputs: list[Output]) -> list[NextServerWanted]:
    return [one for one in outputs if isinstance(one, NextServerWanted)]


def sends(outputs: list[Output]) -> list[Send]:
    return [one for one in outputs if isinstance(one, Send)]


def answers(outputs: list[Output]) -> list[int]:
    return [one.response.status for one in outputs if isinstance(one, RequestAnswered)]


def taken(ours: Request, status: int = 200) -> bytes:
    lines = [f"SIP/2.0 {status} Whatever"]
    lines += [
        f"{name}: {ours.headers.get(name)}" for name in ("Via", "From", "To", "Call-ID", "CSeq")
    ]
    return "\r\n".join([*lines, "Content-Length: 0", "", ""]).encode()


@pytest.mark.parametrize(
    ("over", "contact", "route", "transport", "place"),
    [
        ("udp", "sip:src@192.0.2.77:5071;transport=TCP", "", "tcp", ("192.0.2.77", 5071)),
        ("udp", "sip:src@sbc.example.com;transport=tcp", "", "tcp", ("sbc.example.com", None)),
        ("udp", "sip:src@192.0.2.77;transport=tls", "", "tls", ("192.0.2.77", 5061)),
        ("tcp", "sip:src@192.0.2.77;transport=udp", "", "udp", ("192.0.2.77", 5060)),
        ("tcp", "sips:src@sbc.example.com", "", "tls", ("sbc.example.com", None)),
        # The route says the next hop, not the Contact behind it.
        ("udp", "sip:src@192.0.2.77", "<sip:192.0.2.5;transport=tcp;lr>", "tcp",
         ("192.0.2.5", 5060)),
    ],
)  # fmt: skip
def test_a_request_goes_by_the_transport_that_it_is_addressed_to(
    over: str, contact: str, route: str, transport: str, place: tuple[str, int | None]
) -> None:
    srs = new_server()
    dialog = call(srs, over, contact, route)

    (looked_up,) = wanted(srs.request(dialog, "UPDATE", now=1.0))
    (sent,) = sends(srs.redirect(looked_up.branch, ("192.0.2.77", 5071), 1.1))
    (ours,) = requests([sent])
    done = srs.receive(taken(ours), sent.peer, 1.2)

    assert (looked_up.peer.transport, looked_up.peer.elsewhere) == (transport, place)
    assert (sent.peer.transport, sent.peer.host, sent.peer.port) == (transport, "192.0.2.77", 5071)
    assert sent.peer.flow == 0
    assert ours.via.transport == transport.upper()
    assert answers(done) == [200]


@pytest.mark.parametrize(
    ("over", "contact", "route"),
    [
        ("udp", "sip:src@192.0.2.77", ""),
        ("tcp", "sip:src@192.0.2.77;transport=tcp", ""),
        ("tcp", "sip:src@192.0.2.77;transport=sctp", ""),  # which we do not have
        ("tls", "sip:src@192.0.2.77;transport=udp", ""),  # never out of TLS into the clear
        ("udp", "sip:src@192.0.2.77;transport=tcp", "<sip:192.0.2.5;lr>"),
        ("udp", "tel:+15551234", ""),
    ],
)
def test_else_it_goes_where_answers_go(over: str, contact: str, route: str) -> None:
    srs = new_server()

    (sent,) = sends(srs.request(call(srs, over, contact, route), "UPDATE", now=1.0))

    assert (sent.peer.transport, sent.peer.flow) == (over, 7)


def test_a_bye_that_nobody_takes_there_comes_back_to_where_answers_go() -> None:
    srs = new_server()
    dialog = call(srs, "udp", "sip:src@192.0.2.77;transport=tcp")

    (looked_up,) = wanted(srs.request(dialog, "BYE", now=1.0))
    (first,) = sends(srs.redirect(looked_up.branch, ("192.0.2.77", 5060), 1.1))
    (again,) = wanted(srs.undeliverable(first.data, 1.2))
    (second,) = sends(srs.redirect(again.branch, None, 1.3))
    (bye,) = requests([second])
    done = srs.receive(taken(bye), second.peer, 1.4)

    assert again.failed == {("192.0.2.77", 5060)}
    assert second.peer == peer_over("udp")
    assert (bye.method, bye.via.transport) == ("BYE", "UDP")
    assert {str(one.cseq) for one in requests([first, second])} == {"1 BYE"}
    assert answers(done) == [200]


def test_where_no_server_is_found_in_time_it_goes_where_answers_go() -> None:
    srs = new_server()
    dialog = call(srs, "udp", "sip:src@sbc.example.com;transport=tcp")
    srs.request(dialog, "OPTIONS", now=1.0)

    outputs: list[Output] = []
    while (at := srs.next_deadline()) is not None and at < 12:
        outputs += srs.advance(at)

    assert {(one.peer, one.peer.transport) for one in sends(outputs)} == {(peer_over("udp"), "udp")}
    assert {one.method for one in requests(outputs)} == {"OPTIONS"}


def test_a_request_that_stays_unanswered_on_both_ways_is_told_once_and_forgotten() -> None:
    srs = new_server()
    dialog = call(srs, "udp", "sip:src@192.0.2.77;transport=tcp")
    (looked_up,) = wanted(srs.request(dialog, "OPTIONS", now=1.0))
    outputs = srs.redirect(looked_up.branch, ("192.0.2.77", 5060), 1.1)

    while (at := srs.next_deadline()) is not None and at < 300:
        now = srs.advance(at)
        for one in wanted(now):
            now += srs.redirect(one.branch, None, at)
        outputs += now

    assert {one.peer.transport for one in sends(outputs)} == {"tcp", "udp"}
    assert answers(outputs) == [408]
    assert srs.next_deadline() is None
