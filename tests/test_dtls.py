"""DTLS-SRTP handshakes without a network: both sides in memory, datagrams lost at will."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL, crypto

from harness.bridge import command
from siprec_bridge.dtls import Association, BadCertificate, Certificate, Client, Server
from siprec_bridge.rtp import SrtpReceiver, SrtpSender, build_packet
from siprec_bridge.sdp import Fingerprint, fingerprint_of

OURS, THEIRS = Certificate.make(), Certificate.make()
PEER = b"192.0.2.1 5000"
Lose = Callable[[int, bool], bool]  # number of a datagram, and whether the server sent it


def shaken(
    *,
    client: Certificate = THEIRS,
    server: Certificate = OURS,
    lose: Lose = lambda number, by_server: False,
) -> tuple[Association, Association | None]:
    """Both ends once nothing more is said, and no time-out can change that."""
    there, here = Client(client.pem), Server(server.pem)
    caller = there.greet([OURS.fingerprint])
    ours: Association | None = None
    to_server, number = caller.advance(), 0
    until = time.monotonic() + 10
    while time.monotonic() < until:
        to_client: list[bytes] = []
        for datagram in to_server:
            assert len(datagram) <= 1200
            number += 1
            if lose(number, False):
                continue
            if ours is None:
                ours, out = here.greet(datagram, PEER, [THEIRS.fingerprint])
            else:
                out = ours.receive(datagram)
            to_client += out
        to_client += ours.advance() if ours is not None else []
        to_server = []
        for datagram in to_client:
            number += 1
            if not lose(number, True):
                to_server += caller.receive(datagram)
        to_server += caller.advance()
        ended = [one is not None and (one.keys or one.failure) for one in (caller, ours)]
        if all(ended) and not to_server:
            break
        if not to_server:
            time.sleep(0.02)  # OpenSSL's clock is the real one
    return caller, ours


def test_both_ends_have_the_same_keys_and_each_its_own() -> None:
    caller, ours = shaken()

    assert ours is not None
    assert ours.keys is not None
    assert caller.keys is not None
    assert (caller.keys.suite, caller.keys.local, caller.keys.remote) == (
        "AEAD_AES_256_GCM", ours.keys.remote, ours.keys.local,
    )  # fmt: skip
    packet = build_packet(0, 1, 160, 7, bytes(160))
    sender = SrtpSender(caller.keys.suite, caller.keys.local)
    receiver = SrtpReceiver(ours.keys.suite, ours.keys.remote)
    assert receiver.unprotect(sender.protect(packet)) == packet
    for secret in (ours.keys.local, ours.keys.remote, OURS.pem):
        assert repr(secret)[2:-1] not in repr((ours.keys, OURS))


def test_a_certificate_that_only_openssl_can_read_is_held_against_the_sdp_like_others() -> None:
    der = load_pem_x509_certificate(THEIRS.pem).public_bytes(serialization.Encoding.DER)
    at = der.index(b"\xa0\x03\x02\x01\x02") + 4  # its version, of which there are three
    odd = der[:at] + b"\x07" + der[at + 1 :]

    def shake(*named: Fingerprint) -> Association:
        client, server = Client(THEIRS.pem), Server(OURS.pem)
        with pytest.warns(DeprecationWarning, match="X509"):  # the only way to such a one
            client._context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, odd))
        caller = client.greet([OURS.fingerprint])
        (hello,) = caller.advance()
        _, (again,) = server.greet(hello, PEER, named)
        (hello,) = caller.receive(again)
        ours, out = server.greet(hello, PEER, named)
        assert ours is not None
        while out:
            out = [
                one for two in out for three in caller.receive(two) for one in ours.receive(three)
            ]
        return ours

    assert shake(THEIRS.fingerprint).failure == "its certificate is not the one of the SDP"
    assert shake(fingerprint_of(odd)).keys is not None


@pytest.mark.parametrize("lost", [3, 4, 5, 6], ids=lambda number: f"datagram {number}")
def test_a_lost_datagram_is_sent_again(lost: int) -> None:
    caller, ours = shaken(lose=lambda number, by_server: number == lost)

    assert caller.keys is not None
    assert ours is not None
    assert ours.keys is not None


def test_another_certificate_than_the_one_named_gets_no_keys_on_either_side() -> None:
    stranger = Certificate.make()

    caller, ours = shaken(client=stranger)
    assert ours is not None
    assert (ours.keys, ours.failure) == (None, "its certificate is not the one of the SDP")
    assert caller.keys is None or caller.advance() is not None
    caller, ours = shaken(server=stranger)
    assert (caller.keys, caller.failure) == (None, "its certificate is not the one of the SDP")
    assert ours is None or ours.keys is None


def test_nothing_is_kept_of_a_client_that_has_not_shown_its_address() -> None:
    server, caller = Server(OURS.pem), Client(THEIRS.pem).greet([OURS.fingerprint])
    (hello,) = caller.advance()

    ours, (verify,) = server.greet(hello, PEER, [THEIRS.fingerprint])
    again = caller.receive(verify)
    assert ours is None
    assert len(verify) < len(hello)  # no help to who sends in another's name
    assert server.greet(again[0], b"192.0.2.66 5000", [THEIRS.fingerprint])[0] is None
    assert server.greet(again[0], PEER, [THEIRS.fingerprint])[0] is not None


def test_a_client_without_srtp_or_without_a_certificate_gets_no_keys() -> None:
    for certificate in (None, THEIRS):
        context = SSL.Context(SSL.DTLS_METHOD)
        if certificate is not None:
            context = _without_srtp(certificate)
        connection = SSL.Connection(context)
        connection.set_connect_state()
        server, ours, failed = Server(OURS.pem), None, False
        for _ in range(6):
            try:
                connection.do_handshake()
            except SSL.WantReadError:
                pass
            except SSL.Error:
                failed = True
            try:
                data = connection.bio_read(65536)
            except SSL.WantReadError:
                break
            out: list[bytes]
            if ours is None:
                ours, out = server.greet(data, PEER, [THEIRS.fingerprint])
            else:
                out = ours.receive(data)
            for datagram in out:
                connection.bio_write(datagram)
        assert ours is not None
        assert ours.keys is None
        assert failed or ours.failure == "no SRTP profile in common"


def _without_srtp(certificate: Certificate) -> SSL.Context:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    context = SSL.Context(SSL.DTLS_METHOD)
    context.use_privatekey(load_pem_private_key(certificate.pem, None))  # type: ignore[arg-type]
    context.use_certificate(x509.load_pem_x509_certificate(certificate.pem))
    return context


@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from([20, 21, 22, 23, 63]))
def test_no_octets_make_it_raise(rubbish: list[bytes], kind: int) -> None:
    _, ours = shaken()
    assert ours is not None
    for data in rubbish:
        for datagram in (data, bytes([kind]) + b"\xfe\xfd" + bytes(9) + data):
            Server(OURS.pem).greet(datagram, PEER, [THEIRS.fingerprint])
            ours.receive(datagram)
    assert ours.keys is not None


def test_a_certificate_is_read_with_the_key_that_it_belongs_to(tmp_path: Path) -> None:
    key, _, rest = OURS.pem.partition(b"-----BEGIN CERTIFICATE")
    certificate = b"-----BEGIN CERTIFICATE" + rest
    other = THEIRS.pem.partition(b"-----BEGIN CERTIFICATE")[0]

    assert Certificate.read(certificate, key).fingerprint == OURS.fingerprint
    assert OURS.fingerprint != fingerprint_of(certificate)  # of DER, not of PEM
    for wrong in ((certificate, other), (b"", key), (certificate, b"no key"), (key, certificate)):
        with pytest.raises(BadCertificate):
            Certificate.read(*wrong)


async def test_a_certificate_that_cannot_be_used_stops_the_start_with_its_settings_named(
    tmp_path: Path,
) -> None:
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    ours.write_bytes(OURS.pem)
    theirs.write_bytes(THEIRS.pem)

    code, out, err = await command(
        "serve", data=tmp_path, DTLS_CERT_PATH=str(ours), DTLS_KEY_PATH=str(theirs)
    )
    alone, _, why = await command("serve", data=tmp_path, DTLS_CERT_PATH=str(ours))

    assert (code, alone) == (2, 2)
    assert f"DTLS_CERT_PATH={ours}, DTLS_KEY_PATH={theirs}: key values mismatch" in out + err
    assert "DTLS_CERT_PATH and DTLS_KEY_PATH go together" in why
