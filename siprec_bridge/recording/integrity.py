"""Whether a session's files are still what they were when they were finished."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.store import SessionRow


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


def verify(row: SessionRow) -> Verification:
    """Compare size and SHA-256 of each finished file with the session's manifest."""
    if row.audio_deleted_at is not None:
        return Verification(row.id, unsaid="its audio was deleted by retention or by request")
    if row.audio is None:
        return Verification(row.id, unsaid=f"it is not finished: {row.state}")
    audio = AUDIO.validate_json(row.audio)
    if audio.legs and not audio.files:
        return Verification(row.id, unsaid="it was finished without checksums")
    troubles: list[str] = []
    octets = 0
    for one in audio.files:
        path = Path(row.folder) / one.name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.seek(0, 2)
        except OSError as error:
            troubles.append(f"{one.name}: {error.strerror}")
            continue
        octets += size
        if size != one.size:
            troubles.append(f"{one.name}: {size} octets, {one.size} were written")
        elif digest != one.sha256:
            troubles.append(f"{one.name}: its content was changed")
    return Verification(row.id, len(audio.files), octets, tuple(troubles))
