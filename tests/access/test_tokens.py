"""What an operator writes for a token, and which sessions its client may see."""

import json
import re

import pytest

from harness.tokens import given
from siprec_bridge.access import read_tokens

HASH = "sha256:" + "ab" * 32


def document(group: str | None = None, *people: str) -> str:
    return json.dumps(
        {"group_id": group, "participants": [{"id": one, "aor": one} for one in people]}
    )


def test_tokens_stand_on_lines_or_between_semicolons_with_comments() -> None:
    other = HASH.replace("ab", "cd")

    lines = read_tokens(f"# ours\nwall {HASH} read,listen # hall\n\nprom {other} metrics\n")
    joined = read_tokens(f"wall {HASH} read,listen; prom {other} metrics")

    assert lines == joined
    assert [one.name for one in lines] == ["wall", "prom"]
    assert lines[0].scopes == {"read", "listen"}
    assert lines[0].digest == b"\xab" * 32


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no token is named"),
        ("# only this", "no token is named"),
        (f"wall {HASH}", "NAME sha256:HASH SCOPE"),
        (f"w/all {HASH} read", "a token's name has"),
        ("wall plain-secret read", "wall: sha256: and 64 hexadecimal digits"),
        ("wall sha256:abcd read", "wall: sha256: and 64 hexadecimal digits"),
        (f"wall {HASH} read,write", "wall: write is no scope; there are: read, listen"),
        (f"wall {HASH} ,", "wall: a scope is needed"),
        (f"wall {HASH} read room=1", "wall: room=1: group=ID, participant=AOR"),
        (f"wall {HASH} read group=", "wall: group=: group=ID"),
        (f"wall {HASH} read peer=1.2.3", "write 192.0.2.10 or 198.51.100.0/24"),
        (
            f"wall {HASH} read\nwall {HASH.replace('ab', 'cd')} read",
            "two tokens have the same name",
        ),
        (f"wall {HASH} read\nhall {HASH} read", "two tokens are the same"),
    ],
)
def test_a_wrong_line_is_refused_with_its_reason_and_without_its_secret(
    text: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        read_tokens(text)

    assert "plain-secret" not in str(refusal.value)
    assert "abab" not in str(refusal.value)


@pytest.mark.parametrize(
    ("limits", "peer", "seen", "unseen"),
    [
        ("", "udp:192.0.2.1:5060", document(), None),
        ("group=g1", "", document("g1"), document("g2")),
        ("group=g1", "", document("g1"), document(None)),
        ("group=g1 group=g2", "", document("g2"), document("g3")),
        ("participant=sip:*@sales.example.com", "",
         document(None, "sip:a@x", "SIP:Bob@Sales.example.com"), document(None, "sip:a@x")),
        ("participant=tel:+49*", "", document(None, "tel:+49301234"), document(None, "tel:+33")),
        ("participant=sip:a.b@x", "", document(None, "sip:a.b@x"), document(None, "sip:aXb@x")),
        ("participant=sip:*@[2001:db8::1]", "",
         document(None, "sip:a@[2001:db8::1]"), document(None, "sip:a@[2001:db8::2]")),
        ("group=g1 participant=*@x", "", document("g1", "sip:a@x"), document("g1", "sip:a@y")),
        ("group=g1 participant=*@x", "", document("g1", "sip:a@x"), document("g2", "sip:a@x")),
    ],
)  # fmt: skip
def test_a_limited_token_sees_sessions_that_fit_each_kind_of_limit(
    limits: str, peer: str, seen: str, unseen: str | None
) -> None:
    view = given("a", "read", limits).token.view

    assert view.sees(peer, seen)
    assert unseen is None or not view.sees(peer, unseen)


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        ("udp:192.0.2.77:5060", True),
        ("tls:192.0.3.77:5060", False),
        ("tcp:2001:db8::7:5060", True),
        ("tcp:2001:db9::7:5060", False),
        ("tcp:::ffff:192.0.2.77:5060", True),
        ("capture", False),
    ],
)
def test_a_token_may_be_limited_to_what_certain_peers_recorded(peer: str, seen: bool) -> None:
    view = given("a", "read", "peer=192.0.2.0/24 peer=2001:db8::/64").token.view

    assert view.sees(peer, document()) == seen
