"""DTLS-SRTP: a handshake, and the SRTP keys that come out of it. RFC 5764, RFC 6347.

Datagrams in, datagrams out; the sockets are elsewhere. OpenSSL keeps its own time and says by
`advance` what has to be sent again. To be imported where an offer asks for it, and not before: it
costs a tenth of a second.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL, crypto

from siprec_bridge.rtp import available_suites
from siprec_bridge.sdp import Fingerprint, StreamKeys, fingerprint_of, matches

# Master key and salt in octets, and what TLS calls the suite. RFC 5764 §4.1.2, RFC 7714 §14.2;
# the strongest first.
_PROFILES = {
    "AEAD_AES_256_GCM": (32, 12, "SRTP_AEAD_AES_256_GCM"),
    "AEAD_AES_128_GCM": (16, 12, "SRTP_AEAD_AES_128_GCM"),
    "AES_CM_128_HMAC_SHA1_80": (16, 14, "SRTP_AES128_CM_SHA1_80"),
    "AES_CM_128_HMAC_SHA1_32": (16, 14, "SRTP_AES128_CM_SHA1_32"),
}
_DTLS_1_2 = 0xFEFD
_MTU = 1200  # octets of a datagram: what every path has room for
_HEADER = 13  # of a record
_LIFE = timedelta(days=3650)


class BadCertificate(Exception):
    """A certificate or its key cannot be used."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Ours. `pem` is the key and then the certificate."""

    pem: bytes = field(repr=False)
    fingerprint: Fingerprint

    @classmethod
    def make(cls) -> "Certificate":
        """One that nobody has signed but itself: its fingerprint is what counts."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "siprec-bridge")])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))  # clocks differ
            .not_valid_after(now + _LIFE)
            .sign(key, hashes.SHA256())
        )
        return cls._of(made, key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> "Certificate":
        """From PEM; of several in a file the first counts. Raises BadCertificate."""
        try:
            found = cls._of(
                x509.load_pem_x509_certificate(certificate),
                serialization.load_pem_private_key(key, None),
            )
            _context(found.pem, server=True)
        except (ValueError, TypeError, SSL.Error, crypto.Error) as error:
            raise BadCertificate(_cause(error)) from error
        return found

    @classmethod
    def _of(cls, certificate: x509.Certificate, key: PrivateKeyTypes) -> "Certificate":
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        pem += certificate.public_bytes(serialization.Encoding.PEM)
        return cls(pem, fingerprint_of(certificate.public_bytes(serialization.Encoding.DER)))


@dataclass(eq=False, slots=True)
class _Peer:
    """What OpenSSL's callbacks find of a connection: whose it is, and its association."""

    name: bytes
    association: "Association | None" = None


class Association:
    """One handshake with one peer. `keys` once it is done; `failure` says why it never will be."""

    def __init__(
        self,
        connection: SSL.Connection,
        peer: _Peer,
        fingerprints: Iterable[Fingerprint],
        *,
        server: bool,
    ) -> None:
        self._connection = connection
        self._fingerprints = tuple(fingerprints)
        self._server = server
        self._is_theirs = False  # the certificate is the one of the SDP
        self.keys: StreamKeys | None = None
        self.failure: str | None = None
        peer.association = self

    def receive(self, datagram: bytes) -> list[bytes]:
        """Take a datagram; returns what is to be sent."""
        if self.failure is None and datagram:
            self._connection.bio_write(datagram)
        return self.advance()

    def advance(self) -> list[bytes]:
        """Go on, and send again what is overdue; returns what is to be sent."""
        if self.failure is None:
            try:
                self._connection.DTLSv1_handle_timeout()
                if self.keys is None:
                    self._connection.do_handshake()
                    self.keys = self._export()
                else:  # a flight of the peer's that came again is answered again
                    self._connection.recv(_MTU)
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                if self.keys is None:
                    self.failure = self.failure or _cause(error)
        return _datagrams(self._connection)

    def takes(self, certificate: crypto.X509) -> bool:
        """Whether the peer's certificate is the one that its SDP names."""
        # As it came: what OpenSSL takes need not be a certificate to stricter readers.
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        self._is_theirs = matches(der, self._fingerprints)
        if not self._is_theirs:
            self.failure = "its certificate is not the one of the SDP"
        return self._is_theirs

    def _export(self) -> StreamKeys | None:
        """RFC 5764 §4.2: keys of client and server, then their salts."""
        name = self._connection.get_selected_srtp_profile().decode()
        suite = next((one for one, (_, _, tls) in _PROFILES.items() if tls == name), None)
        if suite is None or not self._is_theirs:
            self.failure = "no SRTP profile in common" if suite is None else "no certificate"
            return None
        key, salt, _ = _PROFILES[suite]
        exported = self._connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
        client = exported[:key] + exported[2 * key : 2 * key + salt]
        server = exported[key : 2 * key] + exported[2 * key + salt :]
        remote, local = (client, server) if self._server else (server, client)
        return StreamKeys(suite, remote, local)


class Server:
    """Answers first messages, and remembers nothing of a peer until it has shown its address.

    `certificate` is the PEM of a `Certificate`.
    """

    def __init__(self, certificate: bytes) -> None:
        self._context = _context(certificate, server=True)

    def greet(
        self, datagram: bytes, peer: bytes, fingerprints: Iterable[Fingerprint]
    ) -> tuple[Association | None, list[bytes]]:
        """Take a ClientHello of a peer, whose name is any octets.

        Returns what is to be sent, and an association once the cookie has come back. RFC 6347 §4.2.1
        """
        known = _Peer(peer)
        connection = _connection(self._context, known)
        connection.set_accept_state()
        try:
            connection.bio_write(datagram)
            connection.DTLSv1_listen()
        except SSL.Error:  # asks for the cookie, or it is no ClientHello
            return None, _datagrams(connection)
        association = Association(connection, known, fingerprints, server=True)
        return association, association.advance()


class Client:
    """The other side, for callers. `certificate` is the PEM of a `Certificate`."""

    def __init__(self, certificate: bytes) -> None:
        self._context = _context(certificate, server=False)

    def greet(self, fingerprints: Iterable[Fingerprint]) -> Association:
        """An association whose first `advance` has the ClientHello."""
        known = _Peer(b"")
        connection = _connection(self._context, known)
        connection.set_connect_state()
        return Association(connection, known, fingerprints, server=False)


def greeting_of(datagram: bytes) -> bytes | None:
    """The client's random octets, when it is a ClientHello; a client that begins anew has others."""
    is_hello = datagram[0] == 22 and datagram[_HEADER : _HEADER + 1] == b"\x01"
    return datagram[27:59] if is_hello else None


def is_first(datagram: bytes) -> bool:
    """Whether a ClientHello is its handshake's first message, which has no cookie yet."""
    return datagram[17:19] == b"\0\0"


def _connection(context: SSL.Context, peer: _Peer) -> SSL.Connection:
    connection = SSL.Connection(context)
    connection.set_app_data(peer)
    connection.set_ciphertext_mtu(_MTU)
    return connection


def _context(pem: bytes, *, server: bool) -> SSL.Context:
    context = SSL.Context(SSL.DTLS_METHOD)
    context.set_min_proto_version(_DTLS_1_2)  # RFC 8842 §5.1, RFC 8827 §6.5
    context.use_certificate(x509.load_pem_x509_certificate(pem))
    context.use_privatekey(serialization.load_pem_private_key(pem, None))  # type: ignore[arg-type]
    context.check_privatekey()
    suites = [one for one in _PROFILES if one in available_suites()]
    context.set_tlsext_use_srtp(":".join(_PROFILES[one][2] for one in suites).encode())
    context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
    if server:
        secret = secrets.token_bytes(32)

        def cookie(connection: SSL.Connection) -> bytes:
            return hmac.digest(secret, connection.get_app_data().name, "sha256")

        context.set_cookie_generate_callback(cookie)
        context.set_cookie_verify_callback(
            lambda connection, one: hmac.compare_digest(one, cookie(connection))
        )
    return context


def _verify(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    """Who signed it says nothing: the fingerprint does. RFC 5763 §5."""
    association: Association | None = connection.get_app_data().association
    return depth > 0 or (association is not None and association.takes(certificate))


def _datagrams(connection: SSL.Connection) -> list[bytes]:
    """What OpenSSL wants to send: whole records, as many in a datagram as there is room for.

    Its memory does not keep the bounds of what was written.
    """
    out = b""
    while True:
        try:
            out += connection.bio_read(1 << 16)
        except SSL.WantReadError:
            break
    found: list[bytes] = []
    while out:
        size = _HEADER + int.from_bytes(out[11:_HEADER])
        record, out = out[:size], out[size:]
        if found and len(found[-1]) + len(record) <= _MTU:
            found[-1] += record
        else:
            found.append(record)
    return found


def _cause(error: Exception) -> str:
    """OpenSSL's reasons are a list of triples, the last of which says what happened."""
    match error.args:
        case ([*_, (_, _, str(reason))],) if reason:
            return reason
        case _:
            return str(error) or type(error).__name__
