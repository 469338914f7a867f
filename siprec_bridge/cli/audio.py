"""Audio that a command changes wherever it lies, and what it may do with what is encrypted."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import Settings
from siprec_bridge.store import Database

if TYPE_CHECKING:
    from siprec_bridge.recording import Keys, StoredAudio

Identity = Annotated[
    Path | None,
    typer.Option(help="secret key of age or OpenSSH: for audio that is encrypted to it"),
]
DeleteEncrypted = Annotated[
    bool,
    typer.Option(
        "--delete-encrypted", help="delete files that have it where there is no key to open them"
    ),
]


def keys_of(identity: Path | None, delete_encrypted: bool) -> "Keys":
    """Raises ConfigurationError for a key that cannot be read."""
    from siprec_bridge.recording import Keys
    from siprec_bridge.vault import Identities

    try:
        return Keys(Identities(identity) if identity is not None else None, delete_encrypted)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--identity {identity}", str(error)) from None


def stored_audio_of(settings: Settings, store: Database) -> "StoredAudio":
    """Raises ConfigurationError for an archive that cannot be."""
    from siprec_bridge.parts import safekeeping_of
    from siprec_bridge.recording import StoredAudio, Stores

    archive = safekeeping_of(settings).store
    return StoredAudio(
        store,
        Stores(archive, settings.archive_options),
        clock=lambda: datetime.now(UTC),
        place=archive.place if archive is not None else None,
    )
