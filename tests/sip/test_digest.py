"""Digest authentication: the RFC's own figures, and everything that must not get in."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.src import PEER, multipart, new_server, request, responses, statuses
from siprec_bridge.sip import DigestAuthority, InviteReceived, Request, answer_challenge, parse
from siprec_bridge.sip.digest import Verdict
from siprec_bridge.sip.nonces import NonceCounts

AUTHORITY = DigestAuthority("pbx", {"sbc": "secret"}, b"seal")
URI = "sip:srs@192.0.2.1"


def invite(authorization: str | None = None, **options: object) -> bytes:
    headers = [f"Authorization: {authorization}"] if authorization is not None else []
    return request("INVITE", body=multipart(), headers=headers, **options)  # type: ignore[arg-type]


def parsed(data: bytes) -> Request:
    message = parse(data)
    assert isinstance(message, Request)
    return message


def answer(challenge: str, *, user: str = "sbc", password: str = "secret") -> str:
    value = answer_challenge(
        challenge, method="INVITE", uri=URI, user=user, password=password, cnonce="c"
    )
    assert value is not None
    return value


def test_the_example_of_rfc_7616_gives_its_figures() -> None:
    for algorithm, expected in (
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
    ):
        challenge = (
            f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={algorithm}, '
            'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="x"'
        )

        value = answer_challenge(
            challenge, method="GET", uri="/dir/index.html", user="Mufasa",
            password="Circle of Life", cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        )  # fmt: skip

        assert value is not None
        assert f'response="{expected}"' in value


@pytest.mark.parametrize("index", [0, 1], ids=["SHA-256", "MD5"])
def test_the_right_answer_is_good_until_its_nonce_is_old(index: int) -> None:
    messages = [parsed(invite(answer(AUTHORITY.challenges(1000.0)[index]))) for _ in range(3)]

    verdicts = [
        AUTHORITY.verify(message, now)
        for message, now in zip(messages, (1000.0, 1299.0, 1301.0), strict=True)
    ]

    assert verdicts == [Verdict.GOOD, Verdict.GOOD, Verdict.STALE]


def counted(challenge: str, count: str, *, cnonce: str = "c") -> Request:
    """An INVITE with the answer to a challenge for this nonce count."""
    nonce = challenge.split('nonce="')[1].split('"')[0]
    first = hashlib.sha256(b"sbc:pbx:secret").hexdigest()
    second = hashlib.sha256(f"INVITE:{URI}".encode()).hexdigest()
    middle = f"{nonce}:{count}:{cnonce}:auth"
    response = hashlib.sha256(f"{first}:{middle}:{second}".encode()).hexdigest()
    value = (
        f'Digest username="sbc", realm="pbx", nonce="{nonce}", uri="{URI}", response="{response}", '
        f'algorithm=SHA-256, qop=auth, nc={count}, cnonce="{cnonce}"'
    )
    return parsed(invite(value))


def test_a_nonce_serves_many_requests_each_count_once() -> None:
    authority = DigestAuthority("pbx", {"sbc": "secret"}, b"seal")
    challenge, other = authority.challenges(0.0)[0], authority.challenges(0.0)[0]

    verdicts = [
        authority.verify(counted(challenge, count, cnonce=cnonce), 1.0)
        for count, cnonce in [
            ("00000001", "a"), ("00000003", "b"), ("00000002", "c"),  # which was overtaken
            ("00000003", "b"), ("00000001", "another"), ("0000ffff", "d"), ("00000004", "e"),
            ("FFFFFFFF", "f"), ("fffffffe", "g"), ("FFFFFFFF", "f"),
        ]
    ]  # fmt: skip

    good, stale = Verdict.GOOD, Verdict.STALE
    assert verdicts == [good, good, good, stale, stale, good, stale, good, good, stale]
    assert challenge != other
    assert authority.verify(counted(other, "00000001"), 1.0) is Verdict.GOOD


@pytest.mark.parametrize("count", ["", "x", "000000001", "-1", "1 "])
def test_a_count_that_is_none_is_a_wrong_answer(count: str) -> None:
    assert AUTHORITY.verify(counted(AUTHORITY.challenges(0.0)[0], count), 1.0) is Verdict.BAD


def test_an_invite_that_somebody_heard_and_sends_again_is_asked_for_another_answer() -> None:
    srs = new_server(authority=DigestAuthority("pbx", {"sbc": "secret"}, b"seal"))
    (challenged,) = responses(srs.receive(invite(), PEER, 0.0))
    value = answer(challenged.headers.get_all("WWW-Authenticate")[0])
    asked = invite(value, number=2, branch="z9hG4bK2")
    replayed = invite(value, number=2, branch="z9hG4bK3", call_id="another")

    first = srs.receive(asked, PEER, 1.0)
    retransmitted = srs.receive(asked, PEER, 1.5)  # the same transaction
    (refusal,) = responses(again := srs.receive(replayed, PEER, 2.0))

    assert (statuses(first), statuses(retransmitted)) == ([100], [100])
    assert refusal.status == 401
    assert "stale=true" in (refusal.headers.get("WWW-Authenticate") or "")
    assert not any(isinstance(one, InviteReceived) for one in retransmitted + again)
    fresh = answer(refusal.headers.get_all("WWW-Authenticate")[0])
    assert statuses(srs.receive(invite(fresh, number=3, branch="z9hG4bK4"), PEER, 2.1)) == [100]


def test_used_nonces_are_forgotten_when_they_are_old_and_none_of_them_is_good_again() -> None:
    counts = NonceCounts(most=10)

    taken = [counts.take(f"n{at}", at, 1, oldest=at - 300) for at in range(1000)]
    again = [counts.take(f"n{at}", at, 1, oldest=699) for at in range(1000)]

    assert (all(taken), any(again)) == (True, False)
    assert len(counts) == 10
    counts.take("much later", 5000.0, 1, oldest=4700.0)
    assert len(counts) == 1


def test_an_old_client_without_qop_is_taken() -> None:
    nonce = AUTHORITY.challenges(0.0)[1].split('nonce="')[1].split('"')[0]
    first = hashlib.md5(b"sbc:pbx:secret").hexdigest()
    second = hashlib.md5(f"INVITE:{URI}".encode()).hexdigest()
    response = hashlib.md5(f"{first}:{nonce}:{second}".encode()).hexdigest()
    value = (
        f'Digest username="sbc", realm="pbx", nonce="{nonce}", uri="{URI}", response="{response}"'
    )

    assert AUTHORITY.verify(parsed(invite(value)), 1.0) is Verdict.GOOD
    assert AUTHORITY.verify(parsed(invite(value)), 1.0) is Verdict.STALE  # it does not count


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Basic c2JjOnNlY3JldA==",
        "Digest",
        answer(AUTHORITY.challenges(0.0)[0], password="guess"),
        answer(AUTHORITY.challenges(0.0)[0], user="admin"),
        answer(AUTHORITY.challenges(0.0)[0], user="admin", password=""),
        answer(AUTHORITY.challenges(0.0)[0]).replace("SHA-256", "MD5"),
        answer(AUTHORITY.challenges(0.0)[0]).replace("SHA-256", "CRC32"),
        answer(DigestAuthority("pbx", {}, b"another seal").challenges(0.0)[0]),
        answer(DigestAuthority("other", {}, b"seal").challenges(0.0)[0]),
    ],
)
def test_everything_else_is_asked_to_authenticate(authorization: str | None) -> None:
    srs = new_server(authority=AUTHORITY)

    outputs = srs.receive(invite(authorization), PEER, 0.0)

    (refusal,) = responses(outputs)
    assert refusal.status == 401
    challenges = refusal.headers.get_all("WWW-Authenticate")
    assert ["SHA-256" in challenges[0], "MD5" in challenges[1]] == [True, True]
    assert not any(isinstance(one, InviteReceived) for one in outputs)
    assert srs.dialogs == 0


def test_a_client_that_answers_the_challenge_gets_in_and_its_dialog_is_believed() -> None:
    srs = new_server(authority=AUTHORITY)
    (refusal,) = responses(srs.receive(invite(), PEER, 0.0))
    value = answer(refusal.headers.get_all("WWW-Authenticate")[0])

    outputs = srs.receive(invite(value, number=2, branch="z9hG4bK2"), PEER, 0.1)
    (received,) = (one for one in outputs if isinstance(one, InviteReceived))
    srs.respond(received.id, 200, now=0.2)
    tag = received.dialog.local_tag
    bye = srs.receive(request("BYE", number=3, branch="z9hG4bK3", to_tag=tag), PEER, 1.0)
    stranger = srs.receive(
        request("BYE", number=4, branch="z9hG4bK4", to_tag="guess", call_id="x"), PEER, 1.0
    )

    assert statuses(bye) == [200]
    assert statuses(stranger) == [401]


def test_a_digest_that_is_not_offered_is_not_taken() -> None:
    strict = DigestAuthority("pbx", {"sbc": "secret"}, b"seal", algorithms=("SHA-256",))
    weak = answer(AUTHORITY.challenges(0.0)[1])

    assert len(strict.challenges(0.0)) == 1
    assert strict.verify(parsed(invite(weak)), 1.0) is Verdict.BAD


def test_a_right_answer_to_a_nonce_of_before_a_restart_is_stale_and_no_wrong_password() -> None:
    # A client that is told no more than 401 takes its password for wrong, and gives up.
    before = DigestAuthority("pbx", {"sbc": "secret"}, b"another seal").challenges(50.0)[0]
    srs = new_server(authority=AUTHORITY)

    (right,) = responses(srs.receive(invite(answer(before)), PEER, 1.0))
    (wrong,) = responses(
        srs.receive(invite(answer(before, password="no"), branch="z9hG4bK2"), PEER, 1.0)
    )

    assert (right.status, wrong.status) == (401, 401)
    assert "stale=true" in (right.headers.get("WWW-Authenticate") or "")
    assert "stale" not in (wrong.headers.get("WWW-Authenticate") or "")


def test_a_stale_nonce_is_said_to_be_so() -> None:
    srs = new_server(authority=AUTHORITY)
    value = answer(AUTHORITY.challenges(0.0)[0])

    (refusal,) = responses(srs.receive(invite(value), PEER, 1000.0))

    assert "stale=true" in (refusal.headers.get("WWW-Authenticate") or "")


@given(st.text(max_size=120))
def test_no_authorization_makes_it_raise(text: str) -> None:
    message = parsed(invite())
    for value in (text, f"Digest {text}", f'Digest realm="pbx", nonce="{text}", {text}'):
        message.headers.set("Authorization", value)
        assert AUTHORITY.verify(message, 0.0) is Verdict.BAD
