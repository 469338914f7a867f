"""`siprec-bridge sessions vcon`: a session as an IETF vCon."""

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from siprec_bridge.cli.arguments import ConfigFile, SessionId
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.store import Database, SessionRow, TranscriptRow, recordings, transcripts


def sessions_vcon(
    session: SessionId,
    out: Annotated[
        Path | None, typer.Option(help="file to write, as a whole or not at all; else stdout")
    ] = None,
    audio: Annotated[
        Literal["none", "inline", "url"],
        typer.Option(help="not in it, in it, or by its URL (HTTP_PUBLIC_URL)"),
    ] = "none",
    files: Annotated[
        Literal["legs", "stereo"], typer.Option(help="the stereo one, or one for each party")
    ] = "stereo",
    form: Annotated[
        Literal["signed", "unsigned"] | None,
        typer.Option(help="not said: signed where VCON_SIGN_CERT_PATH is set"),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="of the transcript; not said: the newest")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Write a session as a vCon: parties, dialogs, recordings, transcript."""
    from siprec_bridge.parts import vcon_signer_of
    from siprec_bridge.recording import (
        AudioChanged,
        AudioDeleted,
        AudioWithheld,
        NotOver,
        Vcons,
        why_away,
    )
    from siprec_bridge.recording.vcons import spoken_of, written

    settings, _ = from_environment(config)
    signer = vcon_signer_of(settings) if form != "unsigned" else None
    if form == "signed" and signer is None:
        raise ConfigurationError("--form signed", "VCON_SIGN_CERT_PATH is needed")
    if audio == "url" and settings.http_public_url is None:
        raise ConfigurationError("--audio url", "HTTP_PUBLIC_URL is needed: the audio is there")

    async def find(
        store: Database,
    ) -> tuple[SessionRow | None, TranscriptRow | None, str | None]:
        return (
            await store.read(partial(recordings.get, session_id=session)),
            await store.read(partial(transcripts.get, session_id=session, version=version)),
            await store.read(partial(why_away, session_id=session)),
        )

    row, transcript, away = with_database(settings, find)
    if row is None:
        refuse(f"there is no session {session}")
    if transcript is None and version is not None:
        refuse(f"there is no version {version} of the transcript")
    vcons = Vcons(audio, files, settings.http_public_url or "")
    try:
        made = vcons.of(row, spoken_of(transcript) if transcript is not None else None)
    except (NotOver, AudioDeleted, AudioWithheld, AudioChanged) as error:
        refuse(str(error))
    except OSError as error:
        refuse(away or f"{error.filename}: {error.strerror}")
    try:
        with written(made, Path(row.folder), signer) as pieces:
            if out is None:
                sys.stdout.buffer.writelines(pieces)
                print()
                return
            part = out.with_name(f".{out.name}.part")
            with contextlib.ExitStack() as undo:
                undo.callback(part.unlink, missing_ok=True)
                with part.open("wb") as file:
                    file.writelines(pieces)
                part.replace(out)
    except OSError as error:
        refuse(f"{error.filename or out}: {error.strerror}")
    print(f"{out}: {out.stat().st_size:,} octets")
