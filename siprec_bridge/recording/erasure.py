"""One person out of all sessions, on request: GDPR, Article 17. What others said stays.

Files first, then the rows, in one transaction a session: cut off between the two, the same
request does the rest. A session under hold is told of and left alone.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
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
from siprec_bridge.recording.audit_line import AuditLine
from siprec_bridge.recording.group_names import groups_of, renamed
from siprec_bridge.recording.identifier import Identifier
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.retention import (
    Elsewhere,
    InUse,
    Retention,
    UnderHold,
    still_free,
    why_not,
)
from siprec_bridge.recording.scrub import Scrub, mentions_of, text_of
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    DepositRow,
    SessionRow,
    StoreError,
    deposits,
    erasure,
    outbox,
    recordings,
    retention,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Participant
from siprec_bridge.vault import originals

log = structlog.get_logger()

_PAGE = 200
_AT_ONCE = 100  # sessions in a line of the audit, which is written anew with each of them
_AROUND = timedelta(seconds=2)  # audio and metadata do not change at the same moment

Outcome = Literal["erased", "due", "held", "in_use", "elsewhere", "failed"]


@dataclass(frozen=True, slots=True)
class _Found:
    """A session that the person took part in, or whose group's id is made of the address.

    `groups`: ids of groups that name the person, and what stands in their place from now on.
    """

    row: SessionRow
    people: Sequence[Participant]
    groups: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Affected:
    """A session with the person, and what is, or would be, taken from it.

    `audio_seconds`: of the person's streams; `cause`: why it was left as it is. `kept`: how the
    audio lies; `treatment`: what became of the person's; `replaces`: the store whose copy is replaced;
    `named_in`: the folder there whose own name has the person's, which nothing changes.
    """

    session_id: str
    started_at: datetime
    outcome: Outcome
    labels: tuple[str, ...] = ()
    participant_ids: tuple[str, ...] = ()
    utterances: int = 0
    audio_seconds: float = 0.0
    cause: str | None = None
    kept: Literal["plain", "archived", "encrypted"] | None = None
    treatment: Treatment | None = None
    replaces: str | None = None
    named_in: str | None = None


class Eraser:
    """Erases people. `node`: whose audio it can reach; None: everybody's. `audio` changes it."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        retention: Retention,
        audio: StoredAudio,
        *,
        sinks: Sequence[outbox.Recipient],
        clock: Callable[[], datetime],
        node: str | None = None,
    ) -> None:
        self._audio = audio
        self._database = database
        self._metrics = metrics
        self._retention = retention
        self._sinks = sinks
        self._clock = clock
        self._node = node

    async def find(self, whom: Identifier) -> list[Affected]:
        """The sessions that the person took part in. Changes nothing. Raises StoreError."""
        found = await self._sessions_of(whom)
        return [await self._judged(one, whom) for one in found]

    async def erase(
        self,
        whom: Identifier,
        *,
        by: str | None,
        reason: str | None,
        whole: bool = False,
        keys: Keys | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> list[Affected]:
        """Take the person out of each session, or `whole` sessions with the person away.

        What cannot be done is told, each session by itself, and said in the audit like the rest.
        `keys`: for audio that is encrypted. Unless it may `go_on`, the rest stays due. Raises StoreError.
        """
        sessions = await self._sessions_of(whom)
        subject = await asyncio.to_thread(whom.hashed, secrets.token_bytes(16))
        done: list[Affected] = []
        for first in range(0, max(1, len(sessions)), _AT_ONCE):
            some = sessions[first : first + _AT_ONCE]
            line = AuditLine([one.row.id for one in some])
            await line.begin(
                self._database,
                erasure.AuditRow(
                    at=self._clock(),
                    action="erase_sessions" if whole else "erase_person",
                    actor=by,
                    reason=reason,
                    subject=subject,
                    detail=line.detail,
                ),
            )
            for one in some:
                if not go_on():
                    done.append(await self._judged(one, whom))
                elif (there := await self._still(one, whom)) is None:
                    await self._tell(line, one.row.id)
                else:
                    done.append(await self._erased(there, whom, line, by, whole, keys or Keys()))
        # Also where nothing was erased: whoever did it before may have been cut off.
        await erasure.compact_index(self._database)
        await self._database.shorten_log()
        return done

    async def _still(self, one: _Found, whom: Identifier) -> _Found | None:
        """The session as it is by now; None: there is nothing to erase any more.

        Not as it was found, before the others were done: there may be a hold on it.
        """
        row = await self._database.read(partial(recordings.get, session_id=one.row.id))
        if row is None:
            return None
        document = SessionDocument.model_validate_json(row.document)
        people = _people_of(document, whom)
        if not people and not one.groups.keys() & groups_of(document):
            return None
        return _Found(row, people, one.groups)

    async def _erased(
        self,
        one: _Found,
        whom: Identifier,
        line: AuditLine,
        by: str | None,
        whole: bool,
        keys: Keys,
    ) -> Affected:
        found = await self._judged(one, whom)
        what = "session" if whole and one.people else "person"
        if found.outcome == "due":
            try:
                if what == "session":
                    await self._erase_session(one, found, whom, line)
                else:
                    altered = await self._erase_person(one, found, whom, keys, line)
                    found = replace(found, treatment=altered.treatment, replaces=altered.replaces)
            except UnderHold:
                found = replace(found, outcome="held")
            except InUse:
                found = replace(found, outcome="in_use")
            except Elsewhere as error:
                found = replace(found, outcome="elsewhere", cause=str(error))
            except (OSError, ValueError, StoreError) as error:
                found = replace(found, outcome="failed", cause=str(error))
                log.error("erasure.failed", session_id=one.row.id, cause=str(error))
            else:
                self._metrics.erasures_total.labels(what=what).inc()
                log.info(f"erasure.{what}_erased", session_id=one.row.id, by=by)
                if what == "session":  # its objects go, by whatever name
                    found = replace(found, named_in=None)
                line.add(one.row.id, "erased", *_marks_of(found))
                return replace(found, outcome="erased")
        await self._tell(line, one.row.id, found.outcome)
        return found

    async def _tell(self, line: AuditLine, session_id: str, *outcomes: str) -> None:
        await self._database.write(lambda c: line.note(c, session_id, *outcomes))
        line.add(session_id, *outcomes)

    async def _sessions_of(self, whom: Identifier) -> list[_Found]:
        """Those with the person, and others of groups whose id names the person: these last."""
        found: dict[str, tuple[SessionRow, list[Participant], frozenset[str]]] = {}
        naming: set[str] = set()
        after = ""
        while rows := await self._database.read(
            partial(erasure.sessions_naming, pattern=whom.pattern, after=after)
        ):
            for row in rows:
                document = SessionDocument.model_validate_json(row.document)
                people, groups = _people_of(document, whom), groups_of(document)
                there = {one for one in groups if whom.names(one, people)}
                if people or there:
                    found[row.id] = (row, people, groups)
                    naming |= there
            after = rows[-1].id
        for group in sorted(naming):
            before = None
            while rows := await self._database.read(
                partial(recordings.listing, limit=_PAGE, before=before, group_id=group)
            ):
                found |= {
                    row.id: (row, [], frozenset({group})) for row in rows if row.id not in found
                }
                before = rows[-1].started_at, rows[-1].id
        names = renamed((row, groups & naming) for row, _, groups in found.values())
        sessions = [(_Found(row, people, names), groups) for row, people, groups in found.values()]
        # The latest first: cut off, who goes on finds the session that gives the group its new name.
        last = [one for one, groups in sessions if groups & naming]
        last.sort(key=lambda one: (one.row.started_at, one.row.id), reverse=True)
        return [one for one, groups in sessions if not groups & naming] + last

    async def _judged(self, one: _Found, whom: Identifier) -> Affected:
        row, people = one.row, one.people
        document = SessionDocument.model_validate_json(row.document)
        scrub = _scrub(document, people, "")

        def look(connection: Connection) -> tuple[bool, DepositRow | None, int]:
            busy = retention.has_open_jobs(connection, row.id)
            kept = deposits.get(connection, row.id)
            latest = list(erasure.transcripts_of(connection, row.id))[-1:]
            said = json.loads(latest[0].document).get("utterances", ()) if latest else ()
            return busy, kept, sum(scrub.is_theirs(one) for one in said)

        busy, kept, utterances = await self._database.read(look)
        audio = AUDIO.validate_json(row.audio) if row.audio else FinishedAudio(())
        outcome: Outcome = why_not(row, busy, self._node) or "due"
        return Affected(
            session_id=row.id,
            started_at=row.started_at,
            outcome=outcome,
            labels=tuple(sorted(scrub.labels)),
            participant_ids=tuple(one.id for one in people),
            utterances=utterances,
            audio_seconds=round(
                sum(leg.duration for leg in audio.legs if leg.label in scrub.labels), 3
            )
            if row.audio_deleted_at is None
            else 0.0,
            cause=row.node if outcome == "elsewhere" else None,
            kept=_how_kept(row, kept),
            named_in=_named_in(kept, whom, people),
        )

    async def _erase_session(
        self, one: _Found, found: Affected, whom: Identifier, line: AuditLine
    ) -> None:
        session_id = one.row.id
        event = self._event(one, _telling(found.participant_ids, whom), found.labels, whole=True)

        def store(connection: Connection) -> None:
            erasure.delete_events(connection, session_id)
            outbox.append(connection, [event], self._sinks)
            line.note(connection, session_id, "erased")

        await self._retention.delete(session_id, store)

    async def _erase_person(
        self, one: _Found, found: Affected, whom: Identifier, keys: Keys, line: AuditLine
    ) -> Altered:
        row = one.row
        document = SessionDocument.model_validate_json(row.document)
        scrub = replace(_scrub(document, one.people, whom.user), groups=one.groups)
        event = self._event(one, _telling(scrub.ids, whom), sorted(scrub.labels), whole=False)
        if not one.people:  # the id of its group names the person, who is not in it
            altered = Altered(None, None, lambda _: None)
            await self._store_without(row, found, scrub, altered, event, line)
            return altered
        wish = Alteration(
            partial(_erase_audio, row, document, scrub),
            scrub.labels,
            needed=bool(scrub.labels),
            originals=False,
        )
        async with self._audio.altered(row, wish, keys) as altered:
            await self._store_without(row, found, scrub, altered, event, line)
        return altered

    async def _store_without(
        self,
        row: SessionRow,
        found: Affected,
        scrub: Scrub,
        altered: Altered,
        event: outbox.Event,
        line: AuditLine,
    ) -> None:
        session_id, audio = row.id, altered.audio

        def store(connection: Connection) -> None:
            now = still_free(connection, session_id)
            if not same(now, row):
                raise InUse  # somebody has changed it meanwhile
            recordings.update(
                connection,
                session_id,
                document=_dumped(scrub.document(json.loads(now.document))),
                warnings=tuple(one for one in now.warnings if not scrub.names(one)),
                audio=AUDIO.dump_json(audio).decode() if audio is not None else now.audio,
                group_id=scrub.groups.get(now.group_id or "", now.group_id),
            )
            altered.note(connection)
            for one in erasure.transcripts_of(connection, session_id):
                cleaned = scrub.document(json.loads(one.document))
                erasure.change_transcript(connection, one, text_of(cleaned), _dumped(cleaned))
            erasure.change_events(connection, _events_without(connection, session_id, scrub))
            erasure.forget_traces(connection, session_id)
            outbox.append(connection, [event], self._sinks)
            told = replace(found, treatment=altered.treatment, replaces=altered.replaces)
            line.note(connection, session_id, "erased", *_marks_of(told))

        await self._database.write(store)

    def _event(
        self, one: _Found, ids: Sequence[str], labels: Sequence[str], *, whole: bool
    ) -> outbox.Event:
        row = one.row
        document = SessionDocument.model_validate_json(row.document)
        return envelope.session_erased(
            row.id,
            row.sip_call_id,
            group_id=one.groups.get(document.group_id or "", document.group_id),
            participant_ids=ids,
            labels=labels,
            whole=whole,
            at=self._clock(),
        )


def as_json(found: Affected) -> dict[str, object]:
    """For API and command line."""
    return asdict(found) | {"started_at": found.started_at.isoformat()}


def _events_without(
    connection: Connection, session_id: str, scrub: Scrub
) -> Mapping[int, str | None]:
    changed: dict[int, str | None] = {}
    for seq, kind, body in erasure.events_of(connection, session_id):
        if kind == "session.erased":
            continue
        before = json.loads(body)
        after = scrub.event(kind, before)
        if after is None:
            changed[seq] = None
        elif after != before:
            changed[seq] = _dumped(after)
    return changed


def _scrub(document: SessionDocument, people: Sequence[Participant], user: str) -> Scrub:
    ids = {one.id for one in people}
    taken = {one.id for one in document.participants}
    numbers = (n for n in range(1, len(taken) + len(ids) + 1) if f"erased-{n}" not in taken)
    on_stream = {
        stream.label: {one.participant_id for one in stream.presences}
        for stream in document.streams
    }
    labels = frozenset(label for label, there in on_stream.items() if there & ids)
    return Scrub(
        ids={one.id: f"erased-{next(numbers)}" for one in people},
        labels=labels,
        alone=frozenset(label for label in labels if on_stream[label] <= ids),
        mentions=mentions_of([one.model_dump() for one in people], user),
    )


def _how_kept(
    row: SessionRow, kept: DepositRow | None
) -> Literal["plain", "archived", "encrypted"] | None:
    if row.audio_deleted_at is not None or row.audio is None:
        return None
    if kept is None:
        return "plain"
    if kept.plain_gone_at is not None:
        return "encrypted"
    return "archived" if kept.local_gone_at is not None else "plain"


def _erase_audio(
    row: SessionRow, document: SessionDocument, scrub: Scrub, folder: Path
) -> FinishedAudio | None:
    """Silence the person's streams, and delete what they were made from.

    None: there is no finished audio. Raises OSError.
    """
    for stream in document.streams:
        if stream.label in scrub.labels:
            for spool in folder.glob(f"{row.id}-{stream.index}.*spool*"):
                spool.unlink(missing_ok=True)
    for original in originals(folder):  # whose they are, nobody here can read
        original.unlink(missing_ok=True)
    if row.audio is None:
        return None
    audio = AUDIO.validate_json(row.audio)
    spans = {
        leg.label: _spans(document, leg.label, leg.started_at, leg.duration, scrub)
        for leg in audio.legs
        if leg.label in scrub.labels
    }
    silent = silence(folder, audio, spans)
    silent = replace(
        silent,
        legs=tuple(
            replace(leg, keys=()) if leg.label in scrub.labels else leg for leg in silent.legs
        ),
    )
    write_atomically(folder / f"{row.id}.audio.json", AUDIO.dump_json(silent, indent=1))
    return silent


def _spans(
    document: SessionDocument, label: str, begun: datetime, duration: float, scrub: Scrub
) -> list[tuple[float, float]]:
    """When the person was on a stream, in seconds of its file; all of it, if nobody else was."""
    stream = document.stream(label)
    if label in scrub.alone or stream is None:
        return [(0.0, duration)]
    spans = []
    for one in stream.presences:
        if one.participant_id in scrub.ids:
            first = (one.since - _AROUND - begun).total_seconds()
            last = (
                (one.until + _AROUND - begun).total_seconds() if one.until is not None else duration
            )
            spans.append((max(0.0, first), min(duration, last)))
    return [span for span in spans if span[0] < span[1]]


def _named_in(
    kept: DepositRow | None, whom: Identifier, people: Sequence[Participant]
) -> str | None:
    """The folder in a store whose name has theirs: of a layout with {group} or the like, of before."""
    if kept is None or kept.prefix is None or not whom.names(kept.prefix, people):
        return None
    return f"{kept.place}/{kept.prefix}"


def _marks_of(found: Affected) -> list[str]:
    marks = marks_of(found.treatment, found.replaces)
    return marks + ["named_in_archive"] * (found.named_in is not None)


def _people_of(document: SessionDocument, whom: Identifier) -> list[Participant]:
    return [one for one in document.participants if whom.matches(one.aor)]


def _telling(ids: Iterable[str], whom: Identifier) -> list[str]:
    """Ids by which consumers know the person, unless the SRC made them of the address itself."""
    return [id for id in ids if whom.user not in id.lower()]


def _dumped(value: object) -> str:
    # As the models write it, so that the same text finds it.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
