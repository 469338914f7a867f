"""Keys in session descriptions: which line is taken, what is answered, what is never shown."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.rtp import available_suites
from siprec_bridge.sdp import (
    SUITES,
    Crypto,
    Media,
    MediaPolicy,
    answer,
    parse,
    plan,
    read_crypto,
    write_crypto,
)

CM80, CM32 = "AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32"
KEY = bytes(range(30))
KEY_TEXT = base64.b64encode(KEY).decode()
OURS = bytes(range(100, 130))


def offer(*lines: str, protocol: str = "RTP/SAVP") -> str:
    head = f"v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nt=0 0\r\nm=audio 5000 {protocol} 0\r\n"
    return head + "c=IN IP4 192.0.2.9\r\na=label:1\r\n" + "".join(f"a={one}\r\n" for one in lines)


def crypto(tag: int, suite: str = CM80, rest: str = "") -> str:
    key = base64.b64encode(bytes(range(SUITES.get(suite, 30)))).decode()
    return f"crypto:{tag} {suite} inline:{key}{rest}"


def answered(text: str, policy: MediaPolicy | None = None, *, over_tls: bool = False) -> Media:
    offered = parse(text.encode())
    plans = plan(offered, policy or MediaPolicy(), over_tls=over_tls)
    keys = {one.index: OURS for one in plans if one.crypto is not None}
    return answer(
        offered, plans, {0: 20000}, keys, address="192.0.2.1", session_id=1, version=1
    ).media[0]


def refusal(text: str, policy: MediaPolicy | None = None, *, over_tls: bool = False) -> str:
    (one,) = plan(parse(text.encode()), policy or MediaPolicy(), over_tls=over_tls)
    assert answered(text, policy, over_tls=over_tls).port == 0
    return one.reason


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_is_answered_with_its_tag_and_a_key_of_our_own(suite: str) -> None:
    line = answered(offer(crypto(7, suite)))

    assert (line.port, line.protocol) == (20000, "RTP/SAVP")
    assert line.crypto_lines == (f"7 {suite} inline:{base64.b64encode(OURS).decode()}",)


def test_this_build_of_libsrtp_can_do_every_suite_that_is_read() -> None:
    assert set(available_suites()) == set(SUITES)


def test_the_first_line_that_can_be_done_is_taken_and_only_that() -> None:
    text = offer(
        crypto(1, "F8_128_HMAC_SHA1_80"),
        crypto(2, "AES_256_CM_HMAC_SHA1_80"),
        crypto(3, CM32),
        crypto(4, CM80),
    )

    (line,) = answered(text).crypto_lines

    assert line.startswith(f"3 {CM32} ")


def test_a_suite_that_the_policy_leaves_out_is_not_taken_though_we_could() -> None:
    policy = MediaPolicy(suites=(CM80,))

    (line,) = answered(offer(crypto(1, CM32), crypto(2, CM80)), policy).crypto_lines

    assert line.startswith(f"2 {CM80} ")
    assert refusal(offer(crypto(1, CM32)), policy) == f"crypto suite {CM32} is not supported"


@pytest.mark.parametrize("rest", ["|2^20", "|1000000", "|2^31|1:4", "|5:1", " WSH=64", " -X=1"])
def test_lifetime_mki_and_what_may_be_ignored_do_no_harm(rest: str) -> None:
    assert answered(offer(crypto(1, rest=rest))).port == 20000


@pytest.mark.parametrize(
    ("rest", "octets"), [("|2^20|1:4", 4), ("|1:128", 128), ("|2^20", 0), ("", 0)]
)
def test_the_mki_s_length_is_kept_for_the_packets(rest: str, octets: int) -> None:
    found = read_crypto(f"1 {CM80} inline:{KEY_TEXT}{rest}")

    assert isinstance(found, Crypto)
    assert (found.key, found.mki_length) == (KEY, octets)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no crypto line"),
        ([crypto(1, "F8_128_HMAC_SHA1_80")], "crypto suite F8_128_HMAC_SHA1_80 is not supported"),
        ([crypto(1, rest=" UNENCRYPTED_SRTP")],
         "crypto session parameter UNENCRYPTED_SRTP is not supported"),
        ([crypto(1, rest=" UNENCRYPTED_SRTCP")],
         "crypto session parameter UNENCRYPTED_SRTCP is not supported"),
        ([crypto(1, rest=" UNAUTHENTICATED_SRTP")],
         "crypto session parameter UNAUTHENTICATED_SRTP is not supported"),
        ([crypto(1, rest=" KDR=1")], "crypto session parameter KDR is not supported"),
        ([crypto(1, rest=" FEC_ORDER=FEC_SRTP")],
         "crypto session parameter FEC_ORDER is not supported"),
        ([crypto(1, rest=";inline:AAAA")], "several keys in one crypto line are not supported"),
        ([crypto(1, rest="|1:129")], "a crypto line whose MKI cannot be read"),
        ([crypto(1, rest="|٣:4")], "a crypto line whose MKI cannot be read"),
        ([crypto(1, rest="|soon")], "a crypto line whose lifetime cannot be read"),
        ([crypto(1, rest="|2^20|2^20")], "a crypto line whose lifetime cannot be read"),
        ([f"crypto:1 {CM80} inline:AAAA"], "a crypto line whose key is not of 30 octets"),
        ([f"crypto:1 {CM80} inline:?"], "a crypto line whose key cannot be read"),
        ([f"crypto:1 {CM80} base:{KEY_TEXT}"], "a crypto line without an inline key"),
        ([f"crypto:x {CM80} inline:{KEY_TEXT}"], "a crypto line without a tag"),
        (["crypto:"], "a crypto line without a tag"),
    ],
)  # fmt: skip
def test_a_secure_line_without_a_usable_key_is_refused_with_the_reason(
    lines: list[str], reason: str
) -> None:
    assert refusal(offer(*lines)) == reason


def test_the_policy_can_require_or_refuse_srtp() -> None:
    secure, plain = offer(crypto(1)), offer(protocol="RTP/AVP")
    require, refuse = MediaPolicy(srtp="require"), MediaPolicy(srtp="refuse")

    assert refusal(plain, require) == "SRTP is required"
    assert refusal(secure, refuse) == "SRTP is refused"
    assert answered(secure, require).port == answered(plain, refuse).port == 20000


def test_keys_may_have_to_come_over_tls() -> None:
    policy = MediaPolicy(sdes_only_over_tls=True)

    assert refusal(offer(crypto(1)), policy) == "SRTP keys are taken over TLS only"
    assert answered(offer(crypto(1)), policy, over_tls=True).port == 20000
    assert answered(offer(protocol="RTP/AVP"), policy).port == 20000


def test_keys_under_a_plain_profile_are_taken_and_bad_ones_refused() -> None:
    taken = answered(offer(crypto(1), protocol="RTP/AVP"))
    policy = MediaPolicy(srtp="refuse")

    assert (taken.protocol, len(taken.crypto_lines)) == ("RTP/AVP", 1)
    assert answered(offer(crypto(1), protocol="RTP/AVP"), policy).crypto_lines == ()


def test_no_repr_shows_a_key() -> None:
    description = parse(offer(crypto(1)).encode())
    (one,) = plan(description, MediaPolicy())
    ours = answered(offer(crypto(1)))
    shown = repr((description, one, ours, write_crypto("1", CM80, KEY)))

    for secret in (KEY, OURS):
        assert base64.b64encode(secret).decode() not in shown
        assert repr(secret)[2:-1] not in shown
    assert KEY_TEXT in description.write().decode()


@given(st.text(max_size=80))
def test_any_text_is_a_crypto_line_or_a_reason_without_its_key(text: str) -> None:
    for value in (text, f"1 {CM80} {text}", f"1 {CM80} inline:{KEY_TEXT}{text}"):
        found = read_crypto(value)
        assert isinstance(found, Crypto) or (found and KEY_TEXT not in found)
