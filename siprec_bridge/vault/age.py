"""Files encrypted to public keys, as age does it (age-encryption.org/v1).

Who encrypts needs no secret, so who only encrypts cannot read what was written. Constant memory.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from siprec_bridge.vault.objects import Interrupted

if TYPE_CHECKING:
    import threading

SUFFIX = ".age"


class LockedError(Exception):
    """None of the identities opens the file, or it is no whole age file."""


@dataclass(frozen=True, slots=True)
class Recipients:
    """Whose keys open what is written: `age1…`, or `ssh-ed25519 …` and `ssh-rsa …`."""

    keys: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "Recipients":
        """Keys, a line each or by commas; lines with # are comments. Raises ValueError."""
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        keys = [key.strip() for line in lines for key in line.split(",") if key.strip()]
        for key in keys:
            if key.upper().startswith("AGE-SECRET-KEY-"):
                raise ValueError("a secret key has no place here: give its public key, age1…")
            _recipient(key)
        if not keys:
            raise ValueError("names no key")
        return cls(tuple(keys))


class Identities:
    """Secret keys: of `age-keygen`, or an OpenSSH private key without a passphrase."""

    def __init__(self, file: Path) -> None:
        """Raises OSError, ValueError."""
        from pyrage import IdentityError, ssh, x25519

        data = file.read_bytes()
        try:
            if b"PRIVATE KEY-----" in data:
                self._keys: list[Any] = [ssh.Identity.from_buffer(data)]
            else:
                lines = [line.strip() for line in data.decode().splitlines()]
                self._keys = [
                    x25519.Identity.from_str(line)
                    for line in lines
                    if line and not line.startswith("#")
                ]
        except (IdentityError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: no key of age or OpenSSH: {error}") from error
        if not self._keys:
            raise ValueError(f"{file}: holds no key")

    @property
    def keys(self) -> list[Any]:
        """As pyrage takes them."""
        return self._keys


@dataclass(frozen=True, slots=True)
class Passed:
    """What went through: octets and SHA-256 on either side."""

    plain_size: int
    plain_sha256: str
    cipher_size: int
    cipher_sha256: str


def encrypt_file(
    source: Path, target: Path, recipients: Recipients, stop: "threading.Event | None" = None
) -> Passed:
    """Write `target`, whole and durable or not at all. Raises OSError, Interrupted."""
    with source.open("rb") as file:
        return _encrypt(file, target, recipients, stop)


def encrypt_bytes(data: bytes, target: Path, recipients: Recipients) -> Passed:
    """As `encrypt_file`, of what is on no disk in the clear. Raises OSError."""
    return _encrypt(io.BytesIO(data), target, recipients, None)


def decrypt_file(source: Path, target: Path, identities: Identities) -> Passed:
    """Write `target`, whole or not at all. Raises OSError, LockedError."""
    import pyrage

    with source.open("rb") as file, _whole(target) as out:
        reader, writer = _Reader(file, None), _Writer(out)
        try:
            _through(lambda: pyrage.decrypt_io(reader, writer, identities.keys), reader, writer)
        except (pyrage.DecryptError, OSError) as error:
            if error in (reader.error, writer.error):
                raise
            raise LockedError(f"{source}: {error}") from error
    return Passed(writer.size, writer.sha256.hexdigest(), reader.size, reader.sha256.hexdigest())


def _encrypt(
    source: BinaryIO, target: Path, recipients: Recipients, stop: "threading.Event | None"
) -> Passed:
    import pyrage

    keys = [_recipient(key) for key in recipients.keys]
    with _whole(target) as out:
        reader, writer = _Reader(source, stop), _Writer(out)
        _through(lambda: pyrage.encrypt_io(reader, writer, keys), reader, writer)
    return Passed(reader.size, reader.sha256.hexdigest(), writer.size, writer.sha256.hexdigest())


def _recipient(key: str) -> Any:
    from pyrage import RecipientError, ssh, x25519

    try:
        if key.startswith("ssh-"):
            return ssh.Recipient.from_str(key)
        return x25519.Recipient.from_str(key)
    except RecipientError as error:
        raise ValueError(
            f"{key}: {error}; a key such as age1… or ssh-ed25519 … is needed"
        ) from error


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _through(work: Callable[[], None], *ends: "_Reader | _Writer") -> None:
    """Do it; what one of the ends raised is told as it was raised, not as pyrage's own error."""
    try:
        work()
    except Exception:
        for end in ends:
            if end.error is not None:
                raise end.error from None
        raise


class _Reader:
    def __init__(self, file: BinaryIO, stop: "threading.Event | None") -> None:
        self._file = file
        self._stop = stop
        self.error: Exception | None = None
        self.size = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        try:
            if self._stop is not None and self._stop.is_set():
                raise Interrupted
            data = self._file.read(size)
        except (OSError, Interrupted) as error:
            self.error = error
            raise
        self.size += len(data)
        self.sha256.update(data)
        return data


class _Writer:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: Exception | None = None
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.size += len(data)
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        pass
