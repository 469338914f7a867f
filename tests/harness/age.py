"""Keys of age."""

from pathlib import Path

from pyrage import x25519

from siprec_bridge.vault import Recipients


def secret_key(folder: Path, name: str = "key.txt") -> Path:
    """A new secret key, as age-keygen writes it."""
    file = folder / name
    file.write_text(str(x25519.Identity.generate()))
    return file


def recipients_of(key: Path) -> Recipients:
    """Whoever has this secret key."""
    return Recipients((str(x25519.Identity.from_str(key.read_text()).to_public()),))
