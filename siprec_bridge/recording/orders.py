"""What is asked of recognisers: a session's first transcription by the rules, further ones on request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import Connection

from siprec_bridge.media import FinishedAudio
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    JobRow,
    SessionRow,
    deposits,
    jobs,
    recordings,
    transcripts,
)
from siprec_bridge.transcription import (
    UNRULED,
    Choice,
    Rules,
    Wish,
    address_of,
    facts_of_call,
)

AUDIO: Final = TypeAdapter(FinishedAudio)


class NothingToTranscribe(Exception):
    """The session is not finished, or never had audio: says which."""


class AudioAway(NothingToTranscribe):
    """The session's audio is encrypted, or in the archive alone: says which."""


class AudioDeleted(Exception):
    """The session's audio is gone: says since when."""


class UnknownVendor(Exception):
    """There is no such vendor: says which there are."""


@dataclass(frozen=True)
class Orders:
    """Makes jobs. `vendor` gets what no rule gives to another one of `vendors`.

    `shared`: all nodes reach all audio; else a job is for the node that has recorded it.
    """

    vendor: str
    vendors: Sequence[str]
    rules: Rules = field(default_factory=Rules)
    shared: bool = False

    def choose(self, document: SessionDocument, peer: str) -> Choice:
        """What the rules make of a session."""
        if not self.rules:
            return UNRULED
        return self.rules.choose(facts_of_call(document, peer))

    def first(
        self, session: SessionRow, document: SessionDocument, seconds: float, now: datetime
    ) -> JobRow:
        """The job of a session that has just ended; it has one id for ever."""
        return self._job(session, document, 1, seconds, now, Wish())

    async def again(self, database: Database, session_id: str, wish: Wish, now: datetime) -> JobRow:
        """Queue another transcription of a session, which becomes a further version.

        What `wish` leaves open is as the rules say, the priority is low. Raises LookupError (no such
        session), NothingToTranscribe (AudioAway is one), AudioDeleted, UnknownVendor, StoreError.
        """
        if wish.vendor is not None and wish.vendor not in self.vendors:
            raise UnknownVendor(f"vendor must be one of: {', '.join(self.vendors)}")
        if wish.priority is None:
            wish = wish.model_copy(update={"priority": "low"})

        def queue(connection: Connection) -> JobRow:
            row = recordings.get(connection, session_id)
            if row is None:
                raise LookupError(f"there is no session {session_id}")
            if row.audio_deleted_at is not None:
                raise AudioDeleted(f"the audio was deleted at {row.audio_deleted_at.isoformat()}")
            if row.state != "finished" or row.audio is None:
                raise NothingToTranscribe(f"the session is {row.state}, its audio not finished")
            if (away := why_away(connection, session_id)) is not None:
                raise AudioAway(away)
            document = SessionDocument.model_validate_json(row.document)
            seconds = sum(leg.duration for leg in AUDIO.validate_json(row.audio).legs)
            version = 1 + max(
                jobs.latest_number(connection, session_id),
                transcripts.latest_version(connection, session_id),
            )
            job = self._job(row, document, version, seconds, now, wish)
            jobs.insert(connection, job)
            return job

        return await database.write(queue)

    def _job(
        self,
        session: SessionRow,
        document: SessionDocument,
        version: int,
        seconds: float,
        now: datetime,
        wish: Wish,
    ) -> JobRow:
        ruled = self.choose(document, session.peer).wish
        vendor = wish.vendor or ruled.vendor or self.vendor
        # A model is one of its vendor's: that of a rule does not fit another vendor.
        fits = wish.vendor is None or wish.vendor == (ruled.vendor or self.vendor)
        return JobRow(
            id=f"{session.id}.{version}",
            session_id=session.id,
            vendor=vendor,
            model=wish.model or (ruled.model if fits else None),
            language=wish.language or ruled.language,
            prompt=wish.prompt or ruled.prompt,
            priority=wish.priority or ruled.priority or "normal",
            source=address_of(session.peer),
            audio_seconds=seconds,
            created_at=now,
            node=None if self.shared else session.node,
        )


def why_away(connection: Connection, session_id: str) -> str | None:
    """Why a session's audio cannot be heard from this disk (encrypted, archived); None: it can."""
    kept = deposits.get(connection, session_id)
    if kept is None:
        return None
    if kept.sealed_at is not None and kept.plain_gone_at is not None:
        return "the audio is encrypted: only those who hold a key of its recipients can read it"
    if kept.local_gone_at is not None:
        return f"the audio is in the archive only: siprec-bridge archive fetch {session_id}"
    return None


def version_of(job: JobRow) -> int:
    """A job's id ends in the version of the transcript that it makes."""
    return int(job.id.rpartition(".")[2])
