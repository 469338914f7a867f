"""A session as a vCon."""

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from siprec_bridge.api.asking import Route, choice_of, number_of
from siprec_bridge.api.seeing import find_session
from siprec_bridge.recording import (
    AudioChanged,
    AudioDeleted,
    AudioWithheld,
    NotOver,
    Vcons,
    why_away,
)
from siprec_bridge.recording.vcons import (
    AUDIO_FORMS,
    FILES,
    AudioForm,
    inline_octets,
    spoken_of,
    written,
)
from siprec_bridge.store import Database, SessionRow, transcripts
from siprec_bridge.vcon import MEDIA_TYPE, Signer, Spoken

log = structlog.get_logger()

_END: Final = b""  # no piece is empty


class SessionVcons:
    """Containers of stored sessions. `public_url`: of this API; None: where the request came to.

    `inline_max`: octets of audio that are written into one. `signer`: None, none is signed.
    """

    def __init__(
        self,
        database: Database,
        *,
        public_url: str | None,
        inline_max: int,
        signer: Signer | None = None,
    ) -> None:
        self._signer = signer
        self._database = database
        self._public_url = public_url
        self._inline_max = inline_max

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("GET", "/api/sessions/{id}/vcon", self._vcon, "read")]

    async def _vcon(self, request: web.Request) -> web.StreamResponse:
        row = await find_session(self._database, request)
        audio: AudioForm = choice_of(request, "audio", AUDIO_FORMS) or "none"
        address = self._address(request) if audio == "url" else ""
        vcons = Vcons(audio, choice_of(request, "files", FILES) or "stereo", address)
        form = choice_of(request, "form", ("signed", "unsigned"))
        if form == "signed" and self._signer is None:
            raise web.HTTPBadRequest(text="form=signed needs VCON_SIGN_CERT_PATH")
        signer = self._signer if form != "unsigned" else None
        spoken = await self._spoken(row, number_of(request, "version"))
        with contextlib.ExitStack() as files:
            pieces = await self._pieces(row, vcons, spoken, signer, files)
            return await _send(request, row.id, pieces)

    def _address(self, request: web.Request) -> str:
        """Where the audio is. Raises HTTPBadRequest for a Host that is none."""
        if self._public_url is not None:
            return self._public_url
        try:
            origin = str(request.url.origin())
        except ValueError:
            origin = ""
        if not origin or any(one.isspace() for one in origin):
            raise web.HTTPBadRequest(text="Host is no address to refer to")
        return origin

    async def _spoken(self, row: SessionRow, version: int | None) -> Spoken | None:
        found = await self._database.read(
            partial(transcripts.get, session_id=row.id, version=version)
        )
        if found is None and version is not None:
            raise web.HTTPNotFound(text=f"there is no version {version} of the transcript")
        return await asyncio.to_thread(spoken_of, found) if found is not None else None

    async def _pieces(
        self,
        row: SessionRow,
        vcons: Vcons,
        spoken: Spoken | None,
        signer: Signer | None,
        files: contextlib.ExitStack,
    ) -> Iterator[bytes]:
        folder = Path(row.folder)
        try:
            made = await asyncio.to_thread(vcons.of, row, spoken)
            octets = await asyncio.to_thread(inline_octets, made, folder)
            if octets > self._inline_max:
                raise web.HTTPUnprocessableEntity(
                    text=f"the audio has {octets:,} octets, more than VCON_INLINE_MAX: "
                    "audio=url refers to it"
                )
            return files.enter_context(written(made, folder, signer))
        except (NotOver, AudioWithheld) as error:
            raise web.HTTPConflict(text=str(error)) from None
        except AudioDeleted as error:
            raise web.HTTPGone(text=str(error)) from None
        except AudioChanged as error:
            log.error("vcon.audio_changed", session_id=row.id, cause=str(error))
            raise web.HTTPConflict(text=f"{error}; audio=none gives the rest") from None
        except OSError as error:
            away = await self._database.read(partial(why_away, session_id=row.id))
            if away is not None:
                raise web.HTTPConflict(text=away) from None
            if row.node != self._database.node:
                raise web.HTTPNotFound(text=f"the audio is on node {row.node}") from None
            log.error("vcon.no_audio", session_id=row.id, cause=str(error))
            raise web.HTTPNotFound(text=f"the audio is not there: {error.strerror}") from None


async def _send(
    request: web.Request, session_id: str, pieces: Iterator[bytes]
) -> web.StreamResponse:
    """Piece by piece, so that memory does not grow with the call."""
    answer = web.StreamResponse(
        headers={
            "Content-Type": MEDIA_TYPE,
            "Content-Disposition": f'attachment; filename="{session_id}.vcon"',
        }
    )
    await answer.prepare(request)
    if request.method == "HEAD":
        return answer
    try:
        while piece := await asyncio.to_thread(next, pieces, _END):
            await answer.write(piece)
    except ConnectionError:
        raise  # whoever asked has gone
    except OSError as error:
        log.error("vcon.cut_off", session_id=session_id, cause=str(error))
        if request.transport is not None:
            request.transport.abort()  # without an end, it is not taken for a whole one
        return answer
    await answer.write_eof()
    return answer
