"""`siprec-bridge recordings`: the audio files."""

from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siprec_bridge.cli.arguments import ConfigFile
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import Settings, from_environment
from siprec_bridge.store import Database, DepositRow, SessionRow, deposits, recordings

if TYPE_CHECKING:
    from siprec_bridge.recording.integrity import Verification
    from siprec_bridge.vault import KeptFile
    from siprec_bridge.vault.age import Passed

_PAGE = 500  # rows of the database at once

app = typer.Typer(help="Audio files of sessions.", no_args_is_help=True)


@app.command("verify")
def recordings_verify(
    session: Annotated[str | None, typer.Argument(help="id of a session; none: all")] = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="what the archive has, by reading all of it")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Compare finished audio files with the checksums that were noted when they were written.

    Of encrypted ones, what they were encrypted to. Exit code 1: a file is gone, or not what was
    written.
    """
    settings, _ = from_environment(config)
    files = octets = compared = unsaid = bad = 0
    for row, kept in with_database(settings, partial(_rows_of, session=session)):
        found = _look(settings, row, kept, stored=stored)
        files, octets = files + found.files, octets + found.octets
        compared += found.unsaid is None
        unsaid += found.unsaid is not None
        bad += bool(found.troubles)
        for trouble in found.troubles:
            print(f"{found.session_id}  {trouble}")
        if session is not None and found.unsaid is not None:
            refuse(f"{session} cannot be verified: {found.unsaid}")
    left = f"; {unsaid} sessions with nothing to compare" if unsaid else ""
    print(f"{compared} sessions, {files} files, {octets:,} octets: {bad} sessions damaged{left}")
    if bad:
        raise typer.Exit(1)


def _look(
    settings: Settings, row: SessionRow, kept: DepositRow | None, *, stored: bool
) -> "Verification":
    from siprec_bridge.recording.integrity import verify, verify_stored
    from siprec_bridge.vault import ObjectError, open_store

    if not stored:
        return verify(row, kept)
    try:
        store = None
        if kept is not None and kept.place is not None:
            store = open_store(kept.place, settings.archive_options)
        return verify_stored(row, kept, store)
    except ObjectError as error:
        refuse(str(error))


@app.command("decrypt")
def recordings_decrypt(
    paths: Annotated[list[Path], typer.Argument(help="files that end in .age, or their folders")],
    identity: Annotated[
        Path, typer.Option(help="file with the secret key: of age-keygen, or OpenSSH")
    ],
    out: Annotated[
        Path | None, typer.Option(help="folder for what comes out; beside it if not said")
    ] = None,
) -> None:
    """Decrypt recordings, for who holds the key, and compare them with their manifest.

    Needs no bridge and no database. Exit code 1: something could not be opened, or is not what
    was recorded.
    """
    from siprec_bridge.vault import Identities, LockedError, decrypt_file

    try:
        identities = Identities(identity)
    except OSError as error:
        raise ConfigurationError(f"--identity {identity}", error.strerror or str(error)) from None
    except ValueError as error:
        raise ConfigurationError("--identity", str(error)) from None
    files = [
        one for path in paths for one in (sorted(path.glob("*.age")) if path.is_dir() else [path])
    ]
    if not files:
        refuse("there is nothing that ends in .age")
    bad = 0
    for file in files:
        target = (out or file.parent) / file.name.removesuffix(".age")
        if target == file:
            target = target.with_name(f"{file.name}.plain")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            passed = decrypt_file(file, target, identities)
        except (LockedError, OSError) as error:
            print(f"{file}: {error}")
            bad += 1
            continue
        noted = _noted(file)
        if noted is None:
            print(f"{target}  {passed.plain_size:,} octets, in no manifest beside it")
        elif not _is(passed, noted):
            print(f"{target}: is not what was recorded")
            bad += 1
        else:
            print(f"{target}  {passed.plain_size:,} octets, as recorded")
    if bad:
        raise typer.Exit(1)


def _is(passed: "Passed", noted: "KeptFile") -> bool:
    """Whether it is what the manifest says; of what nobody had in the clear, the encrypted form."""
    if noted.name == noted.kept_name:
        return passed.cipher_sha256 == noted.kept_sha256
    return passed.plain_sha256 == noted.sha256


def _noted(file: Path) -> "KeptFile | None":
    """What a manifest in its folder says of a file."""
    from siprec_bridge.vault import MANIFEST, Manifest

    for path in sorted(file.parent.glob(f"*{MANIFEST}")):
        try:
            found = Manifest.model_validate_json(path.read_bytes()).find(file.name)
        except (OSError, ValueError):
            continue
        if found is not None:
            return found
    return None


async def _rows_of(
    store: Database, session: str | None
) -> list[tuple[SessionRow, DepositRow | None]]:
    """One session, or all of them."""
    if session is not None:
        row = await store.read(partial(recordings.get, session_id=session))
        if row is None:
            refuse(f"there is no session {session}")
        return [(row, await store.read(partial(deposits.get, session_id=session)))]
    rows: list[tuple[SessionRow, DepositRow | None]] = []
    before: tuple[datetime, str] | None = None
    while page := await store.read(partial(recordings.listing, limit=_PAGE, before=before)):
        # The documents of years are not held all at once.
        kept = await store.read(partial(deposits.of_ids, ids=[row.id for row in page]))
        rows += [(replace(row, document=""), kept.get(row.id)) for row in page]
        before = page[-1].started_at, page[-1].id
    return rows
