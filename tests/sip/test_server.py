"""The SIP machine as an SRC meets it, with the clock in the test's hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from harness.src import (
    PEER,
    TCP_PEER,
    multipart,
    new_server,
    request,
    requests,
    responses,
    sent,
    statuses,
)
from siprec_bridge.sip import (
    AckReceived,
    AliasAsked,
    DialogEnded,
    DialogId,
    InviteCancelled,
    InviteReceived,
    Malformed,
    NextServerWanted,
    Output,
    Peer,
    Request,
    RequestAnswered,
    RequestReceived,
    RequestSeen,
    ResponseSent,
    Send,
    SipServer,
    UpdateReceived,
)

INVITE = request("INVITE", body=multipart(), headers=["Require: siprec"])


def invites(outputs: list[Output]) -> list[InviteReceived]:
    return [one for one in outputs if isinstance(one, InviteReceived)]


def ended(outputs: list[Output]) -> list[str]:
    return [one.cause for one in outputs if isinstance(one, DialogEnded)]


def in_call(srs: SipServer, *, peer: Peer = PEER, acknowledged: bool = True) -> DialogId:
    """Set up a call; returns its dialog."""
    (invite,) = invites(srs.receive(INVITE, peer, 0.0))
    srs.respond(invite.id, 200, now=0.0, content_type="application/sdp", body=b"v=0\r\n")
    if acknowledged:
        srs.receive(request("ACK", branch="z9hG4bKack", to_tag=invite.dialog.local_tag), peer, 0.1)
    return invite.dialog


def test_an_invite_is_tried_at_once_and_answered_with_what_a_dialog_needs() -> None:
    srs = new_server()

    outputs = srs.receive(INVITE, PEER, 0.0)
    (invite,) = invites(outputs)
    answered = srs.respond(invite.id, 200, now=0.0, content_type="application/sdp", body=b"v=0\r\n")

    assert statuses(outputs) == [100]
    (answer,) = responses(answered)
    assert answer.status == 200
    assert answer.to.tag == invite.dialog.local_tag
    assert "+sip.srs" in (answer.headers.get("Contact") or "")
    assert "siprec" in answer.headers.values("Supported")
    assert answer.body == b"v=0\r\n"
    assert "rport=5070" in (answer.headers.get("Via") or "")
    assert "received=192.0.2.10" in (answer.headers.get("Via") or "")


def test_a_repeated_invite_gets_the_same_answer_and_no_second_recording() -> None:
    srs = new_server()
    first = srs.receive(INVITE, PEER, 0.0)
    (invite,) = invites(first)

    before = srs.receive(INVITE, PEER, 0.5)
    answer = srs.respond(invite.id, 200, now=0.6)
    after = srs.receive(INVITE, PEER, 0.7)

    assert sent(before) == sent(first)
    assert sent(after) == sent(answer)
    assert invites(before + after) == []


def test_a_2xx_is_repeated_until_its_ack_on_any_transport() -> None:
    for peer in (PEER, TCP_PEER):
        srs = new_server()
        dialog = in_call(srs, peer=peer, acknowledged=False)

        times = []
        while (at := srs.next_deadline()) is not None and at < 8:
            if statuses(srs.advance(at)) == [200]:
                times.append(at)
        ack = srs.receive(request("ACK", branch="z9hG4bKa", to_tag=dialog.local_tag), peer, 8.0)

        assert times == [0.5, 1.5, 3.5, 7.5]
        assert [one.dialog for one in ack if isinstance(one, AckReceived)] == [dialog]
        assert all(200 not in statuses(srs.advance(at)) for at in (12.0, 20.0, 31.0))


def test_an_answer_that_is_never_acknowledged_ends_the_call_with_a_bye() -> None:
    srs = new_server()
    in_call(srs, acknowledged=False)

    outputs: list[Output] = []
    while (at := srs.next_deadline()) is not None and at <= 32:
        outputs += srs.advance(at)

    assert ended(outputs) == ["ack_timeout"]
    (bye,) = requests(outputs)
    assert (bye.method, bye.uri) == ("BYE", "sip:src@192.0.2.10:5070")
    assert srs.dialogs == 0


def test_a_bye_is_answered_and_ends_the_dialog_whatever_its_cseq() -> None:
    srs = new_server()
    dialog = in_call(srs)

    bye = request("BYE", number=99999, branch="z9hG4bKbye", to_tag=dialog.local_tag)
    outputs = srs.receive(bye, PEER, 5.0)
    again = srs.receive(bye, PEER, 5.5)

    assert statuses(outputs) == [200]
    assert ended(outputs) == ["bye"]
    assert (statuses(again), ended(again)) == ([200], [])


def test_a_cancel_before_the_answer_ends_the_invite_with_487() -> None:
    srs = new_server()
    (invite,) = invites(srs.receive(INVITE, PEER, 0.0))

    outputs = srs.receive(request("CANCEL"), PEER, 0.2)
    late = srs.respond(invite.id, 200, now=0.3)

    assert statuses(outputs) == [200, 487]
    assert [one.id for one in outputs if isinstance(one, InviteCancelled)] == [invite.id]
    assert late == []
    assert srs.dialogs == 0


def test_a_cancel_after_the_answer_changes_nothing() -> None:
    srs = new_server()
    in_call(srs)

    outputs = srs.receive(request("CANCEL"), PEER, 1.0)

    assert statuses(outputs) == [200]
    assert not any(isinstance(one, InviteCancelled) for one in outputs)
    assert srs.dialogs == 1


def test_a_cancel_of_nothing_is_481() -> None:
    assert statuses(new_server().receive(request("CANCEL"), PEER, 0.0)) == [481]


def test_overlapping_reinvites_are_answered_one_after_the_other() -> None:
    srs = new_server()
    tag = in_call(srs).local_tag
    second = request("INVITE", number=2, branch="z9hG4bK2", to_tag=tag, body=multipart())
    third = request("INVITE", number=3, branch="z9hG4bK3", to_tag=tag, body=multipart())

    (first_change,) = invites(srs.receive(second, PEER, 1.0))
    overlapping = srs.receive(third, PEER, 1.001)
    released = srs.respond(first_change.id, 200, now=1.01)
    (second_change,) = invites(released)
    srs.respond(second_change.id, 200, now=1.02)
    ack = srs.receive(request("ACK", number=3, branch="z9hG4bKa3", to_tag=tag), PEER, 1.1)

    assert (statuses(overlapping), invites(overlapping)) == ([100], [])
    assert [one.request.cseq.number for one in (first_change, second_change)] == [2, 3]
    assert len([one for one in ack if isinstance(one, AckReceived)]) == 1
    # OpenSIPS never acknowledges the first: the later ACK counts for both.
    outputs: list[Output] = []
    while (at := srs.next_deadline()) is not None and at < 40:
        outputs += srs.advance(at)
    assert (ended(outputs), srs.dialogs) == ([], 1)


def test_an_update_takes_its_turn_among_the_reinvites() -> None:
    srs = new_server()
    tag = in_call(srs).local_tag
    reinvite = request("INVITE", number=2, branch="z9hG4bK2", to_tag=tag, body=multipart())
    update = request("UPDATE", number=3, branch="z9hG4bK3", to_tag=tag, body=multipart())

    (change,) = invites(srs.receive(reinvite, PEER, 1.0))
    waiting = srs.receive(update, PEER, 1.1)
    released = srs.respond(change.id, 200, now=1.2)

    assert not any(isinstance(one, UpdateReceived) for one in waiting)
    assert len([one for one in released if isinstance(one, UpdateReceived)]) == 1


def test_an_ack_with_an_unrelated_cseq_counts() -> None:
    srs = new_server()
    dialog = in_call(srs, acknowledged=False)

    ack = request("ACK", number=4711, branch="z9hG4bKx", to_tag=dialog.local_tag)
    outputs = srs.receive(ack, PEER, 0.2)

    assert [one.dialog for one in outputs if isinstance(one, AckReceived)] == [dialog]


@pytest.mark.parametrize(
    ("message", "status", "header"),
    [
        (
            request("INVITE", headers=["Require: siprec, 100rel, x"]),
            420,
            ("Unsupported", "100rel, x"),
        ),
        (request("SUBSCRIBE"), 405, ("Allow", None)),
        (request("NEWMETHOD"), 501, ("Allow", None)),
        (request("INVITE").replace(b"INVITE sip:", b"INVITE nobody:"), 416, None),
        (request("INVITE").replace(b"SIP/2.0\r", b"SIP/7.0\r", 1), 505, None),
        (request("INVITE").replace(b"Content-Length: 0", b"Content-Length: -1"), 400, None),
        (request("UPDATE", to_tag="unknown"), 481, None),
        (request("INFO", to_tag="unknown"), 481, None),
        (request("INVITE", to_tag="unknown"), 481, None),
        (request("BYE", to_tag="unknown"), 481, None),
        (request("BYE"), 481, None),
        (
            request("INVITE", headers=["Supported: timer", "Session-Expires: 30"]),
            422,
            ("Min-SE", "90"),
        ),
    ],
)
def test_what_we_cannot_do_is_refused_with_the_header_that_says_why(
    message: bytes, status: int, header: tuple[str, str | None] | None
) -> None:
    (answer,) = responses(new_server().receive(message, PEER, 0.0))

    assert answer.status == status
    assert answer.to.tag
    if header is not None:
        name, value = header
        assert answer.headers.get(name) is not None
        assert value is None or answer.headers.get(name) == value


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("tel:+15551234", 200),
        ("nobodyKnowsThisScheme:totallyopaquecontent", 416),
        ("soap.beep://192.0.2.103:3002", 416),
        ("mailto:srs@example.com", 416),
        ("SIPS:srs@192.0.2.1", 200),
        ("Sip:srs@192.0.2.1", 200),
        ("*", 200),  # no URI, and no scheme to refuse either
    ],
)
def test_a_request_uri_of_another_scheme_is_416(uri: str, status: int) -> None:
    srs = new_server()
    data = request("OPTIONS").replace(b"sip:srs@192.0.2.1 SIP", f"{uri} SIP".encode())

    outputs = srs.receive(data, PEER, 0.0)
    for one in outputs:
        if isinstance(one, RequestReceived):
            outputs = srs.respond(one.id, 200, now=0.0)

    assert statuses(outputs) == [status]


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [("INVITE", ["Require: x"], 420), ("INFO", ["Require: x"], 420), ("REFER", [], 405)],
)
def test_in_a_call_too_what_we_cannot_do_is_refused_and_the_call_goes_on(
    method: str, headers: list[str], status: int
) -> None:
    srs = new_server()
    tag = in_call(srs).local_tag

    outputs = srs.receive(
        request(method, number=2, branch="z9hG4bK2", to_tag=tag, headers=headers), PEER, 1.0
    )

    assert (statuses(outputs), srs.dialogs) == ([status], 1)
    assert not any(isinstance(one, InviteReceived | RequestReceived) for one in outputs)


def test_a_refusal_says_why_in_the_recorder_s_words() -> None:
    srs = new_server()
    (invite,) = invites(srs.receive(INVITE, PEER, 0.0))

    (answer,) = responses(srs.respond(invite.id, 400, now=0.0, reason="Malformed SDP (no v= line)"))

    assert (answer.status, answer.reason) == (400, "Malformed SDP (no v= line)")


def test_a_bye_ends_its_call_whatever_its_request_uri() -> None:
    srs = new_server()
    bye = request("BYE", number=2, branch="z9hG4bKbye", to_tag=in_call(srs).local_tag)

    outputs = srs.receive(bye.replace(b"BYE sip:", b"BYE tel:"), PEER, 1.0)

    assert (statuses(outputs), ended(outputs)) == ([200], ["bye"])


def test_an_answer_takes_over_what_it_has_to_of_the_request() -> None:
    srs = new_server()
    data = request("INVITE", headers=["Timestamp: 54.1", "Via: SIP/2.0/TCP h2;branch=z9hG4bKh2"])
    data = data.replace(b"call-1", b"Call/1@[::1]").replace(b"<sip:src@", b'"A, B" <sip:src@')

    outputs = srs.receive(data, PEER, 0.0)
    (invite,) = invites(outputs)
    refused = srs.receive(request("INVITE", branch="z9hG4bK2", headers=["Require: x"]), PEER, 0.0)
    trying, ok, bad = responses(outputs + srs.respond(invite.id, 200, now=0.1) + refused)

    for answer in (trying, ok):
        vias = answer.headers.values("Via")
        assert [one.partition(";")[0] for one in vias] == [
            "SIP/2.0/UDP 192.0.2.10:5070", "SIP/2.0/TCP h2",
        ]  # fmt: skip
        assert answer.headers.get("From") == '"A, B" <sip:src@192.0.2.10>;tag=src'
        assert (answer.call_id, str(answer.cseq)) == ("Call/1@[::1]", "1 INVITE")
        assert answer.headers.get("Timestamp") == "54.1"
    assert (trying.to.tag, ok.to.tag) == ("", invite.dialog.local_tag)
    assert (bad.status, bad.headers.get("From")) == (420, "<sip:src@192.0.2.10>;tag=src")


def test_a_repeated_reinvite_gets_the_same_answer_and_changes_nothing() -> None:
    srs = new_server()
    tag = in_call(srs).local_tag
    reinvite = request("INVITE", number=2, branch="z9hG4bK2", to_tag=tag, body=multipart())
    (change,) = invites(srs.receive(reinvite, PEER, 1.0))
    answer = srs.respond(change.id, 200, now=1.0)

    again = srs.receive(reinvite, PEER, 1.4)

    assert sent(again) == sent(answer)
    assert invites(again) == []


def test_too_many_reinvites_at_once_are_told_to_come_back() -> None:
    srs = new_server()
    tag = in_call(srs).local_tag

    outputs = [
        one
        for number in range(2, 30)
        for one in srs.receive(
            request("INVITE", number=number, branch=f"z9hG4bK{number}", to_tag=tag), PEER, 1.0
        )
    ]

    refused = [one for one in responses(outputs) if one.status == 500]
    assert len(refused) == 28 - 21  # one at work, twenty that wait
    assert {one.headers.get("Retry-After") for one in refused} == {"5"}


def test_a_request_in_a_dialog_that_we_do_not_act_on_is_handed_over_and_ends_nothing() -> None:
    srs = new_server()
    tag = in_call(srs).local_tag

    for number, method in enumerate(("INFO", "MESSAGE", "NOTIFY", "OPTIONS"), start=2):
        outputs = srs.receive(
            request(method, number=number, branch=f"z9hG4bK{number}", to_tag=tag), PEER, 1.0
        )
        (asked,) = (one for one in outputs if isinstance(one, RequestReceived))
        assert statuses(srs.respond(asked.id, 200, now=1.0)) == [200]

    assert srs.dialogs == 1


def test_a_refused_invite_is_answered_again_until_its_ack_and_others_when_they_come_again() -> None:
    srs = new_server()
    invite, options = request("INVITE", headers=["Require: x"]), request("REGISTER", call_id="c2")
    (refused,) = sent(srs.receive(invite, PEER, 0.0))
    (answered,) = sent(srs.receive(options, PEER, 0.0))

    repeated = sent(until(srs, 1.6))
    tag = responses(srs.receive(invite, PEER, 1.7))[0].to.tag
    srs.receive(request("ACK", to_tag=tag), PEER, 1.8)

    assert repeated == [refused, refused]  # at 0.5 and 1.5 s. RFC 3261 §17.2.1
    assert sent(until(srs, 30)) == []
    assert sent(srs.receive(options, PEER, 30)) == [answered]  # RFC 3261 §17.2.2


@pytest.mark.parametrize(
    ("transport", "via", "ports"),
    [
        ("tls", "192.0.2.10:5070;alias", [5070]),
        ("tls", "192.0.2.10;alias", [5061]),
        ("tls", "192.0.2.10:5070", []),
        ("tcp", "192.0.2.10:5070;alias", []),
    ],
)
def test_a_connection_stands_for_an_address_if_that_is_asked_for_over_tls(
    transport: str, via: str, ports: list[int]
) -> None:
    peer = Peer(transport, "192.0.2.10", 40000, 7, "192.0.2.1", 5061)
    data = request("OPTIONS").replace(b"192.0.2.10:5070;", f"{via};".encode())

    outputs = new_server().receive(data, peer, 0.0)

    # RFC 5923 §5: over plain TCP nobody proves whose address it is.
    assert [one.port for one in outputs if isinstance(one, AliasAsked)] == ports


def test_requests_and_answers_are_counted_once_by_methods_that_we_know() -> None:
    srs = new_server()
    strange = request("NEWMETHOD", transport="TCP")

    first, again = (srs.receive(strange, TCP_PEER, now) for now in (0.0, 0.1))
    known = srs.receive(request("REGISTER", call_id="c2", branch="z9hG4bK2"), PEER, 0.2)
    called = srs.receive(request("INVITE", call_id="c3", branch="z9hG4bK3"), PEER, 0.3)

    # A label of a metric: a peer must not make up new ones.
    assert counted(first) == {RequestSeen("tcp", "other"), ResponseSent("other", 501)}
    assert counted(again) == set()
    assert counted(known) == {RequestSeen("udp", "other"), ResponseSent("other", 405)}
    assert counted(called) == {RequestSeen("udp", "INVITE")}


def counted(outputs: list[Output]) -> set[Output]:
    return {one for one in outputs if isinstance(one, RequestSeen | ResponseSent)}


@pytest.mark.parametrize("forwards", ["Max-Forwards: 0", "Max-Forwards: many", "X-None: 1"])
def test_a_request_for_us_needs_no_more_hops(forwards: str) -> None:
    data = request("INVITE").replace(b"Max-Forwards: 70", forwards.encode())

    assert len(invites(new_server().receive(data, PEER, 0.0))) == 1


def test_an_invite_that_came_on_two_ways_is_answered_once() -> None:
    srs = new_server()
    srs.receive(INVITE, PEER, 0.0)

    other_way = request("INVITE", branch="z9hG4bKother", body=multipart())

    assert statuses(srs.receive(other_way, PEER, 0.1)) == [482]


def test_an_invite_that_was_refused_may_be_tried_at_another_address_of_ours() -> None:
    srs = new_server()
    (first,) = invites(srs.receive(INVITE, PEER, 0.0))
    srs.respond(first.id, 503, now=0.1)
    other_way = request("INVITE", branch="z9hG4bKother", body=multipart(), transport="TCP")

    (second,) = invites(srs.receive(other_way, TCP_PEER, 0.2))
    third_way = request("INVITE", branch="z9hG4bKthird", body=multipart())

    assert second.initial
    # 482 would keep a client from going on to another recorder, as 503 does not.
    assert statuses(srs.receive(third_way, PEER, 0.3)) == [482]


def test_options_is_for_the_recorder_to_answer() -> None:
    srs = new_server()

    outputs = srs.receive(request("OPTIONS"), PEER, 0.0)
    (asked,) = (one for one in outputs if isinstance(one, RequestReceived))
    (answer,) = responses(srs.respond(asked.id, 200, now=0.0))

    assert asked.dialog is None
    assert answer.status == 200
    assert "INVITE" in (answer.headers.get("Allow") or "")


def test_a_session_timer_that_the_peer_lets_run_out_ends_the_call() -> None:
    srs = new_server()
    timed = request(
        "INVITE",
        headers=["Supported: timer", "Session-Expires: 90;refresher=uac"],
        body=multipart(),
    )
    (invite,) = invites(srs.receive(timed, PEER, 0.0))
    (answer,) = responses(srs.respond(invite.id, 200, now=0.0))
    tag = invite.dialog.local_tag
    srs.receive(request("ACK", branch="z9hG4bKa", to_tag=tag), PEER, 0.1)
    refresh = request(
        "UPDATE", number=2, branch="z9hG4bKu", to_tag=tag,
        headers=["Supported: timer", "Session-Expires: 90;refresher=uac"],
    )  # fmt: skip
    (update,) = (one for one in srs.receive(refresh, PEER, 40.0) if isinstance(one, UpdateReceived))
    srs.respond(update.id, 200, now=40.0)

    before = srs.advance(99.0)
    after = srs.advance(101.0)

    assert answer.headers.get("Session-Expires") == "90;refresher=uac"
    assert ended(before) == []
    assert ended(after) == ["session_expired"]
    assert [one.method for one in requests(after)] == ["BYE"]


def test_a_session_timer_that_is_ours_is_refreshed_at_half_time() -> None:
    srs = new_server()
    timed = request(
        "INVITE",
        headers=["Supported: timer", "Session-Expires: 100;refresher=uas"],
        body=multipart(),
    )
    (invite,) = invites(srs.receive(timed, PEER, 0.0))
    srs.respond(invite.id, 200, now=0.0)
    tag = invite.dialog.local_tag
    srs.receive(request("ACK", branch="z9hG4bKa", to_tag=tag), PEER, 0.1)

    (update,) = requests(srs.advance(50.0))
    via = update.headers.get("Via")
    ok = f"SIP/2.0 200 OK\r\nVia: {via}\r\nFrom: <sip:a@b>;tag={tag}\r\nTo: <sip:c@d>;tag=src\r\n"
    ok += f"Call-ID: call-1\r\nCSeq: {update.cseq}\r\nContent-Length: 0\r\n\r\n"
    answered = srs.receive(ok.encode(), PEER, 50.1)

    assert update.method == "UPDATE"
    assert [one.method for one in answered if isinstance(one, RequestAnswered)] == ["UPDATE"]
    assert ended(srs.advance(100.05)) == []


def refreshed(
    srs: SipServer, status: int, *headers: str, expires: int = 90
) -> tuple[DialogId, list[Output]]:
    """A call whose timer is ours; its refresh is answered with this status at its half, and 0.1 s."""
    timed = request("INVITE", headers=[f"Session-Expires: {expires}"], body=multipart())
    (invite,) = invites(srs.receive(timed, PEER, 0.0))
    srs.respond(invite.id, 200, now=0.0)
    tag = invite.dialog.local_tag
    srs.receive(request("ACK", branch="z9hG4bKa", to_tag=tag), PEER, 0.1)
    (update,) = requests(srs.advance(expires / 2))
    return invite.dialog, srs.receive(answer_to(update, status, *headers), PEER, expires / 2 + 0.1)


def refreshes(srs: SipServer, end: float) -> list[tuple[float, str]]:
    """When requests of ours go out, none of which is answered or tried elsewhere, and how often."""
    seen: dict[str, tuple[float, str]] = {}
    while (at := srs.next_deadline()) is not None and at <= end:
        for one in requests(srs.advance(at)):
            seen.setdefault(str(one.cseq), (at, one.method))
    return list(seen.values())


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(491, "", 2.0), (500, "", 2.0), (504, "Retry-After: 7", 7.0), (500, "Retry-After: soon", 2.0)],
)
def test_a_refresh_that_meets_a_passing_obstacle_is_sent_again_soon(
    status: int, header: str, seconds: float
) -> None:
    srs = new_server()

    refreshed(srs, status, *([header] if header else []), expires=1800)

    # To wait for another half of the interval would be too late: the peer's has run out by then.
    ((at, method),) = refreshes(srs, 910)
    assert at == pytest.approx(900.1 + seconds)
    assert method == "UPDATE"


def test_a_peer_that_never_lets_itself_be_refreshed_is_asked_more_and_more_rarely() -> None:
    srs = new_server()
    _, outputs = refreshed(srs, 500, expires=1800)
    asked_at: list[float] = []
    while (at := srs.next_deadline()) is not None and at <= 1790:
        for ours in requests(out := srs.advance(at)):
            asked_at.append(at)
            outputs += out + srs.receive(answer_to(ours, 500), PEER, at)

    assert ended(outputs) == []
    assert 5 <= len(asked_at) <= 10


def test_a_peer_that_refuses_refreshes_for_weeks_goes_on_being_asked() -> None:
    srs = new_server()
    refreshed(srs, 500, expires=1800)

    asked = 0
    while asked < 1100 and (at := srs.next_deadline()) is not None:
        for ours in requests(srs.advance(at)):
            asked += 1
            srs.receive(answer_to(ours, 500), PEER, at)

    assert asked == 1100
    assert srs.dialogs == 1


def test_a_refresh_that_is_not_answered_is_tried_again_until_the_session_expires() -> None:
    srs = new_server()
    timed = request("INVITE", headers=["Session-Expires: 180"], body=multipart())
    (invite,) = invites(srs.receive(timed, PEER, 0.0))
    srs.respond(invite.id, 200, now=0.0)
    srs.receive(request("ACK", branch="z9hG4bKa", to_tag=invite.dialog.local_tag), PEER, 0.1)

    sent_at = refreshes(srs, 181)

    # Its media may come all the while.
    assert [method for _, method in sent_at] == ["UPDATE", "UPDATE", "BYE"]
    assert sent_at[-1][0] == 180


@pytest.mark.parametrize(
    ("header", "next_at", "method"),
    [
        ("Session-Expires: 600;refresher=uac", 900.1 + 300, "UPDATE"),
        ("x: 600", 900.1 + 300, "UPDATE"),
        ("Session-Expires: 600;refresher=uas", 900.1 + 600 - 32, "BYE"),  # the peer will refresh
        ("Session-Expires: never", 900.1 + 900, "UPDATE"),
        ("Session-Expires: 1", 900.1 + 15, "UPDATE"),  # not a flood of them
        ("", 900.1 + 900, "UPDATE"),
    ],
)
def test_the_answer_to_a_refresh_says_what_holds_from_then_on(
    header: str, next_at: float, method: str
) -> None:
    srs = new_server()

    refreshed(srs, 200, *([header] if header else []), expires=1800)

    at, what = refreshes(srs, next_at + 1)[0]
    assert at == pytest.approx(next_at)
    assert what == method


def test_a_refresh_whose_interval_is_too_short_for_the_peer_is_sent_with_his() -> None:
    srs = new_server()

    refreshed(srs, 422, "Min-SE: 600")
    (again,) = requests(srs.advance(45.1))
    srs.receive(answer_to(again, 200, "Session-Expires: 700;refresher=uac"), PEER, 45.2)
    (next_one,) = requests(srs.advance(45.2 + 350))

    assert again.headers.get("Session-Expires") == "600;refresher=uac"
    # Also for the proxies between, and from then on. RFC 4028 §7.4
    assert [one.headers.get("Min-SE") for one in (again, next_one)] == ["600", "600"]


def test_a_bye_that_requires_what_we_do_not_know_ends_its_call_all_the_same() -> None:
    srs = new_server()
    tag = in_call(srs).local_tag

    bye = request("BYE", number=2, branch="z9hG4bKb", to_tag=tag, headers=["Require: x"])
    outputs = srs.receive(bye, PEER, 1.0)

    assert (statuses(outputs), ended(outputs)) == ([200], ["bye"])


@pytest.mark.parametrize("status", [302, 405, 422, 501, 488])
def test_a_peer_that_refuses_our_refresh_is_there_and_goes_on_being_recorded(status: int) -> None:
    srs = new_server()

    _, outputs = refreshed(srs, status)
    later = srs.advance(90.1)

    assert ended(outputs + later) == []
    assert [one.method for one in requests(later)] == ["UPDATE"]


def test_a_peer_that_knows_nothing_of_the_call_at_its_refresh_ends_it() -> None:
    srs = new_server()

    _, outputs = refreshed(srs, 481)

    assert ended(outputs) == ["peer_gone"]


@pytest.mark.parametrize(
    ("headers", "expires", "required"),
    [
        (["Supported: timer", "Session-Expires: 1800"], "1800;refresher=uac", True),
        (["Supported: timer", "x: 1800;refresher=uas"], "1800;refresher=uas", False),
        (["Allow: INVITE, UPDATE", "x: 1800;refresher=uas"], "1800;refresher=uas", False),
        (["Allow: INVITE", "x: 1800;refresher=uas"], "1800;refresher=uas", False),
        (["Require: timer", "Session-Expires: 90; refresher=uac"], "90;refresher=uac", True),
        # A proxy's wish, of which the SRC knows nothing.
        (["Session-Expires: 1800"], "1800;refresher=uas", False),
        (["Supported: timer"], None, False),
    ],
)
def test_who_refreshes_is_said_in_the_answer(
    headers: list[str], expires: str | None, required: bool
) -> None:
    srs = new_server()
    (invite,) = invites(srs.receive(request("INVITE", headers=headers), PEER, 0.0))

    (answer,) = responses(srs.respond(invite.id, 200, now=0.0))

    assert answer.headers.get("Session-Expires") == expires
    assert ("timer" in answer.headers.values("Require")) is required


def test_hanging_up_sends_a_bye_along_the_route_and_ends_the_dialog_at_once() -> None:
    srs = new_server()
    routed = request("INVITE", headers=["Record-Route: <sip:p1;lr>, <sip:p2;lr>"], body=multipart())
    (invite,) = invites(srs.receive(routed, PEER, 0.0))
    srs.respond(invite.id, 200, now=0.0)

    outputs = srs.request(invite.dialog, "BYE", now=1.0)

    (bye,) = requests(outputs)
    assert bye.headers.values("Route") == ["<sip:p1;lr>", "<sip:p2;lr>"]
    assert (bye.from_.tag, bye.to.tag) == (invite.dialog.local_tag, "src")
    assert ended(outputs) == ["terminated"]
    # It is repeated until it is answered, then given up.
    repeated = 0
    while (at := srs.next_deadline()) is not None and at < 33:
        repeated += len(requests(srs.advance(at)))
    assert repeated == 10


@pytest.mark.parametrize(
    ("recorded", "uri", "routes"),
    [
        (
            ["<sip:p1;lr>, <sip:p2;r2=on;lr=on>", "<sip:p3>"],
            "sip:src@192.0.2.10:5070",
            ["<sip:p1;lr>", "<sip:p2;r2=on;lr=on>", "<sip:p3>"],
        ),
        (
            ["<sip:p1>, <sip:p2;lr>"],
            "sip:p1",
            ["<sip:p2;lr>", "<sip:src@192.0.2.10:5070>"],
        ),
        (["<sip:p1;maddr=p0>"], "sip:p1;maddr=p0", ["<sip:src@192.0.2.10:5070>"]),
        (["<urn:x>"], "sip:src@192.0.2.10:5070", ["<urn:x>"]),
        ([], "sip:src@192.0.2.10:5070", []),
    ],
    ids=["loose", "strict and loose", "strict", "no SIP URI", "none"],
)
def test_our_requests_go_along_the_recorded_route(
    recorded: list[str], uri: str, routes: list[str]
) -> None:
    srs = new_server()
    headers = [f"Record-Route: {one}" for one in recorded]
    (invite,) = invites(srs.receive(request("INVITE", headers=headers), PEER, 0.0))
    (answer,) = responses(srs.respond(invite.id, 200, now=0.0))

    (asked,) = requests(srs.request(invite.dialog, "UPDATE", now=1.0))

    assert answer.headers.get_all("Record-Route") == recorded
    assert (asked.uri, asked.headers.values("Route")) == (uri, routes)
    assert "+sip.srs" in (asked.headers.get("Contact") or "")


def asked(srs: SipServer, dialog: DialogId, method: str, now: float) -> Request:
    (ours,) = requests(srs.request(dialog, method, now=now))
    return ours


def answer_to(ours: Request, status: int, *headers: str) -> bytes:
    lines = [f"SIP/2.0 {status} Whatever", *(f"Via: {via}" for via in ours.headers.get_all("Via"))]
    lines += [f"{name}: {ours.headers.get(name)}" for name in ("From", "To", "Call-ID", "CSeq")]
    return "\r\n".join([*lines, *headers, "Content-Length: 0", "", ""]).encode()


def test_a_peer_that_knows_nothing_of_the_dialog_has_ended_it() -> None:
    srs = new_server()
    dialog = in_call(srs)

    outputs = srs.receive(answer_to(asked(srs, dialog, "OPTIONS", 50.0), 481), PEER, 50.1)

    assert ended(outputs) == ["peer_gone"]
    assert srs.dialogs == 0


@pytest.mark.parametrize("status", [200, 405, 501, 488])
def test_any_other_answer_to_a_question_of_ours_leaves_the_call_alone(status: int) -> None:
    srs = new_server()
    dialog = in_call(srs)

    outputs = srs.receive(answer_to(asked(srs, dialog, "OPTIONS", 50.0), status), PEER, 50.1)

    assert [one.response.status for one in outputs if isinstance(one, RequestAnswered)] == [status]
    assert ended(outputs) == []


def test_a_question_that_stays_unanswered_is_told_and_ends_nothing() -> None:
    srs = new_server()
    asked(srs, in_call(srs), "UPDATE", 50.0)
    told: list[Output] = []

    while (at := srs.next_deadline()) is not None and at < 120:
        told += srs.advance(at)  # nobody finds another server

    assert [one.response.status for one in told if isinstance(one, RequestAnswered)] == [408]
    assert ended(told) == []
    assert srs.dialogs == 1


def test_only_the_first_final_answer_to_what_we_asked_is_told() -> None:
    srs = new_server()
    ours = asked(srs, in_call(srs), "OPTIONS", 50.0)
    trying, ok = answer_to(ours, 100), answer_to(ours, 200)
    strange = [
        ok.replace(b"OPTIONS", b"UPDATE"),  # RFC 3261 §17.1.3: of another method
        ok.replace(ours.via.branch.encode(), b"z9hG4bKnobody"),
    ]

    before = [srs.receive(one, PEER, 50.1) for one in (trying, *strange)]
    told = srs.receive(ok, PEER, 50.2)
    after = [srs.receive(one, PEER, 50.3) for one in (ok, answer_to(ours, 481), trying)]

    assert (before, answered(told), after) == ([[]] * 3, [200], [[]] * 3)
    assert answered(until(srs, 200)) == []
    assert srs.dialogs == 1


@pytest.mark.parametrize(
    ("transport", "via", "elsewhere"),
    [
        ("tcp", "192.0.2.10:5070", ("192.0.2.10", 5070)),
        ("tcp", "192.0.2.10", ("192.0.2.10", 5060)),
        ("tls", "sbc.example.com", ("192.0.2.10", 5061)),  # where it came from, not what it says
        ("udp", "192.0.2.10:5070", None),
    ],
)
def test_an_answer_over_a_stream_says_where_else_it_may_go(
    transport: str, via: str, elsewhere: tuple[str, int] | None
) -> None:
    peer = Peer(transport, "192.0.2.10", 40000, 7, "192.0.2.1", 5060)
    data = request("REGISTER").replace(b"192.0.2.10:5070;", f"{via};".encode())

    (answer,) = [one for one in new_server().receive(data, peer, 0.0) if isinstance(one, Send)]

    assert answer.peer.elsewhere == elsewhere


@pytest.mark.parametrize(
    ("via", "answered"),
    [
        ("sbc.example.com;branch=z9hG4bK1", "sbc.example.com;branch=z9hG4bK1;received=192.0.2.10"),
        ("192.0.2.10;branch=z9hG4bK1", "192.0.2.10;branch=z9hG4bK1"),
        ("192.0.2.10;rport;branch=z9hG4bK1",
         "192.0.2.10;rport=5070;branch=z9hG4bK1;received=192.0.2.10"),
        ("sbc.example.com;branch=z9hG4bK1, SIP/2.0/UDP h2;branch=z9hG4bK2",
         "sbc.example.com;branch=z9hG4bK1;received=192.0.2.10, SIP/2.0/UDP h2;branch=z9hG4bK2"),
    ],
)  # fmt: skip
def test_a_via_says_where_the_request_came_from(via: str, answered: str) -> None:
    data = request("REGISTER").replace(b"192.0.2.10:5070;branch=z9hG4bK1;rport", via.encode())

    (answer,) = responses(new_server().receive(data, PEER, 0.0))

    # RFC 3261 §18.2.1, RFC 3581 §4
    assert answer.headers.get("Via") == f"SIP/2.0/UDP {answered}"


@pytest.mark.parametrize(
    ("transport", "contact", "route", "elsewhere"),
    [
        ("tcp", "sip:src@192.0.2.77:5071;transport=tcp", "", ("192.0.2.77", 5071)),
        ("tcp", "sip:src@sbc.example.com", "", ("sbc.example.com", None)),  # its SRV records tell
        ("tcp", "sip:src@[2001:db8::1]", "", ("2001:db8::1", 5060)),
        ("tcp", "sip:src@192.0.2.77", "<sip:p1:5080;lr>, <sip:p2;lr>", ("p1", 5080)),
        ("tls", "sips:src@sbc.example.com", "", ("sbc.example.com", None)),
        ("tls", "sips:src@sbc.example.com:5071", "", ("sbc.example.com", 5071)),
        ("tls", "sip:src@sbc.example.com;transport=tcp", "", ("sbc.example.com", None)),
        ("tcp", "sip:src@192.0.2.77;transport=ws", "", ("192.0.2.77", 5060)),
        ("tcp", "tel:+15551234", "", None),
        ("tcp", "sip:src@192.0.2.77", "<sip:p1:port;lr>", None),
        ("udp", "sip:src@192.0.2.77", "", ("192.0.2.77", 5060)),
        ("udp", "sip:src@sbc.example.com", "", ("sbc.example.com", None)),
        ("udp", "sip:src@sbc.example.com;maddr=192.0.2.78", "", ("192.0.2.78", 5060)),
    ],
)
def test_a_request_says_where_its_next_hop_is(
    transport: str, contact: str, route: str, elsewhere: tuple[str, int | None] | None
) -> None:
    peer = Peer(transport, "192.0.2.10", 40000, 7, "192.0.2.1", 5060)
    routes = [f"Record-Route: {route}"] if route else []
    data = request("INVITE", headers=routes).replace(
        b"<sip:src@192.0.2.10:5070>", f"<{contact}>".encode()
    )
    srs = new_server()
    (invite,) = invites(srs.receive(data, peer, 0.0))

    (bye,) = [one for one in srs.request(invite.dialog, "BYE", now=1.0) if isinstance(one, Send)
              if one.data.startswith(b"BYE")]  # fmt: skip

    assert bye.peer.elsewhere == elsewhere


def wanted(outputs: list[Output]) -> list[NextServerWanted]:
    return [one for one in outputs if isinstance(one, NextServerWanted)]


def until(srs: SipServer, end: float) -> list[Output]:
    """What the passing of time brings."""
    outputs: list[Output] = []
    while (at := srs.next_deadline()) is not None and at <= end:
        outputs += srs.advance(at)
    return outputs


def answered(outputs: list[Output]) -> list[int]:
    return [one.response.status for one in outputs if isinstance(one, RequestAnswered)]


def test_a_request_that_is_not_served_goes_to_the_next_server_with_another_branch() -> None:
    srs = new_server()
    dialog = in_call(srs)
    ours = asked(srs, dialog, "BYE", 50.0)

    (refused,) = wanted(srs.receive(answer_to(ours, 503), PEER, 50.1))
    (second,) = requests(redirected := srs.redirect(refused.branch, ("192.0.2.98", 5062), 50.2))
    (silent,) = wanted(until(srs, 82.3))
    (third,) = requests(srs.redirect(silent.branch, ("192.0.2.99", 5063), 82.4))
    done = srs.receive(answer_to(third, 200), PEER, 82.5)

    (send,) = [one for one in redirected if isinstance(one, Send)]
    assert (send.peer.host, send.peer.port, send.peer.flow) == ("192.0.2.98", 5062, PEER.flow)
    assert refused.failed == {("192.0.2.10", 5070)}
    assert silent.failed == {("192.0.2.10", 5070), ("192.0.2.98", 5062)}
    assert len({one.via.branch for one in (ours, second, third)}) == 3
    assert {str(one.cseq) for one in (ours, second, third)} == {"1 BYE"}
    assert answered(done) == [200]
    assert answered(until(srs, 200)) == []
    assert len(srs._client._asked) == 0


@pytest.mark.parametrize("status", [503, 408])
def test_where_there_is_no_other_server_the_failure_is_told_once(status: int) -> None:
    srs = new_server()
    ours = asked(srs, in_call(srs), "OPTIONS", 50.0)
    outputs = srs.receive(answer_to(ours, 503), PEER, 50.1) if status == 503 else until(srs, 82.1)

    told = srs.redirect(wanted(outputs)[0].branch, None, 82.2)
    again = srs.redirect(wanted(outputs)[0].branch, None, 82.3)

    assert (answered(outputs), answered(told), answered(again)) == ([], [status], [])


def test_a_search_for_a_server_that_never_ends_is_given_up() -> None:
    srs = new_server()
    ours = asked(srs, in_call(srs), "OPTIONS", 50.0)

    outputs = srs.receive(answer_to(ours, 503), PEER, 50.1)

    assert len(wanted(outputs)) == 1
    assert answered(until(srs, 61)) == [503]


def test_servers_are_not_tried_for_ever() -> None:
    srs = new_server()
    ours = asked(srs, in_call(srs), "OPTIONS", 50.0)
    tried = 1
    outputs = srs.receive(answer_to(ours, 503), PEER, 50.0)
    while not answered(outputs):
        (one,) = wanted(outputs)
        (ours,) = requests(srs.redirect(one.branch, ("192.0.2.99", 6000 + tried), 50.0))
        tried += 1
        outputs = srs.receive(answer_to(ours, 503), PEER, 50.0)

    assert (tried, answered(outputs)) == (4, [503])


def test_a_request_for_which_there_is_no_connection_has_failed_at_once() -> None:
    srs = new_server()
    dialog = in_call(srs, peer=TCP_PEER)
    (first,) = sent(srs.request(dialog, "OPTIONS", now=50.0))

    told = srs.undeliverable(first, 50.1)
    again = srs.undeliverable(first, 50.2)

    assert (answered(told), answered(again)) == ([408], [])
    assert answered(until(srs, 200)) == []


def test_a_server_that_cannot_be_reached_is_passed_over() -> None:
    srs = new_server()
    dialog = in_call(srs, peer=TCP_PEER)
    ours = asked(srs, dialog, "BYE", 50.0)
    (refused,) = wanted(srs.receive(answer_to(ours, 503), TCP_PEER, 50.1))

    (second,) = [
        one
        for one in srs.redirect(refused.branch, ("192.0.2.98", 5060), 50.2)
        if isinstance(one, Send)
    ]
    (next_one,) = wanted(srs.undeliverable(second.data, 50.3))

    # Over a connection of its own: that of the dialog is the server's that has refused.
    assert (second.peer.host, second.peer.flow, second.peer.elsewhere) == (
        "192.0.2.98", 0, ("192.0.2.10", 5070),
    )  # fmt: skip
    assert ("192.0.2.98", 5060) in next_one.failed


@pytest.mark.parametrize("method", ["INVITE", "INFO", "ACK"])
def test_our_requests_go_where_answers_to_the_dialog_s_latest_one_do(method: str) -> None:
    srs = new_server()
    (invite,) = invites(srs.receive(request("INVITE", body=multipart()), PEER, 0.0))
    srs.respond(invite.id, 200, now=0.0)
    number = 1 if method == "ACK" else 2
    tag = invite.dialog.local_tag
    later = request(method, number=number, branch="z9hG4bK2", to_tag=tag, body=multipart())

    # A gateway that sends from a port on which it does not listen, and asks for no rport.
    moved = later.replace(b":5070;branch=z9hG4bK2;rport", b":5080;branch=z9hG4bK2", 1)
    assert moved != later
    srs.receive(moved, Peer("udp", PEER.host, 41000, 1, "192.0.2.1", 5060), 0.1)

    (bye, *_) = [one for one in srs.request(invite.dialog, "BYE", now=0.2) if isinstance(one, Send)]
    assert bye.peer.port == 5080


@pytest.mark.parametrize(
    ("via", "port"), [("branch=z9hG4bK1", 5070), ("branch=z9hG4bK1;rport", 41000)]
)
def test_over_udp_our_requests_go_where_answers_go(via: str, port: int) -> None:
    # Cisco gateways send from a port on which they do not listen, and ask for no rport.
    peer = Peer("udp", "192.0.2.10", 41000, 1, "192.0.2.1", 5060)
    srs = new_server()
    data = request("INVITE").replace(b"branch=z9hG4bK1;rport", via.encode())
    (invite,) = invites(srs.receive(data, peer, 0.0))
    (ok, *_) = [one for one in srs.respond(invite.id, 200, now=0.0) if isinstance(one, Send)]

    (bye, *_) = [one for one in srs.request(invite.dialog, "BYE", now=1.0) if isinstance(one, Send)]

    assert (ok.peer.port, bye.peer.port) == (port, port)


def test_what_is_turned_away_or_cannot_be_read_is_not_worth_a_connection() -> None:
    srs = new_server()
    broken = request("OPTIONS").replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE")
    outputs = srs.receive(broken, TCP_PEER, 0.0) + srs.turn_away(request("OPTIONS"), TCP_PEER)

    answers = [one for one in outputs if isinstance(one, Send)]

    assert statuses(outputs) == [400, 403]
    assert [one.peer.elsewhere for one in answers] == [None, None]


def test_garbage_with_an_address_is_400_and_without_one_is_met_with_silence() -> None:
    srs = new_server()
    broken = request("OPTIONS").replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE")

    answered = srs.receive(broken, PEER, 0.0)
    silent = srs.receive(b"\x16\x03\x01\x02\x00 not SIP at all\r\n\r\n", PEER, 0.0)

    assert statuses(answered) == [400]
    assert sent(silent) == []
    assert [type(one) for one in silent] == [Malformed]


@pytest.mark.parametrize("peer", [PEER, TCP_PEER], ids=["udp", "tcp"])
def test_nothing_is_remembered_of_calls_that_are_long_over(peer: Peer) -> None:
    srs = new_server()
    for number in range(50):
        invite_bytes = request(
            "INVITE", call_id=f"c{number}", branch=f"z9hG4bK{number}", body=multipart()
        )
        (invite,) = invites(srs.receive(invite_bytes, peer, 0.0))
        srs.respond(invite.id, 200, now=0.0)
        srs.request(invite.dialog, "BYE", now=1.0)
        for method in ("INVITE", "REGISTER", "CANCEL"):
            branch = f"z9hG4bKx{method}{number}"
            srs.receive(request(method, call_id=branch, branch=branch, headers=["Require: x"]),
                        peer, 0.0)  # fmt: skip

    while (at := srs.next_deadline()) is not None:
        srs.advance(at)

    assert srs.dialogs == 0
    assert (len(srs._pending), len(srs._by_id), len(srs._client._asked), len(srs._merged)) == (
        0,
        0,
        0,
        0,
    )


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    srs = new_server()
    dialog = in_call(srs)

    srs.receive(data, PEER, 1.0)
    srs.receive(request("BYE", to_tag=dialog.local_tag)[:60] + data, PEER, 1.0)

    assert srs.dialogs <= 1


class CallsUnderLossAndRepetition(RuleBasedStateMachine):
    """Whatever is repeated, lost or out of order: one recording per dialog, and each one ends."""

    def __init__(self) -> None:
        super().__init__()
        self.srs = new_server()
        self.now = 0.0
        self.started: dict[DialogId, str] = {}
        self.answered: set[DialogId] = set()
        self.over: dict[DialogId, int] = {}

    def take(self, outputs: list[Output]) -> None:
        for one in outputs:
            match one:
                case InviteReceived(initial=True):
                    assert one.dialog not in self.started
                    self.started[one.dialog] = one.id
                case InviteCancelled() | DialogEnded():
                    self.over[one.dialog] = self.over.get(one.dialog, 0) + 1
                case _:
                    pass

    @rule(call=st.integers(0, 2), method=st.sampled_from(["INVITE", "CANCEL"]))
    def sends_outside(self, call: int, method: str) -> None:
        data = request(method, call_id=f"c{call}", branch=f"z9hG4bK{call}", body=b"")
        self.take(self.srs.receive(data, PEER, self.now))

    @rule(
        pick=st.integers(0, 5),
        method=st.sampled_from(["ACK", "BYE", "INVITE", "UPDATE", "INFO"]),
        number=st.integers(1, 5),
    )
    def sends_inside(self, pick: int, method: str, number: int) -> None:
        if not self.started:
            return
        dialog = list(self.started)[pick % len(self.started)]
        data = request(
            method, number=number, call_id=dialog.call_id, to_tag=dialog.local_tag,
            branch=f"z9hG4bK-{dialog.call_id}-{method}-{number}",
        )  # fmt: skip
        outputs = self.srs.receive(data, PEER, self.now)
        self.take(outputs)
        for one in outputs:
            if isinstance(one, InviteReceived | UpdateReceived | RequestReceived):
                self.take(self.srs.respond(one.id, 200, now=self.now))

    @rule(pick=st.integers(0, 5), status=st.sampled_from([200, 488]))
    def answers(self, pick: int, status: int) -> None:
        if not self.started:
            return
        dialog = list(self.started)[pick % len(self.started)]
        self.take(self.srs.respond(self.started[dialog], status, now=self.now))
        self.answered.add(dialog)

    @rule(seconds=st.floats(0.1, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.srs.advance(self.now))

    @invariant()
    def no_dialog_ends_twice(self) -> None:
        assert all(count == 1 for count in self.over.values())

    def teardown(self) -> None:
        for _ in range(1000):
            at = self.srs.next_deadline()
            if at is None:
                break
            self.now = max(self.now, at)
            self.take(self.srs.advance(self.now))
        assert self.srs.next_deadline() is None


TestCallsUnderLossAndRepetition = CallsUnderLossAndRepetition.TestCase


@pytest.mark.parametrize(
    ("maddr", "host"),
    [
        ("192.0.2.99", "192.0.2.99"),
        ("srs.example.com", "192.0.2.10"),
        ("192.0.2.99:many", "192.0.2.10"),
        ("[2001:db8::1]", "192.0.2.10"),
        ("a" * 70, "192.0.2.10"),
        ("\0", "192.0.2.10"),
    ],
)
def test_an_answer_goes_to_an_address_and_never_to_a_name(maddr: str, host: str) -> None:
    data = request("REGISTER").replace(b";rport", f";maddr={maddr}".encode())

    (answer,) = [one for one in new_server().receive(data, PEER, 0.0) if isinstance(one, Send)]

    assert (answer.peer.host, answer.peer.port) == (host, 5070)


def test_a_malformed_request_is_told_what_is_wrong_with_it() -> None:
    (answer,) = sent(new_server().receive(request("INVITE", number=1 << 32), PEER, 0.0))

    assert answer.startswith(b"SIP/2.0 400 bad CSeq\r\n")


@pytest.mark.parametrize(
    ("uri", "contact", "route", "scheme"),
    [
        ("sips:srs@192.0.2.1", "sips:src@192.0.2.10", "", "sips"),
        ("SIPS:srs@192.0.2.1", "sip:src@192.0.2.10", "", "sips"),
        ("sip:srs@192.0.2.1", "sips:src@192.0.2.10", "", "sips"),
        ("sip:srs@192.0.2.1", "sip:src@192.0.2.10", "<sips:p1;lr>", "sips"),
        ("sip:srs@192.0.2.1", "sips:src@192.0.2.10", "<sip:p1;lr>", "sip"),
        ("sip:srs@192.0.2.1", "sip:src@192.0.2.10", "", "sip"),
    ],
)
def test_who_asks_by_sips_gets_a_sips_contact(
    uri: str, contact: str, route: str, scheme: str
) -> None:
    peer = Peer("tls", "192.0.2.10", 40000, 7, "192.0.2.1", 5061)
    srs = new_server()
    data = request("INVITE", headers=[f"Record-Route: {route}"] if route else [])
    data = data.replace(b"INVITE sip:srs@192.0.2.1", f"INVITE {uri}".encode())
    data = data.replace(b"sip:src@192.0.2.10:5070", contact.encode())
    (invite,) = invites(srs.receive(data, peer, 0.0))

    (ok,) = responses(srs.respond(invite.id, 200, now=0.0))
    ours = asked(srs, invite.dialog, "OPTIONS", 1.0)

    for one in (ok, ours):
        assert (one.headers.get("Contact") or "").startswith(f"<{scheme}:srs@192.0.2.1:5060")
        assert ("transport=tls" in (one.headers.get("Contact") or "")) is (scheme == "sip")
        assert "+sip.srs" in (one.headers.get("Contact") or "")
