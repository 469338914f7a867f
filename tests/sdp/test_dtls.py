"""Fingerprints, roles and names of associations in SDP, and what is answered to them."""

import hashlib

import pytest

from siprec_bridge.sdp import (
    DtlsParameters,
    Fingerprint,
    MediaPolicy,
    StreamPlan,
    answer,
    fingerprint_of,
    matches,
    parse,
    plan,
    read_dtls,
    write_crypto,
)

THEIRS, OTHER = b"a certificate", b"another one"
OURS = fingerprint_of(b"ours")
SHA256 = str(fingerprint_of(THEIRS))
TLS_ID = "abc3de65cddef001be82"
POLICY = MediaPolicy(dtls=True)
CRYPTO = f"a=crypto:{write_crypto('1', 'AES_CM_128_HMAC_SHA1_80', bytes(30))}\r\n"


def offered(
    *lines: str, protocol: str = "UDP/TLS/RTP/SAVP", policy: MediaPolicy = POLICY, head: str = ""
) -> StreamPlan:
    text = (
        f"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n{head}"
        f"m=audio 5000 {protocol} 0\r\na=label:1\r\na=sendonly\r\n"
    )
    (one,) = plan(parse((text + "".join(f"a={line}\r\n" for line in lines)).encode()), policy)
    return one


@pytest.mark.parametrize("function", ["sha-1", "sha-224", "sha-256", "sha-384", "sha-512"])
def test_a_certificate_is_known_by_any_hash_function_that_may_be_used(function: str) -> None:
    text = str(fingerprint_of(THEIRS, function))
    found = read_dtls([("fingerprint", text.replace(function, function.upper()))], ())

    assert isinstance(found, DtlsParameters)
    assert text.count(":") == hashlib.new(function.replace("-", "")).digest_size - 1
    assert matches(THEIRS, found.fingerprints)
    assert not matches(OTHER, found.fingerprints)


def test_the_strongest_function_counts_and_any_certificate_named_by_it() -> None:
    strong = [fingerprint_of(THEIRS, "sha-512"), fingerprint_of(b"a third", "sha-512")]

    assert matches(THEIRS, [fingerprint_of(OTHER), *strong])
    assert not matches(OTHER, [fingerprint_of(OTHER), *strong])
    assert not matches(THEIRS, [])


@pytest.mark.parametrize(
    "text", ["md5 " + ":".join(["00"] * 16), "sha-256 00:11", "sha-256", "", "sha-256 " + "0" * 64]
)
def test_a_fingerprint_that_cannot_be_used_refuses_the_line(text: str) -> None:
    refused = offered(f"fingerprint:{text}", "setup:actpass")

    assert not refused.accepted
    assert refused.reason == "no fingerprint by a hash function that is supported"


@pytest.mark.parametrize("protocol", ["UDP/TLS/RTP/SAVP", "UDP/TLS/RTP/SAVPF", "RTP/SAVP"])
@pytest.mark.parametrize("setup", ["setup:actpass", "setup:active", "x-nothing"])
def test_we_are_passive_and_tell_our_fingerprint(protocol: str, setup: str) -> None:
    one = offered(f"fingerprint:{SHA256}", setup, "rtcp-mux", protocol=protocol)
    text = f"v=0\r\nm=audio 5000 {protocol} 0\r\na=rtcp-mux\r\n"
    ours = answer(
        parse(text.encode()), [one], {0: 7000}, fingerprint=OURS, address="192.0.2.9",
        session_id=1, version=1,
    ).media[0]  # fmt: skip

    assert one.dtls == DtlsParameters((fingerprint_of(THEIRS),))
    assert (ours.protocol, ours.port, ours.rtcp_mux) == (protocol, 7000, True)
    assert ours.attribute("setup") == "passive"
    assert ours.attribute("fingerprint") == str(OURS)
    assert ours.attribute("tls-id") is None
    assert ours.crypto_lines == ()


@pytest.mark.parametrize("setup", ["passive", "holdconn"])
def test_who_cannot_begin_is_refused(setup: str) -> None:
    refused = offered(f"fingerprint:{SHA256}", f"setup:{setup}")

    assert refused.reason == "of DTLS, only setup:active and setup:actpass are supported"
    assert refused.warn_code == 302


def test_what_stands_at_the_session_holds_for_lines_that_say_nothing() -> None:
    head = f"a=fingerprint:{SHA256}\r\na=setup:actpass\r\na=tls-id:{TLS_ID}\r\n"
    other = fingerprint_of(OTHER)

    shared, own = offered(head=head), offered(f"fingerprint:{other}", head=head)
    assert shared.dtls == DtlsParameters((fingerprint_of(THEIRS),), TLS_ID)
    assert own.dtls == DtlsParameters((other,), TLS_ID)


def test_keys_in_the_sdp_come_first_unless_they_may_not_be_used() -> None:
    lines = (CRYPTO[2:].strip(), f"fingerprint:{SHA256}", "setup:actpass")
    strict = MediaPolicy(dtls=True, sdes_only_over_tls=True)

    assert offered(*lines, protocol="RTP/SAVP").crypto is not None
    assert offered(*lines, protocol="RTP/SAVP", policy=strict).dtls is not None
    assert offered(*lines).crypto is None  # the profile says DTLS
    assert offered(*lines[1:], protocol="RTP/AVP").dtls is not None  # RFC 8643
    assert offered(*lines[1:2], "setup:passive", protocol="RTP/AVP").accepted


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (MediaPolicy(), "DTLS-SRTP is refused"),
        (MediaPolicy(dtls=True, srtp="refuse"), "SRTP is refused"),
    ],
)
def test_by_policy_it_is_refused(policy: MediaPolicy, reason: str) -> None:
    assert offered(f"fingerprint:{SHA256}", policy=policy).reason == reason


def test_without_any_fingerprint_there_is_nothing_to_check() -> None:
    assert offered("setup:actpass").reason == "no fingerprint of a certificate"
    assert offered(protocol="RTP/AVP", policy=MediaPolicy(dtls=True, srtp="require")).reason == (
        "SRTP is required"
    )


def test_a_fingerprint_reads_as_it_is_written() -> None:
    one = Fingerprint("sha-1", bytes(range(20)))

    assert str(one).startswith("sha-1 00:01:02")
    assert read_dtls([("fingerprint", str(one))], ()) == DtlsParameters((one,))
