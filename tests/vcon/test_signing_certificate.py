"""`doctor` says until when vCons can be signed."""

from pathlib import Path

import pytest

from harness.certificates import Authority
from siprec_bridge.doctor import examine_vcon_signing
from siprec_bridge.settings import load


@pytest.mark.parametrize(
    ("days", "word", "good"), [(30, "ok", True), (5, "SOON", True), (-1, "BAD", False)]
)
def test_the_doctor_says_until_when_the_certificate_is_good(
    tmp_path: Path, days: int, word: str, good: bool
) -> None:
    certificate, key = Authority(tmp_path).sign("vcons", days=days)
    settings = load({"VCON_SIGN_CERT_PATH": str(certificate), "VCON_SIGN_KEY_PATH": str(key)})

    finding = examine_vcon_signing(settings)

    assert str(finding).startswith(word)
    assert finding.ok is good
    assert ("renew it" in finding.text) is (word != "ok")


def test_the_chain_is_looked_at_too(tmp_path: Path) -> None:
    own, other = Authority(tmp_path / "own"), Authority(tmp_path / "other")
    certificate, key = own.sign("vcons")
    intermediate, _ = other.sign("between", days=3)
    certificate.write_bytes(certificate.read_bytes() + intermediate.read_bytes())
    settings = load({"VCON_SIGN_CERT_PATH": str(certificate), "VCON_SIGN_KEY_PATH": str(key)})

    finding = examine_vcon_signing(settings)

    assert (finding.ok, finding.soon) == (True, True)


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.sign("vcons")
    _, key = authority.sign("others")
    settings = load({"VCON_SIGN_CERT_PATH": str(certificate), "VCON_SIGN_KEY_PATH": str(key)})

    finding = examine_vcon_signing(settings)

    assert not finding.ok
    assert "VCON_SIGN_KEY_PATH" in finding.text
