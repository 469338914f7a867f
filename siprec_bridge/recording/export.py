"""A session as one ZIP file, made while it is read: documents, transcripts, events, ladder, audio."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.store import Database, SessionRow, jobs, ladder, outbox, recordings
from siprec_bridge.store import erasure as of_session

_CHUNK = 1 << 18
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Parts:
    """What goes into the file: small texts by name, and files, which may be gone by then."""

    row: SessionRow
    texts: dict[str, str]
    files: tuple[Path, ...]
    left_out: dict[str, str]  # why, by name


async def gather(database: Database, session_id: str) -> Parts | None:
    """All that is known of a session; None: there is none. Raises StoreError."""
    return await database.read(partial(_gather, session_id=session_id))


def _gather(connection: Connection, session_id: str) -> Parts | None:
    row = recordings.get(connection, session_id)
    if row is None:
        return None
    texts = {"session.json": _json(_fields(row)), "document.json": row.document}
    for one in of_session.transcripts_of(connection, session_id):
        texts[f"transcript-{one.version}.json"] = one.document
        texts[f"transcript-{one.version}.txt"] = one.text + "\n"
    lines: list[str] = []
    seq = 0
    while page := outbox.since(connection, seq, _PAGE, session_id=session_id):
        lines += [envelope.structured(event) for event in page]
        seq = page[-1].seq
    texts["events.jsonl"] = "".join(f"{line}\n" for line in lines)
    texts["ladder.json"] = _json(
        [
            {"at": one.at.isoformat(), "sent": one.sent, "peer": one.peer, "text": one.text}
            for one in ladder.of_session(connection, session_id)
        ]
    )
    queued = jobs.listing(connection, _PAGE, session_id=session_id)
    texts["jobs.json"] = _json(
        [{name: getattr(job, name) for name in job.__slots__} for job in queued]
    )
    files, left_out = _audio(row)
    return Parts(row, texts, files, left_out)


def _audio(row: SessionRow) -> tuple[tuple[Path, ...], dict[str, str]]:
    if row.audio is None:
        return (), {"audio": f"the session is {row.state}: it has no finished audio"}
    audio = AUDIO.validate_json(row.audio)
    names = [one.name for one in audio.files] or [leg.file for leg in audio.legs]
    names += [leg.loss_map for leg in audio.legs if leg.loss_map is not None]
    if row.audio_deleted_at is not None:
        return (), dict.fromkeys(names, f"deleted at {row.audio_deleted_at.isoformat()}")
    if audio.withheld:
        return (), dict.fromkeys(names, "not redacted yet: its transcription waits")
    folder = Path(row.folder)
    there = tuple(folder / name for name in names if (folder / name).is_file())
    gone = {name: "not on this machine" for name in names if not (folder / name).is_file()}
    return there, gone


def zipped(parts: Parts) -> Iterator[bytes]:
    """The ZIP file, piece by piece. Raises OSError when a file cannot be read to its end."""
    tube = _Tube()
    left_out = dict(parts.left_out)
    with zipfile.ZipFile(tube, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.texts.items():
            archive.writestr(f"{parts.row.id}/{name}", text)
            yield tube.take()
        for path in parts.files:
            try:
                file = path.open("rb")
            except OSError as error:
                left_out[path.name] = error.strerror or str(error)
                continue
            entry = zipfile.ZipInfo(f"{parts.row.id}/{path.name}")  # stored: it is noise to ZIP
            with file, archive.open(entry, "w", force_zip64=True) as out:
                while chunk := file.read(_CHUNK):
                    out.write(chunk)
                    yield tube.take()
        if left_out:
            archive.writestr(f"{parts.row.id}/left-out.json", _json(left_out))
    yield tube.take()


class _Tube:
    """What is written at one end is taken at the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _fields(row: SessionRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in SessionRow.__slots__}
    for name in ("document", "folder"):
        del values[name]
    for name in ("audio", "held"):
        values[name] = json.loads(values[name]) if values[name] else None
    return values


def _json(value: object) -> str:
    return json.dumps(value, indent=1, default=str, ensure_ascii=False)
