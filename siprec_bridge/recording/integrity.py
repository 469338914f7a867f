"""Whether a session's files are still what they were when they were finished."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.store import DepositRow, SessionRow
from siprec_bridge.vault import MANIFEST, Manifest, NotThere, ObjectStore

_CHUNK = 1 << 22  # octets that are fetched from a store at once


@dataclass(frozen=True, slots=True)
class Verification:
    """What a look at a session's files found: `troubles` name the file and what is wrong with it.

    `unsaid`: why there was nothing to compare; then there are no troubles.
    """

    session_id: str
    files: int = 0
    octets: int = 0
    troubles: tuple[str, ...] = ()
    unsaid: str | None = None


@dataclass(frozen=True, slots=True)
class _Expected:
    name: str
    size: int
    sha256: str


def verify(row: SessionRow, kept: DepositRow | None = None) -> Verification:
    """Compare size and SHA-256 of each finished file with the session's manifest.

    Of those that were encrypted, what they were encrypted to.
    """
    if row.audio_deleted_at is not None:
        return Verification(row.id, unsaid="its audio was deleted by retention or by request")
    if row.audio is None:
        return Verification(row.id, unsaid=f"it is not finished: {row.state}")
    if kept is not None and kept.local_gone_at is not None:
        return Verification(row.id, unsaid="it is in the archive only: --stored")
    if kept is not None and kept.manifest is not None and kept.plain_gone_at is not None:
        return _compare(row, _kept(kept.manifest))
    audio = AUDIO.validate_json(row.audio)
    if audio.legs and not audio.files:
        return Verification(row.id, unsaid="it was finished without checksums")
    return _compare(row, [_Expected(one.name, one.size, one.sha256) for one in audio.files])


def verify_stored(
    row: SessionRow, kept: DepositRow | None, store: ObjectStore | None
) -> Verification:
    """The same of what the store has, by reading all of it. Raises ObjectError: it is away."""
    if store is None or kept is None or kept.stored_at is None or kept.manifest is None:
        return Verification(row.id, unsaid="it is not in the archive")
    troubles: list[str] = []
    octets = 0
    expected = _kept(kept.manifest)
    for one in [*expected, None]:
        key = f"{kept.prefix}/{one.name if one is not None else MANIFEST}"
        try:
            size = store.size(key)
            if one is None:
                continue
            octets += size
            digest = hashlib.sha256()
            for start in range(0, size, _CHUNK):
                digest.update(store.read(key, start, min(start + _CHUNK, size)))
        except NotThere as error:
            troubles.append(str(error))
            continue
        if (trouble := _trouble(one, size, digest.hexdigest())) is not None:
            troubles.append(trouble)
    return Verification(row.id, len(expected), octets, tuple(troubles))


def _kept(manifest: str) -> Sequence[_Expected]:
    files = Manifest.model_validate_json(manifest).files
    return [_Expected(one.kept_name, one.kept_size, one.kept_sha256) for one in files]


def _compare(row: SessionRow, files: Sequence[_Expected]) -> Verification:
    troubles: list[str] = []
    octets = 0
    for one in files:
        path = Path(row.folder) / one.name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.seek(0, 2)
        except OSError as error:
            troubles.append(f"{one.name}: {error.strerror}")
            continue
        octets += size
        if (trouble := _trouble(one, size, digest)) is not None:
            troubles.append(trouble)
    return Verification(row.id, len(files), octets, tuple(troubles))


def _trouble(wanted: _Expected, size: int, digest: str) -> str | None:
    if size != wanted.size:
        return f"{wanted.name}: {size} octets, {wanted.size} were written"
    if digest != wanted.sha256:
        return f"{wanted.name}: its content was changed"
    return None
