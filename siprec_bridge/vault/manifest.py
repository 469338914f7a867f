"""What a session's files are: names, sizes and SHA-256, as recorded and as kept.

It is written last wherever the files go: where it is, they are all there.
"""

import os
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from siprec_bridge.vault.age import SUFFIX, Recipients, encrypt_file
from siprec_bridge.vault.objects import sums_of

MANIFEST: Final = "manifest.json"
ORIGINAL: Final = f".original.json{SUFFIX}"


class ContentChanged(OSError):
    """A file is not what was noted when it was finished."""


class KeptFile(BaseModel):
    """A file as it was recorded, and as it is kept: the same, or encrypted."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    sha256: str
    kept_name: str
    kept_size: int
    kept_sha256: str


class Manifest(BaseModel):
    """All files of a session. `recipients`: public keys that they are encrypted to; none: plain."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    session: str
    sip_call_id: str
    started_at: datetime
    made_at: datetime
    recipients: tuple[str, ...] = ()
    files: tuple[KeptFile, ...] = ()

    @property
    def octets(self) -> int:
        """Of all files as they are kept."""
        return sum(one.kept_size for one in self.files)

    def find(self, name: str) -> KeptFile | None:
        """The file of this name, as recorded or as kept."""
        return next((one for one in self.files if name in (one.name, one.kept_name)), None)


def manifest_name(session: str) -> str:
    """Its name beside the files on the recorder, where a folder may hold several sessions."""
    return f"{session}.{MANIFEST}"


def original_name(session: str, version: int) -> str:
    """Of a transcript's version as it was before anything was taken out of it; always encrypted."""
    return f"{session}-{version}{ORIGINAL}"


def originals(folder: Path) -> list[Path]:
    """All of these in a session's folder."""
    return sorted(folder.glob(f"*{ORIGINAL}"))


def survey(folder: Path, noted: Mapping[str, str], stop: threading.Event) -> tuple[KeptFile, ...]:
    """A session's files as they are. `noted`: SHA-256 by name, as finished.

    Raises OSError, ContentChanged, Interrupted.
    """
    files = []
    for path in _plain(folder):
        files.append(_as_it_is(path, stop))
        _check(path.name, files[-1].sha256, noted)
    _complete(files, noted)
    return (*files, *(_as_it_is(path, stop) for path in originals(folder)))


def seal(
    folder: Path, noted: Mapping[str, str], recipients: Recipients, stop: threading.Event
) -> tuple[KeptFile, ...]:
    """Encrypt a session's files, beside which the plain ones stay. Can be repeated.

    Raises as `survey`.
    """
    files = []
    for path in _plain(folder):
        sealed = path.with_name(path.name + SUFFIX)
        passed = encrypt_file(path, sealed, recipients, stop)
        _check(path.name, passed.plain_sha256, noted)
        files.append(
            KeptFile(
                name=path.name,
                size=passed.plain_size,
                sha256=passed.plain_sha256,
                kept_name=sealed.name,
                kept_size=passed.cipher_size,
                kept_sha256=passed.cipher_sha256,
            )
        )
    _complete(files, noted)
    files += [_as_it_is(path, stop) for path in originals(folder)]
    if files:
        _sync(folder)
    return tuple(files)


def _as_it_is(path: Path, stop: threading.Event) -> KeptFile:
    sums = sums_of(path, stop)
    return KeptFile(
        name=path.name,
        size=sums.size,
        sha256=sums.sha256,
        kept_name=path.name,
        kept_size=sums.size,
        kept_sha256=sums.sha256,
    )


def _plain(folder: Path) -> list[Path]:
    """What was recorded, but nothing that is being written, and nothing of ours."""
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:  # a session without streams
        return []
    return [
        path
        for path in found
        if path.is_file()
        and not path.name.startswith(".")
        and not path.name.endswith((SUFFIX, f".{MANIFEST}"))
    ]


def _check(name: str, sha256: str, noted: Mapping[str, str]) -> None:
    if noted.get(name, sha256) != sha256:
        raise ContentChanged(f"{name}: its content was changed since it was finished")


def _complete(files: list[KeptFile], noted: Mapping[str, str]) -> None:
    missing = set(noted) - {one.name for one in files}
    if missing:
        raise ContentChanged(f"{', '.join(sorted(missing))}: gone since it was finished")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
