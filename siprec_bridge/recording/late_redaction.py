"""Takes out of sessions that were stored before what the policy of today names.

Of each session all at once, or nothing: files first, then transcripts, search index, events and
the line of the audit in one transaction. Cut off, the same request goes on where it was.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import structlog
from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import TranscriptFinalData, TranscriptSegmentData
from siprec_bridge.media import FinishedAudio, silence, write_atomically
from siprec_bridge.recording.alteration import (
    Alteration,
    Altered,
    Keys,
    StoredAudio,
    Treatment,
    marks_of,
    same,
)
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.redactor import CoverMode, Redactor, spans_of
from siprec_bridge.recording.retention import InUse, UnderHold, still_free, why_not
from siprec_bridge.redaction import KINDS, Policy
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    SessionRow,
    TranscriptRow,
    erasure,
    outbox,
    recordings,
    retention,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Conversation, Redaction, Utterance
from siprec_bridge.vault import Recipients, encrypt_bytes, original_name

log = structlog.get_logger()

Outcome = Literal["redacted", "due", "clean", "held", "in_use", "elsewhere", "failed"]

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Redressed:
    """A session, and what is, or would be, taken from it. `found`: by kind, in its transcripts.

    `withheld`: nobody has transcribed it, so nobody can tell what is in its audio, which is shown
    to nobody until then. `treatment`, `replaces`: of the audio, as of an erasure.
    """

    session_id: str
    started_at: datetime
    outcome: Outcome
    found: Mapping[str, int]
    audio_seconds: float = 0.0
    withheld: bool = False
    treatment: Treatment | None = None
    replaces: str | None = None
    cause: str | None = None


@dataclass(frozen=True)
class _Plan:
    """`said` and `kept`: the conversation of each version, before and after. `covers`: audio, too."""

    row: SessionRow
    policy: Policy
    covers: bool
    audio: FinishedAudio | None
    before: tuple[Redaction, ...]
    redactions: tuple[Redaction, ...]
    stored: Mapping[int, str]
    said: Mapping[int, Conversation]
    kept: Mapping[int, Conversation]

    @property
    def versions(self) -> list[int]:
        """Those that change."""
        return [version for version, one in self.kept.items() if one != self.said[version]]

    @property
    def taken_from(self) -> list[int]:
        """Those of which something that was said is taken out."""
        return [
            version
            for version in self.versions
            if (self.kept[version].utterances, self.kept[version].suppressed)
            != (self.said[version].utterances, self.said[version].suppressed)
        ]

    @property
    def fresh(self) -> list[Redaction]:
        """What the recording does not tell of yet."""
        before = set(self.before)
        return [one for one in self.redactions if one not in before]

    @property
    def marked(self) -> FinishedAudio | None:
        """The audio, with what it is to tell of itself."""
        if self.audio is None:
            return None
        kinds = {*self.audio.redact, *self.policy.kinds}
        return replace(
            self.audio,
            redact=tuple(kind for kind in KINDS if kind in kinds),
            redactions=self.redactions if self.covers else self.audio.redactions,
            dtmf="mask" if self.audio.dtmf == "keep" else self.audio.dtmf,
            legs=tuple(
                replace(leg, keys=tuple(key.model_copy(update={"key": "*"}) for key in leg.keys))
                for leg in self.audio.legs
            ),
        )

    def is_due(self, text_only: bool) -> bool:
        """Whether anything is to be done."""
        return bool(self.versions) or (not text_only and self.marked != self.audio)


class LateRedaction:
    """Does it. `node`: whose audio it can reach; None: everybody's."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        redactor: Redactor,
        audio: StoredAudio,
        *,
        sinks: Sequence[outbox.Recipient],
        clock: Callable[[], datetime],
        node: str | None = None,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._redactor = redactor
        self._audio = audio
        self._sinks = sinks
        self._clock = clock
        self._node = node

    async def sessions(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> AsyncIterator[SessionRow]:
        """All that are over and began in this time, latest first. Raises StoreError."""
        before: tuple[datetime, str] | None = (until, "") if until is not None else None
        while rows := await self._database.read(
            partial(recordings.listing, limit=_PAGE, before=before)
        ):
            for row in rows:
                if since is not None and row.started_at < since:
                    return
                yield row
            before = rows[-1].started_at, rows[-1].id

    async def redact(
        self,
        row: SessionRow,
        *,
        dry_run: bool = False,
        by: str | None = None,
        reason: str | None = None,
        keys: Keys | None = None,
        text_only: bool = False,
    ) -> Redressed:
        """Take out of one session what is to be, or say what that is.

        `keys`: for audio that is encrypted; `text_only`: audio stays as it is. What cannot be done
        is told with its cause. Raises StoreError when the database does not answer.
        """
        plan, barred = await self._plan(row)
        found: dict[str, int] = {}
        for one in plan.fresh:
            found[one.kind] = found.get(one.kind, 0) + 1
        told = Redressed(
            row.id,
            row.started_at,
            outcome="due",
            found=found,
            audio_seconds=round(sum(one.end - one.start for one in plan.fresh), 3)
            if plan.audio is not None and plan.covers
            else 0.0,
        )
        if not plan.policy or not plan.is_due(text_only):
            return replace(told, outcome="clean")
        if barred is not None:
            return replace(told, outcome=barred, cause=row.node if barred == "elsewhere" else None)
        if dry_run:
            return told
        try:
            altered, withheld = await self._redact(plan, keys or Keys(), text_only, by, reason)
        except UnderHold:
            return replace(told, outcome="held")
        except InUse:
            return replace(told, outcome="in_use")
        except (OSError, ValueError) as error:
            log.error("redaction.failed", session_id=row.id, cause=str(error))
            return replace(told, outcome="failed", cause=str(error))
        for one in plan.fresh:
            self._metrics.redactions_total.labels(kind=one.kind).inc()
        if altered.treatment is not None:
            self._metrics.audio_redacted_seconds_total.inc(told.audio_seconds)
        log.info(
            "session.redacted",
            session_id=row.id,
            sip_call_id=row.sip_call_id,
            kinds=sorted(found),
            count=len(plan.fresh),
            audio_seconds=told.audio_seconds,
            by=by,
        )
        return replace(
            told,
            outcome="redacted",
            withheld=withheld,
            treatment=altered.treatment,
            replaces=altered.replaces,
        )

    async def finish(self) -> None:
        """Leave nothing of what was taken out in the database's own corners. Raises StoreError."""
        await erasure.compact_index(self._database)
        await self._database.shorten_log()

    async def _plan(self, given: SessionRow) -> tuple[_Plan, Outcome | None]:
        """What is to be done, and why it cannot be now."""

        def look(connection: Connection) -> tuple[SessionRow, bool, list[TranscriptRow]]:
            # What we were given may be hours old: there may be a hold on it by now.
            there = recordings.get(connection, given.id) or given
            busy = retention.has_open_jobs(connection, given.id)
            return there, busy, list(erasure.transcripts_of(connection, given.id))

        row, busy, stored = await self._database.read(look)
        document = SessionDocument.model_validate_json(row.document)
        policy = self._redactor.policy_of(document, row.peer)
        plan = await asyncio.to_thread(
            _planned, row, policy, stored, self._redactor.cover != "keep"
        )
        return plan, why_not(row, busy, self._node)

    async def _redact(
        self, plan: _Plan, keys: Keys, text_only: bool, by: str | None, reason: str | None
    ) -> tuple[Altered, bool]:
        row = plan.row
        untouched = Altered(None, None, lambda _: None)
        originals = self._redactor.originals if plan.taken_from else None
        if plan.audio is not None and not plan.said and plan.covers and not text_only:
            marked = plan.marked
            assert marked is not None
            marked = replace(marked, withheld=bool(marked.legs))
            await self._store(plan, untouched, marked, by, reason)
            return untouched, marked.withheld
        if plan.audio is None or text_only or not (plan.covers or originals):
            if originals is not None and plan.audio is not None:
                raise ValueError("REDACT_KEEP_ORIGINAL: the original is kept with its audio alone")
            marked = None if text_only else plan.marked
            await self._store(plan, untouched, marked, by, reason)
            return untouched, False
        fresh = frozenset(one.label for one in plan.fresh) if plan.covers else frozenset()
        pressed = any(key.key != "*" for leg in plan.audio.legs for key in leg.keys)
        wish = Alteration(
            partial(_cover, plan, self._redactor.cover, originals),
            fresh,
            needed=bool(fresh) or pressed or originals is not None,
            originals=True,
        )
        async with self._audio.altered(row, wish, keys) as altered:
            marked = plan.marked
            if altered.audio is not None and marked is not None:
                marked = replace(
                    altered.audio,
                    redact=marked.redact,
                    redactions=marked.redactions,
                    dtmf=marked.dtmf,
                )
            await self._store(plan, altered, marked, by, reason)
        return altered, marked is not None and marked.withheld

    async def _store(
        self,
        plan: _Plan,
        altered: Altered,
        audio: FinishedAudio | None,
        by: str | None,
        reason: str | None,
    ) -> None:
        row, now = plan.row, self._clock()
        line = erasure.AuditRow(
            at=now,
            action="redact",
            actor=by,
            reason=reason,
            subject=",".join(kind for kind in KINDS if kind in plan.policy.kinds),
            detail=erasure.detail(_told(row.id, altered, audio)),
        )

        def store(connection: Connection) -> None:
            there = still_free(connection, row.id)
            stored = list(erasure.transcripts_of(connection, row.id))
            if {one.version: one.document for one in stored} != plan.stored or not same(there, row):
                raise InUse  # somebody has changed it meanwhile
            if audio is not None:
                recordings.update(connection, row.id, audio=AUDIO.dump_json(audio).decode())
            altered.note(connection)
            for one in stored:
                kept = plan.kept[one.version]
                if kept != plan.said[one.version]:
                    erasure.change_transcript(connection, one, kept.text, kept.model_dump_json())
            erasure.change_events(connection, _events_without(connection, plan, self._redactor))
            erasure.change_stderr(connection, row.id, self._redactor.conceal)
            if versions := plan.taken_from:
                event = envelope.session_redacted(
                    plan.kept[versions[-1]], versions, plan.redactions, now
                )
                outbox.append(connection, [event], self._sinks)
            erasure.note(connection, line)

        await self._database.write(store)


def as_json(found: Redressed) -> dict[str, object]:
    """For the command line."""
    return asdict(found) | {"started_at": found.started_at.isoformat()}


def _told(session_id: str, altered: Altered, audio: FinishedAudio | None) -> dict[str, list[str]]:
    """For the audit: what was done with which sessions."""
    told = {"redacted": [session_id]}
    told |= {mark: [session_id] for mark in marks_of(altered.treatment, altered.replaces)}
    if audio is not None and audio.withheld:
        told["audio_withheld"] = [session_id]
    return told


def _planned(
    row: SessionRow, policy: Policy, stored: Sequence[TranscriptRow], covers: bool
) -> _Plan:
    # Only now: its libraries take a while.
    from siprec_bridge.redaction.conversation import redact_conversation

    audio = None
    if row.audio is not None and row.audio_deleted_at is None:
        audio = AUDIO.validate_json(row.audio)
    said = {one.version: Conversation.model_validate_json(one.document) for one in stored}
    before = set(audio.redactions) if audio is not None else set()
    for one in said.values() if audio is None or not covers else ():
        before |= set(one.redactions)
    kept = {version: redact_conversation(one, policy).conversation for version, one in said.items()}
    everything = {*before, *(one for kept_ in kept.values() for one in kept_.redactions)}
    redactions = tuple(sorted(everything, key=lambda one: (one.start, one.end, one.kind)))
    # The recording is silent wherever any version has something to hide: each of them says so.
    kept = {
        version: one.model_copy(update={"redactions": redactions}) for version, one in kept.items()
    }
    return _Plan(
        row=row,
        policy=policy,
        covers=covers,
        audio=audio,
        before=tuple(before),
        redactions=redactions,
        stored={one.version: one.document for one in stored},
        said=said,
        kept=kept if policy else said,
    )


def _cover(
    plan: _Plan, cover: CoverMode, originals: Recipients | None, folder: Path
) -> FinishedAudio | None:
    """Cover the audio in a folder, and keep there what was said, if it is wanted. Raises OSError."""
    row, audio = plan.row, plan.marked
    if audio is None:
        return None
    for version in plan.taken_from if originals is not None else ():
        target = folder / original_name(row.id, version)
        # There already: of an earlier redaction, or try; that has more.
        if originals is not None and not target.exists():
            said = plan.said[version].model_dump_json(indent=1).encode()
            encrypt_bytes(said, target, originals)
    if cover != "keep":
        try:
            spans = spans_of(audio, plan.redactions, row.started_at)
            audio = replace(silence(folder, audio, spans, cover), withheld=False)
        except (ValueError, FileNotFoundError) as error:
            # As after a call: nobody can cover it, so it is shown to nobody.
            log.error("session.not_covered", session_id=row.id, cause=str(error))
            audio = replace(audio, withheld=True)
        else:
            for spool in folder.glob("*.spool*"):
                spool.unlink(missing_ok=True)
    write_atomically(folder / f"{row.id}.audio.json", AUDIO.dump_json(audio, indent=1))
    return audio


def _events_without(
    connection: Connection, plan: _Plan, redactor: Redactor
) -> Mapping[int, str | None]:
    """What events are to say instead; None: they go."""
    places: dict[tuple[int, str, float, float, str], Utterance] = {}
    for version, said in plan.said.items():
        for before, after in zip(said.utterances, plan.kept[version].utterances, strict=True):
            places[version, before.label, before.start, before.end, before.text] = after

    def without(version: int, one: Any) -> dict[str, Any]:
        found = places.get((version, one.label, one.start, one.end, one.text))
        if found is not None:
            return {"text": found.text, "words": found.words}
        return {"text": redactor.conceal(one.text), "words": ()}  # of no version that is stored

    changed: dict[int, str | None] = {}
    for seq, kind, body in erasure.events_of(connection, plan.row.id):
        match kind:
            # What was shown live is not looked through as a whole; a vCon can be had anew.
            case "transcript.partial" | "session.vcon":
                changed[seq] = None
            case "transcript.segment":
                segment = TranscriptSegmentData.model_validate_json(body)
                told = segment.model_copy(update=without(segment.version, segment))
                if told != segment:
                    changed[seq] = told.model_dump_json()
            case "transcript.final":
                whole = TranscriptFinalData.model_validate_json(body)
                lines = [
                    one.model_copy(update=without(whole.version, one)) for one in whole.utterances
                ]
                cleaned = whole.model_copy(
                    update={
                        "utterances": tuple(lines),
                        "text": "\n".join(one.text for one in lines),
                        "redactions": plan.redactions,
                        "legs": tuple(
                            leg.model_copy(
                                update={
                                    "keys": tuple(
                                        key.model_copy(update={"key": "*"}) for key in leg.keys
                                    )
                                }
                            )
                            for leg in whole.legs
                        ),
                    }
                )
                if cleaned != whole:
                    changed[seq] = cleaned.model_dump_json()
            case _:
                pass  # says nothing of what was said
    return changed
