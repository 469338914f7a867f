"""Who was on a stream long ago, in a file beside the audio until the session ends.

The document of a session that is being recorded is written anew with each change: in one of weeks,
what is long over must not be in it each time.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from siprec_bridge.siprec import PastPresence, SessionDocument, StreamDocument
from siprec_bridge.transcript import Participant


def append(folder: Path, session_id: str, past: Sequence[PastPresence]) -> None:
    """Note these for good. Raises OSError."""
    lines = "".join(f"{one.model_dump_json(exclude_none=True)}\n" for one in past)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with os.fdopen(os.open(_file(folder, session_id), flags, 0o600), "ab") as file:
        # Whole lines only, also behind one that a crash or a full disk has cut off.
        file.write(b"\n" * (file.tell() > 0) + lines.encode())
        file.flush()
        os.fsync(file.fileno())


def joined(document: SessionDocument, folder: Path) -> SessionDocument:
    """The document with all that was noted of its session. Raises OSError."""
    try:
        lines = _file(folder, document.session_id).read_bytes().splitlines()
    except FileNotFoundError:
        return document
    past = list(_read(lines))
    described = {one.participant.id: one.participant for one in past if one.participant is not None}
    people: dict[str, Participant] = described | {one.id: one for one in document.participants}
    return document.model_copy(
        update={
            "participants": tuple(people.values()),
            "streams": tuple(_with(one, past) for one in document.streams),
        }
    )


def remove(folder: Path, session_id: str) -> None:
    """Forget what was noted: the session's document has it. Raises OSError."""
    _file(folder, session_id).unlink(missing_ok=True)


def _read(lines: Iterable[bytes]) -> Iterable[PastPresence]:
    for line in lines:
        try:
            yield PastPresence.model_validate_json(line)
        except ValidationError:  # cut off: what it said is still in the document
            continue


def _with(stream: StreamDocument, past: Iterable[PastPresence]) -> StreamDocument:
    # What was taken back after it was noted is in both.
    known = {
        (one.participant_id, one.since): one
        for one in (*(one.presence for one in past if one.index == stream.index), *stream.presences)
    }
    return stream.model_copy(
        update={"presences": tuple(sorted(known.values(), key=lambda one: one.since))}
    )


def _file(folder: Path, session_id: str) -> Path:
    return folder / f"{session_id}.presences.jsonl"
