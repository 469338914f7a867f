"""Signed containers, verified by another library than the one that has signed them."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey, RSAKey
from joserfc.registry import HeaderParameter

from harness.vcons import self_signed
from siprec_bridge.vcon import Signer

UUID = "0199ded0-8a0f-87c2-b9a2-279e0d16bc46"
RSA = ("rsa:2048",)
P256 = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def readers(alg: str) -> jws.JWSRegistry:
    """Of one algorithm and the draft's header; of itself the library takes no more than 128 kB."""
    registry = jws.JWSRegistry(
        header_registry={"uuid": HeaderParameter("UUID of the signed object", "str")},
        algorithms=[alg],
    )
    registry.max_payload_length = 1_000_000
    return registry


def key_of(signed: dict[str, Any], kind: type[RSAKey] | type[ECKey]) -> RSAKey | ECKey:
    """What is in the certificate that came along."""
    (one,) = signed["signatures"]
    der = base64.b64decode(one["header"]["x5c"][0])
    text = subprocess.run(
        ["openssl", "x509", "-inform", "der", "-pubkey", "-noout"],
        input=der, check=True, capture_output=True,
    ).stdout  # fmt: skip
    return kind.import_key(text)


@pytest.mark.parametrize(
    ("kind", "alg", "key"), [(RSA, "RS256", RSAKey), (P256, "ES256", ECKey)], ids=["RSA", "P-256"]
)
def test_what_is_signed_a_piece_at_a_time_is_verified_as_a_whole(
    tmp_path: Path, kind: tuple[str, ...], alg: str, key: type[RSAKey] | type[ECKey]
) -> None:
    signer = Signer.read(*self_signed(tmp_path, *kind))
    payload = [b'{"uuid": "', UUID.encode(), b'", "subject": "', b"x" * 100_001, b'"}']

    text = b"".join(signer.pieces(UUID, payload))

    signed = json.loads(text)
    found = jws.deserialize_json(signed, key_of(signed, key), registry=readers(alg))
    assert found.payload == b"".join(payload)
    (one,) = signed["signatures"]
    protected = json.loads(base64.urlsafe_b64decode(one["protected"] + "=="))
    assert protected == {"alg": alg}
    assert set(one["header"]) == {"x5c", "uuid"}
    assert one["header"]["uuid"] == UUID
    signed["payload"] = ("B" if signed["payload"][0] != "B" else "C") + signed["payload"][1:]
    with pytest.raises(BadSignatureError):
        jws.deserialize_json(signed, key_of(signed, key), registry=readers(alg))


def test_a_chain_comes_along_with_ours_first(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, *P256)
    other, _ = self_signed(tmp_path, *P256)

    signer = Signer.read(certificate + other, key)

    assert len(signer.x5c) == 2
    with pytest.raises(ValueError, match="not that of the first certificate"):
        Signer.read(other + certificate, key)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (("rsa:1024",), "2048 bits or more"),
        (("ec", "-pkeyopt", "ec_paramgen_curve:P-384"), "of curve P-256"),
        (("ed25519",), "of curve P-256"),
        (("ec", "-pkeyopt", "ec_paramgen_curve:sect163k1"), "is not supported"),
    ],
)
def test_a_key_that_readers_may_not_know_is_refused(
    tmp_path: Path, kind: tuple[str, ...], cause: str
) -> None:
    certificate, key = self_signed(tmp_path, *kind)

    with pytest.raises(ValueError, match=cause):
        Signer.read(certificate, key)


@pytest.mark.parametrize("wrong", ["certificate", "key", "passphrase"])
def test_files_that_are_none_are_refused(tmp_path: Path, wrong: str) -> None:
    chain, private = self_signed(tmp_path, *RSA)
    if wrong == "passphrase":
        private = subprocess.run(
            ["openssl", "pkcs8", "-topk8", "-passout", "pass:x"],
            input=private, check=True, capture_output=True,
        ).stdout  # fmt: skip

    with pytest.raises(ValueError, match=r"\w"):
        Signer.read(
            b"none" if wrong == "certificate" else chain, b"none" if wrong == "key" else private
        )
