"""Who is let in, who is not, and who has to wait."""

import contextlib
from ipaddress import ip_address, ip_network

import pytest
from structlog.testing import capture_logs

from harness.tokens import Given, given
from siprec_bridge.access import COOKIE, LOGIN_S, TICKET_S, Gate, Refused
from siprec_bridge.telemetry import Metrics

WALL = given("wall", "read,listen")
ROOT = given("root", "operate")


class Door:
    """A gate with a clock to turn."""

    def __init__(self, *tokens: Given) -> None:
        self.now = 1000.0
        self.gate = Gate(
            [one.token for one in tokens], Metrics(), origins=["https://board.example.com/"],
            clock=lambda: self.now,
        )  # fmt: skip

    def status(self, source: str = "192.0.2.1", **carried: str) -> int:
        try:
            self.gate.client(source, **carried)
        except Refused as refused:
            return refused.status
        return 200

    def bearer(self, secret: str, source: str = "192.0.2.1") -> int:
        return self.status(source, authorization=f"Bearer {secret}")

    def counted(self, reason: str) -> float | None:
        registry = self.gate.metrics.registry
        return registry.get_sample_value("siprec_http_refused_total", {"reason": reason})


@pytest.mark.parametrize(
    ("remote", "forwarded", "source"),
    [
        ("192.0.2.7", None, "192.0.2.7"),
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),  # no proxy of ours: anybody may write that
        ("10.0.0.5", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.5", "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the first is the client's word
        ("10.0.0.5", "198.51.100.1, 10.0.0.6", "198.51.100.1"),  # two proxies
        ("::ffff:10.0.0.5", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.5", "10.0.0.6", "10.0.0.6"),
        ("10.0.0.5", "unknown", "10.0.0.5"),
        ("10.0.0.5", "198.51.100.1, ,", "198.51.100.1"),
        ("", "198.51.100.1", ""),
    ],
)
def test_the_source_is_the_last_address_that_no_proxy_of_ours_has(
    remote: str, forwarded: str | None, source: str
) -> None:
    gate = Gate((), Metrics(), proxies=[ip_network("10.0.0.0/24")])

    assert gate.source(remote, forwarded) == source


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("[2001:db8::1]", True),
        ("localhost:8080", True),
        ("siprec-bridge", True),
        ("bridge.svc.cluster.local:8080", True),
        ("board.example.com", True),  # in HTTP_ORIGINS
        ("evil.example.net:8080", False),
        ("127.0.0.1.evil.example.net", False),
        ("local.example.net.", False),
        (None, True),  # no browser
    ],
)
def test_where_no_token_is_needed_a_public_name_must_be_a_known_one(
    host: str | None, allowed: bool
) -> None:
    closed, open_ = Door(WALL), Door()

    closed.gate.check_host(host)
    with contextlib.nullcontext() if allowed else pytest.raises(Refused, match="HTTP_ORIGINS"):
        open_.gate.check_host(host)

    assert open_.counted("host") == (None if allowed else 1)


def test_without_tokens_everybody_may_do_everything() -> None:
    door = Door()

    client = door.gate.client("192.0.2.1", authorization="Bearer whatever")

    assert door.gate.open
    assert client.scopes == {"read", "listen", "operate", "erase", "metrics"}
    assert client.view.whole


def test_a_token_gives_its_name_its_scopes_and_its_view() -> None:
    door = Door(WALL, given("sales", "read", "group=g1"))

    client = door.gate.client("192.0.2.1", authorization=f"bearer  {WALL.secret}")

    assert client.name == "wall"
    assert client.scopes == {"read", "listen"}
    with pytest.raises(Refused, match="lacks the scope operate") as refused:
        door.gate.require(client, "operate")
    assert refused.value.status == 403
    assert door.counted("scope") == 1


@pytest.mark.parametrize(
    ("carried", "status"),
    [
        ({}, 401),
        ({"authorization": "Basic d2FsbDp3YWxs"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": f"Bearer {WALL.secret[:-1]}"}, 401),
        ({"authorization": f"Bearer {WALL.secret}é"}, 401),
        ({"authorization": "Bearer \udcff\ud800"}, 401),
        ({"cookie": f"{COOKIE}={WALL.secret}"}, 401),
        ({"cookie": f"{COOKIE}"}, 401),
        ({"ticket": WALL.secret}, 401),
    ],
)
def test_whoever_comes_without_a_token_is_not_let_in(carried: dict[str, str], status: int) -> None:
    assert Door(WALL).status(**carried) == status


def test_a_source_with_many_wrong_tokens_has_to_wait_and_others_have_not() -> None:
    door = Door(WALL)

    wrong = [door.bearer("guess") for _ in range(12)]
    right = door.bearer(WALL.secret)
    elsewhere = door.bearer(WALL.secret, source="192.0.2.2")
    door.now += 7
    later = door.bearer(WALL.secret)

    assert wrong == [401] * 10 + [429] * 2
    assert (right, elsewhere, later) == (429, 200, 200)
    assert (door.counted("token"), door.counted("limited")) == (10, 3)


def test_wrong_tokens_from_one_ipv6_network_count_together() -> None:
    door = Door(WALL)

    wrong = [door.bearer("guess", source=f"2001:db8::{number}") for number in range(11)]

    assert wrong[-1] == 429
    assert door.bearer(WALL.secret, source="2001:db8:0:1::1") == 200
    wrong = [door.bearer("guess", source="::ffff:192.0.2.9") for _ in range(10)]
    assert (set(wrong), door.bearer(WALL.secret, source="192.0.2.9")) == ({401}, 429)


def test_a_stranger_who_guesses_writes_two_lines_into_the_log() -> None:
    door = Door(WALL)

    with capture_logs() as lines:
        for _ in range(30):
            door.bearer("guess")

    assert [(one["event"], one["source"]) for one in lines] == [
        ("access.wrong_token", "192.0.2.1"), ("access.limited", "192.0.2.1"),
    ]  # fmt: skip


def test_no_more_sources_are_remembered_than_there_is_room_for() -> None:
    door = Door(WALL)
    first, second = "192.0.2.1", "192.0.2.2"
    for source in (first, second):
        for _ in range(10):
            door.bearer("guess", source)

    for number in range(9_999):
        door.bearer("guess", str(ip_address("198.18.0.0") + number))

    assert door.bearer(WALL.secret, second) == 429
    assert door.bearer(WALL.secret, first) == 200


def test_who_may_come_again_is_told_when() -> None:
    door = Door(WALL)
    for _ in range(10):
        door.bearer("guess")

    with pytest.raises(Refused) as refused:
        door.gate.client("192.0.2.1", authorization="Bearer guess")

    assert refused.value.headers == {"Retry-After": "7"}
    door.now += 7
    with pytest.raises(Refused) as refused:
        door.gate.client("192.0.2.1", authorization="Bearer guess")
    assert refused.value.headers == {"WWW-Authenticate": 'Bearer realm="siprec-bridge"'}


def test_a_login_stands_for_its_token_until_it_expires_or_is_ended() -> None:
    door = Door(WALL)
    client = door.gate.by_token(WALL.secret, "192.0.2.1")
    first, second = (f"a=b; {COOKIE}={door.gate.log_in(client)}; odd{{}}=x" for _ in range(2))

    before = [door.status(cookie=first), door.status(cookie=second)]
    door.gate.log_out(door.gate.client("192.0.2.1", cookie=first))
    after = [door.status(cookie=first), door.status(cookie=second)]
    door.now += LOGIN_S

    assert (before, after) == ([200, 200], [401, 200])
    assert door.status(cookie=second) == 401


def test_whoever_listens_by_a_login_is_known_until_that_is_ended() -> None:
    door = Door(WALL)
    client = door.gate.by_token(WALL.secret, "192.0.2.1")
    cookies = [f"{COOKIE}={door.gate.log_in(client)}" for _ in range(2)]
    ended, other = (door.gate.client("192.0.2.1", cookie=one) for one in cookies)

    door.gate.log_out(ended)

    assert [door.gate.knows(one) for one in (ended, other, client)] == [False, True, True]
    door.now += LOGIN_S
    assert not door.gate.knows(other)


def test_a_stale_cookie_is_no_wrong_token() -> None:
    door = Door(WALL)

    stale = {door.status(cookie=f"{COOKIE}=stale") for _ in range(50)}

    assert stale == {401}
    assert door.bearer(WALL.secret) == 200


def test_a_ticket_lets_in_once_and_not_for_long() -> None:
    door = Door(WALL)
    client = door.gate.by_token(WALL.secret, "192.0.2.1")
    used, old = door.gate.ticket(client), door.gate.ticket(client)

    once, twice = door.status(ticket=used), door.status(ticket=used)
    door.now += TICKET_S

    assert (once, twice, door.status(ticket=old)) == (200, 401, 401)
    assert door.counted("ticket") == 2


@pytest.mark.parametrize(
    "after",
    [[], [ROOT], [Given(WALL.secret, WALL.line.replace("read,listen", "read"))]],
    ids=["none left", "another", "fewer scopes"],
)
def test_a_token_that_is_taken_away_ends_its_logins_and_tickets(after: list[Given]) -> None:
    door = Door(WALL)
    client = door.gate.by_token(WALL.secret, "192.0.2.1")
    cookie, ticket = f"{COOKIE}={door.gate.log_in(client)}", door.gate.ticket(client)

    door.gate.replace([one.token for one in after])

    assert not door.gate.knows(client)
    assert (door.status(cookie=cookie), door.status(ticket=ticket)) == (401, 401)
    assert door.status() == 401  # never open again, even with no token left


@pytest.mark.parametrize(
    ("origin", "host", "needed", "allowed"),
    [
        (None, "bridge:8080", False, True),
        (None, "bridge:8080", True, False),
        ("http://bridge:8080", "bridge:8080", True, True),
        ("https://BRIDGE", "bridge", True, True),
        ("http://bridge", "bridge:8080", True, False),
        ("http://evil.example.com", "bridge:8080", False, False),
        ("https://board.example.com", "bridge:8080", True, True),
        ("http://board.example.com", "bridge:8080", True, False),
        ("null", "bridge:8080", False, False),
        ("null", "", False, False),
        ("http://", "", False, False),
    ],
)
def test_browsers_send_requests_for_our_page_and_for_allowed_ones_only(
    origin: str | None, host: str, needed: bool, allowed: bool
) -> None:
    door = Door(WALL)

    refusal = contextlib.nullcontext() if allowed else pytest.raises(Refused, match="rigin")
    with refusal:
        door.gate.check_origin(origin, host, needed=needed)

    assert door.counted("origin") == (0 if allowed else 1)
