"""Sessions as vCons: from what is stored of one, and its finished files.

The audio is not in it, comes along, or is referred to by its address in the API. Of files that
are handed on or referred to, the SHA-256 noted at their end must still be theirs.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, get_args
from urllib.parse import quote

import structlog

from siprec_bridge.delivery import envelope
from siprec_bridge.media import FinishedAudio
from siprec_bridge.recording.orders import AUDIO, AudioDeleted
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import Event, SessionRow, TranscriptRow
from siprec_bridge.transcript import Conversation, KeyPress
from siprec_bridge.vcon import Call, Recording, Signer, Spoken, Vcon, build, content_hash, pieces

log = structlog.get_logger()

AudioForm = Literal["none", "inline", "url"]
Files = Literal["legs", "stereo"]
AUDIO_FORMS: tuple[str, ...] = get_args(AudioForm)
FILES: tuple[str, ...] = get_args(Files)

# Those of §4.3.8, where it has one.
_MEDIA_TYPES = {".wav": "audio/x-wav", ".flac": "audio/flac", ".opus": "audio/ogg"}
_PIECE = 3 << 16  # octets; a multiple of what base64 takes at once


class NotOver(Exception):
    """The session is still being recorded or finished: says which."""


class AudioWithheld(Exception):
    """The audio is not redacted, or not yet."""


class AudioChanged(Exception):
    """A file is not what was written at the end of the call: says which."""


@dataclass(frozen=True, slots=True)
class Vcons:
    """Makes containers. `address`: of the API, without a path, as those who get one reach it.

    All of it reads files and takes time: call it from a thread.
    """

    audio: AudioForm = "none"
    files: Files = "stereo"
    address: str = ""

    def of(self, row: SessionRow, spoken: Spoken | None) -> Vcon:
        """The container of a session that is over; without a transcript it has no analysis.

        Raises NotOver; where audio is wanted AudioDeleted, AudioWithheld, AudioChanged, and OSError
        (it is not here, see `why_away`).
        """
        if row.state in ("recording", "finishing") or row.ended_at is None:
            raise NotOver(f"the session is {row.state}, not over")
        if self.audio != "none" and row.audio_deleted_at is not None:
            raise AudioDeleted(f"the audio was deleted at {row.audio_deleted_at.isoformat()}")
        audio = AUDIO.validate_json(row.audio) if row.audio else FinishedAudio(())
        if self.audio != "none" and audio.withheld:
            raise AudioWithheld("the audio is not redacted, or not yet")
        taken_out = {one.kind for one in audio.redactions}
        if spoken is not None:
            taken_out |= {one.kind for one in spoken.conversation.redactions}
        return build(
            Call(
                document=SessionDocument.model_validate_json(row.document),
                sip_call_id=row.sip_call_id,
                started_at=row.started_at,
                ended_at=row.ended_at,
                end_cause=row.end_cause,
                audio_deleted_at=row.audio_deleted_at,
                recordings=tuple(self._recordings(row, audio)),
                spoken=spoken,
                redaction=", ".join(sorted(taken_out)) or None,
            )
        )

    def _recordings(self, row: SessionRow, audio: FinishedAudio) -> Iterator[Recording]:
        written = {one.name: one.sha256 for one in audio.files}
        for one in _stereo(audio) if self.files == "stereo" else _legs(audio):
            if self.audio == "none":
                yield one
                continue
            sha512 = _verified(Path(row.folder) / one.file, written.get(one.file))
            if self.audio == "inline":
                yield replace(one, inline=True)
            else:
                path = f"/api/sessions/{quote(row.id, safe='')}/audio/{quote(one.file, safe='')}"
                yield replace(
                    one, url=self.address.rstrip("/") + path, content_hash=content_hash(sha512)
                )


class VconEvents:
    """Events that carry the container of a session and its newest transcript, never with its audio."""

    def __init__(self, vcons: Vcons, signer: Signer | None = None) -> None:
        self._vcons = vcons
        self._signer = signer

    async def event(self, row: SessionRow, spoken: Spoken) -> Event:
        """The event. A transcript is not held up by its audio: where that is gone, it is left out."""
        try:
            made = await asyncio.to_thread(self._vcons.of, row, spoken)
        except (AudioChanged, AudioDeleted, AudioWithheld, OSError) as error:
            log.error("vcon.without_audio", session_id=row.id, cause=str(error))
            made = await asyncio.to_thread(replace(self._vcons, audio="none").of, row, spoken)
        container = made.as_json()
        if self._signer is not None:
            container = await asyncio.to_thread(self._signer.signed, made)
        return envelope.session_vcon(spoken.conversation, spoken.version, container, spoken.at)


def spoken_of(row: TranscriptRow) -> Spoken:
    """A stored transcript, as a container takes it."""
    return Spoken(Conversation.model_validate_json(row.document), row.version, row.created_at)


def inline_octets(vcon: Vcon, folder: Path) -> int:
    """Octets of all files that come along. Raises OSError."""
    return sum((folder / name).stat().st_size for name in _inline(vcon).values())


@contextlib.contextmanager
def written(vcon: Vcon, folder: Path, signer: Signer | None = None) -> Iterator[Iterator[bytes]]:
    """The container's octets, a piece at a time, with the files that come along from `folder`.

    They are open from the start, so that a deletion does not cut them off. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        files = {
            index: stack.enter_context((folder / name).open("rb"))
            for index, name in _inline(vcon).items()
        }
        unsigned = pieces(vcon, {index: _read(file) for index, file in files.items()})
        yield unsigned if signer is None else signer.pieces(vcon.uuid, unsigned)


def _inline(vcon: Vcon) -> dict[int, str]:
    return {
        index: one.filename
        for index, one in enumerate(vcon.dialog)
        if one.encoding is not None and one.filename is not None
    }


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _legs(audio: FinishedAudio) -> Iterator[Recording]:
    for leg in audio.legs:
        yield Recording(
            file=leg.file,
            media_type=_media_type(leg.file),
            started_at=leg.started_at,
            duration=leg.duration,
            channels=((leg.label,),),
            keys=tuple((leg.label, press) for press in leg.keys),
        )


def _stereo(audio: FinishedAudio) -> Iterator[Recording]:
    """The one file, as it is written: the first left, the second right, all others on both."""
    if audio.stereo is None or audio.started_at is None:
        return
    labels = tuple(leg.label for leg in audio.legs)
    keys: list[tuple[str, KeyPress]] = []
    for leg in audio.legs:
        offset = (leg.started_at - audio.started_at).total_seconds()
        keys += [
            (leg.label, press.model_copy(update={"start": press.start + offset}))
            for press in leg.keys
        ]
    yield Recording(
        file=audio.stereo,
        media_type=_media_type(audio.stereo),
        started_at=audio.started_at,
        duration=audio.duration,
        channels=(labels[:1] + labels[2:], labels[1:]),
        keys=tuple(keys),
    )


def _media_type(name: str) -> str:
    return _MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream")


def _verified(path: Path, sha256: str | None) -> bytes:
    """The file's SHA-512. Raises AudioChanged, OSError."""
    noted, wanted = hashlib.sha256(), hashlib.sha512()
    with path.open("rb") as file:
        for piece in _read(file):
            noted.update(piece)
            wanted.update(piece)
    if sha256 is not None and noted.hexdigest() != sha256:
        raise AudioChanged(f"{path.name} is not what was written at the end of the call")
    return wanted.digest()
