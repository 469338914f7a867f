"""Which streams are listened to live, and what becomes of the lines: events on the call's time line.

Nothing here may hold up a recording: what a recorder tells is noted at once, the rest is done later.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import structlog
from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import TranscriptPartialData
from siprec_bridge.live.control import LiveStream
from siprec_bridge.live.engine import LiveEngine
from siprec_bridge.live.recogniser import Line, Wanted
from siprec_bridge.redaction import Policy
from siprec_bridge.siprec import SessionDocument, StreamDocument
from siprec_bridge.store import Database, Event, SessionRow, StoreError, outbox, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Word
from siprec_bridge.transcription import Choice

if TYPE_CHECKING:
    from siprec_bridge.redaction.live import LiveLines

log = structlog.get_logger()

_LINES = 2000  # that may wait; of growing ones fewer
_GROWING = 500
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

LiveMode = Literal["off", "on", "rules"]


class Ears(Protocol):
    """What is asked of whoever receives the streams."""

    async def listen(self, stream_id: str) -> None:
        """Have what arrives on a stream on disk soon. Raises OSError."""
        ...


class Listeners(Protocol):
    """What is asked of who tells listeners."""

    async def pass_on(self, event: Event) -> None:
        """Tell an event that is stored nowhere. Raises StoreError."""
        ...


@dataclass(slots=True)
class _Call:
    """A session that is listened to, by its latest document."""

    row: SessionRow
    document: SessionDocument
    wish: Choice
    open: dict[str, str] = field(default_factory=dict)  # stream id -> its name to the live process
    names: dict[str, str] = field(default_factory=dict)  # that name -> label, until it is closed
    openings: int = 0
    # By label: whose utterance was told of last, and its number on the stream.
    numbers: dict[str, tuple[tuple[str, int, int], int]] = field(default_factory=dict)
    told: int = 0
    withheld: bool = False
    lines: "LiveLines | None" = None  # where something is taken out of it


@dataclass(frozen=True, slots=True)
class _Told:
    """A line as the live process told it: of which stream, by what name, in which of its lives."""

    call: _Call
    name: str
    label: str
    life: int
    line: Line


class LiveDesk:
    """Follows sessions. `choose` is what the rules make of one, `policy_of` what is taken out of it.

    Where that is anything, it is not heard live, whatever else is said of it; or, if `masked`, what
    may be of that kind is taken out of its lines. Up to `processes` listen.
    """

    def __init__(
        self,
        database: Database,
        media: Ears,
        listeners: Listeners,
        metrics: Metrics,
        *,
        mode: LiveMode,
        wanted: Wanted,
        choose: Callable[[SessionDocument, str], Choice],
        sinks: Sequence[outbox.Recipient],
        clock: Callable[[], datetime],
        policy_of: Callable[[SessionDocument, str], Policy] = lambda document, peer: Policy(),
        masked: bool = False,
        processes: int = 1,
    ) -> None:
        self._database = database
        self._media = media
        self._listeners = listeners
        self._metrics = metrics
        self._mode = mode
        self._wanted = wanted
        self._choose = choose
        self._sinks = sinks
        self._clock = clock
        self._policy_of = policy_of
        self._masked = masked
        self._calls: dict[str, _Call] = {}
        self._by_name: dict[str, _Call] = {}
        self._lines: asyncio.Queue[_Told] = asyncio.Queue(_LINES)
        self._to_hear: asyncio.Queue[str] = asyncio.Queue()  # streams; at most a few for each call
        self.engine = LiveEngine(metrics, self._take, self._closed, most=processes)

    async def run(self) -> None:
        """Listen until cancelled."""
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self.engine.run(), name="live processes")
            parts.create_task(self._publish(), name="live lines")
            parts.create_task(self._have_heard(), name="live sweeps")

    def follow(self, row: SessionRow, document: SessionDocument) -> None:
        """A session was answered, or has changed."""
        call = self._calls.get(row.id)
        policy = self._policy_of(document, row.peer)
        if policy and not self._masked:
            if call is not None:
                call.withheld = True  # also what was said and not told yet
                self.end(row.id, document)
            return
        fresh = call is None
        if call is None:
            choice = self._choose(document, row.peer)
            wanted = self._mode == "on" if choice.wish.live is None else choice.wish.live
            if not wanted:
                return
            late = any(
                one.opened_at < self._clock() - timedelta(seconds=2) for one in document.streams
            )
            call = self._calls[row.id] = _Call(row, document, choice)
            fresh = not late
        call.document = document
        _take_out(call, policy)
        for stream in document.streams:
            id = f"{row.id}-{stream.index}"
            if stream.state == "closed":
                self._close(call, [id])
            elif id not in call.open:
                self._open(call, id, stream, from_now=not fresh)

    def end(self, session_id: str, document: SessionDocument) -> None:
        """A session's streams are closed; what was said last may still come."""
        call = self._calls.pop(session_id, None)
        if call is not None:
            call.document = document
            self._close(call, list(call.open))

    def _open(self, call: _Call, id: str, stream: StreamDocument, *, from_now: bool) -> None:
        call.openings += 1
        name = f"{id}.{call.openings}"
        call.open[id], call.names[name] = name, stream.label
        self._by_name[name] = call
        wish = call.wish.wish
        wanted = Wanted(
            url=self._wanted.url,
            max_lag=self._wanted.max_lag,
            token=self._wanted.token,
            model=self._wanted.model,
            language=None if wish.language == "auto" else wish.language,
            prompt=wish.prompt,
        )
        spool = Path(call.row.folder) / f"{id}.spool"
        self.engine.open(LiveStream(name, spool, wanted, from_now=from_now))
        self._to_hear.put_nowait(id)

    def _close(self, call: _Call, ids: Sequence[str]) -> None:
        self.engine.close([call.open.pop(id) for id in ids if id in call.open])

    def _closed(self, name: str) -> None:
        call = self._by_name.pop(name, None)
        if call is not None:
            call.names.pop(name, None)

    def _take(self, stream_id: str, life: int, line: Line) -> None:
        call = self._by_name.get(stream_id)
        if call is None:
            return
        if self._lines.qsize() >= (_LINES if line.settled else _GROWING):
            self._metrics.live_lines_dropped_total.inc()
            return
        self._lines.put_nowait(_Told(call, stream_id, call.names[stream_id], life, line))

    async def _have_heard(self) -> None:
        while True:
            id = await self._to_hear.get()
            try:
                await self._media.listen(id)
            except OSError as error:
                log.warning("live.not_swept_sooner", stream=id, cause=str(error))

    async def _publish(self) -> None:
        while True:
            told = await self._lines.get()
            call = told.call
            try:
                await self._tell(told)
            except StoreError as error:
                self._metrics.live_lines_dropped_total.inc()
                log.error("live.line_not_stored", session_id=call.row.id, cause=str(error))
            except Exception:  # one line's trouble must not end the others
                self._metrics.live_lines_dropped_total.inc()
                log.exception("live.line_failed", session_id=call.row.id)

    async def _tell(self, told: _Told) -> None:
        call, line = told.call, told.line
        event = None if call.withheld else self._event(told)
        if event is None:
            return
        if line.settled:
            sinks = self._sinks

            def store(connection: Connection) -> None:
                # Not of a session that was deleted meanwhile.
                if recordings.get(connection, call.row.id) is not None:
                    outbox.append(connection, [event], sinks)

            await self._database.write(store)
        else:
            await self._listeners.pass_on(event)
        kind = "settled" if line.settled else "growing"
        late = (self._clock() - _at(line.end_ns)).total_seconds()
        self._metrics.live_lines_total.labels(kind=kind).inc()
        self._metrics.live_latency_seconds.labels(kind=kind).observe(max(0.0, late))

    def _event(self, told: _Told) -> Event | None:
        call, label, line = told.call, told.label, told.line
        began, document = call.row.started_at, call.document

        def seconds(at_ns: int) -> float:
            return round(max(0.0, (_at(at_ns) - began).total_seconds()), 3)

        words = tuple(
            Word(text=text, start=seconds(start), end=seconds(end), probability=sure)
            for text, start, end, sure in line.words
        )
        text, start, end = line.text, seconds(line.start_ns), seconds(line.end_ns)
        if call.lines is not None:
            from siprec_bridge.redaction.live import LiveText

            whole = LiveText(label, text, words, start, end, line.language, line.settled)
            said = call.lines.clean(whole)
            if said is None:
                return None
            text, words = said.text, said.words
        call.told += 1
        data = TranscriptPartialData(
            session_id=call.row.id,
            sip_call_id=call.row.sip_call_id,
            group_id=document.group_id,
            call_ids=dict(document.call_ids),
            label=label,
            participant=document.speaker(label, _at((line.start_ns + line.end_ns) // 2)),
            utterance=_number(told),
            settled=line.settled,
            language=line.language,
            start=start,
            end=end,
            starts_at=_at(line.start_ns),
            ends_at=_at(line.end_ns),
            text=text,
            words=words,
            model=line.model or self._wanted.model,
        )
        return envelope.transcript_partial(data, call.told)


def _take_out(call: _Call, policy: Policy) -> None:
    """By the policy that is known now; rules may have one only once the metadata has come."""
    if call.lines is not None:
        call.lines.policy = policy
    elif policy:
        # Only now: most bridges take nothing out, and need none of its libraries.
        from siprec_bridge.redaction.live import LiveLines

        call.lines = LiveLines(policy)


def _number(told: _Told) -> int:
    """An utterance's number on its stream, also after process or stream began anew."""
    numbers, which = told.call.numbers, (told.name, told.life, told.line.utterance)
    last, number = numbers.get(told.label, (None, -1))
    if last != which:
        number += 1
        numbers[told.label] = which, number
    return number


def _at(at_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_ns // 1000)
