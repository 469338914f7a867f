"""The signed form of a container: a JWS over its octets, whatever they are, a piece at a time.

General JSON serialization, RFC 7515 §7.2.1; draft-ietf-vcon-vcon-core, "Signed Form of vCon Object". The algorithm is in the
protected header, the certificates and the container's uuid in the other one: RFC 7515 has no name in both.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from siprec_bridge.vcon.container import Vcon
from siprec_bridge.vcon.written import base64url, pieces

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_SMALLEST_RSA = 2048  # bits; RFC 7518 §3.3


@dataclass(frozen=True)
class Signer:
    """Signs with the key of the first certificate of a chain (`x5c`, each DER in base64)."""

    alg: Literal["RS256", "ES256"]
    x5c: tuple[str, ...]
    key: "RSAPrivateKey | EllipticCurvePrivateKey"

    @classmethod
    def read(cls, chain: bytes, key: bytes) -> "Signer":
        """PEM of certificates, ours first, and of our private key. Raises ValueError."""
        # Only now: a bridge that signs nothing does not load it.
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        certificates = x509.load_pem_x509_certificates(chain)
        try:
            private = serialization.load_pem_private_key(key, None)
        except (TypeError, UnsupportedAlgorithm) as error:  # it has a passphrase, or an odd curve
            raise ValueError(str(error)) from error
        alg: Literal["RS256", "ES256"]
        if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= _SMALLEST_RSA:
            alg = "RS256"
        elif isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp256r1":
            alg = "ES256"
        else:
            raise ValueError("an RSA key of 2048 bits or more is needed, or one of curve P-256")
        if certificates[0].public_key() != private.public_key():
            raise ValueError("the key is not that of the first certificate")
        der = [one.public_bytes(serialization.Encoding.DER) for one in certificates]
        return cls(alg, tuple(base64.b64encode(one).decode() for one in der), private)

    @property
    def validity(self) -> tuple[datetime, datetime]:
        """From when until when all certificates of the chain are valid, in UTC."""
        from cryptography import x509

        chain = [x509.load_der_x509_certificate(base64.b64decode(one)) for one in self.x5c]
        return (
            max(one.not_valid_before_utc for one in chain),
            min(one.not_valid_after_utc for one in chain),
        )

    def pieces(self, uuid: str, payload: Iterable[bytes]) -> Iterator[bytes]:
        """The JSON text, UTF-8, of this payload signed; it is read once."""
        protected = b"".join(base64url([json.dumps({"alg": self.alg}).encode()]))
        digest = hashlib.sha256(protected + b".")
        yield b'{"payload": "'
        for piece in base64url(payload):
            digest.update(piece)
            yield piece
        signature = {
            "protected": protected.decode(),
            "header": {"x5c": self.x5c, "uuid": uuid},
            "signature": b"".join(base64url([self._signature(digest.digest())])).decode(),
        }
        yield b'", "signatures": [' + json.dumps(signature).encode() + b"]}"

    def signed(self, vcon: Vcon) -> dict[str, Any]:
        """A container without inline files, for `json.dumps`."""
        made: dict[str, Any] = json.loads(b"".join(self.pieces(vcon.uuid, pieces(vcon))))
        return made

    def _signature(self, sha256: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

        done = utils.Prehashed(hashes.SHA256())
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(sha256, padding.PKCS1v15(), done)
        both = utils.decode_dss_signature(self.key.sign(sha256, ec.ECDSA(done)))
        return b"".join(one.to_bytes(32, "big") for one in both)  # RFC 7518 §3.4
