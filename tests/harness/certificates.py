"""Certificates for tests, made with openssl: a CA of our own, and what it signs."""

import subprocess
from pathlib import Path


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder; `ca` is its certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", 60, "-subj", "/CN=test CA", "-keyout", self._key, "-out", self.ca,
        )  # fmt: skip

    def sign(
        self, name: str, *, serial: int = 1, days: int = 30, san: str | None = None
    ) -> tuple[Path, Path]:
        """A certificate for `name` and 127.0.0.1 (or `san`; empty: none at all), and its key."""
        base = self._folder / f"{name}-{serial}"
        key, request, certificate = (
            base.with_suffix(suffix) for suffix in (".key", ".csr", ".pem")
        )
        extensions = base.with_suffix(".ext")
        wanted = f"DNS:{name},IP:127.0.0.1" if san is None else san
        extensions.write_text(f"subjectAltName={wanted}\n" if wanted else "")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-days", days,
            "-set_serial", serial, "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return certificate, key
