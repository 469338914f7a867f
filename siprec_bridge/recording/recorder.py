"""One recording session, readable top to bottom: answered, recorded, ended, archived."""

import asyncio
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import Connection

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import PausedStream
from siprec_bridge.media import (
    DtlsTask,
    MediaEvent,
    NoPortLeft,
    StreamPort,
    StreamReport,
    StreamSpec,
)
from siprec_bridge.recording import long_past
from siprec_bridge.recording.archive import facts_of
from siprec_bridge.recording.desk import Desk
from siprec_bridge.sdp import Fingerprint
from siprec_bridge.sip import (
    AckReceived,
    DialogEnded,
    InviteCancelled,
    InviteReceived,
    Refused,
    Request,
    RequestAnswered,
    RequestId,
    Response,
    UpdateReceived,
)
from siprec_bridge.siprec import (
    SNAPSHOT_REQUEST,
    SNAPSHOT_REQUEST_TYPE,
    Body,
    Changes,
    PauseOrder,
    RecordingSession,
    SessionDocument,
    StreamQuality,
    StreamToRecord,
    parse_body,
    read_fork,
)
from siprec_bridge.store import Event as StoredEvent
from siprec_bridge.store import SessionRow, StoreError, outbox, recordings

log = structlog.get_logger()

_BUSY = (("Retry-After", "10"),)
_SNAPSHOTS = 3  # an SRC whose documents stay broken is not asked for ever

_PROBE_S = 30.0  # between questions to an SRC that sends nothing
_PROBES = 3  # that may stay without an answer


class NotRecording(Exception):
    """The session is over, or was never answered."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """Somebody's wish to pause, or to resume what has this order's target.

    `done`: the labels of the streams that are not recorded then; else what `instruct` raises.
    """

    order: PauseOrder
    pause: bool
    done: asyncio.Future[tuple[str, ...]]


Event = (
    InviteReceived
    | UpdateReceived
    | AckReceived
    | InviteCancelled
    | RequestAnswered
    | DialogEnded
    | MediaEvent
    | Instruction
)


class Recorder:
    """Owns one recording session. `deliver` its dialog's events; `run` ends when it is archived."""

    def __init__(
        self,
        session_id: str,
        invite: InviteReceived,
        desk: Desk,
        *,
        on_stored: Callable[["Recorder"], None] = lambda recorder: None,
    ) -> None:
        self.session_id = session_id
        self.dialog = invite.dialog
        self._invite = invite
        self._desk = desk
        self._on_stored = on_stored
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._idle = asyncio.Event()
        self._folder = desk.recordings / session_id
        self._ports: dict[int, StreamPort] = {}  # by m-line
        self._updates = 0
        self._untold: list[StoredEvent] = []  # updates that the database did not take yet
        self._snapshots_left = _SNAPSHOTS
        self._silent: set[str] = set()  # streams that carry nothing, by their ids
        self._unanswered = 0  # probes
        self._followed: RequestId = ""  # the last re-INVITE or UPDATE that changed something
        self._over = False  # no instruction is taken any more
        self._started_at = desk.clock()
        self._session = RecordingSession(
            session_id,
            desk.policy,
            sdp_session_id=int(desk.clock().timestamp() * 1e6),
            fork=read_fork(invite.request),
            new_key=secrets.token_bytes,
            certificate=self._fingerprint if desk.certificate is not None else None,
            over_tls=invite.peer.transport == "tls",
        )

    def is_cancelled_by(self, event: InviteCancelled) -> bool:
        """Whether it takes the call back, and not only a change in it."""
        return event.id == self._invite.id

    def deliver(self, event: Event) -> None:
        """Hand over what happened in this session's dialog."""
        self._idle.clear()
        self._inbox.put_nowait(event)

    async def instruct(self, order: PauseOrder, *, pause: bool) -> tuple[str, ...]:
        """Record less, or lift the order with this target, and note it in the session.

        Returns once it holds, with the labels of the streams that are not recorded now. Raises
        LookupError (no such stream, participant or order), NotRecording, OSError (no media worker).
        """
        if self._over:
            raise NotRecording
        done: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self.deliver(Instruction(order, pause, done))
        return await done

    async def settled(self) -> None:
        """Return once all that was delivered is dealt with: an end, when its audio is archived."""
        await self._idle.wait()

    async def run(self) -> None:
        """Record until the dialog ends. Whatever goes wrong ends this session alone."""
        structlog.contextvars.bind_contextvars(
            session_id=self.session_id, sip_call_id=self.dialog.call_id
        )
        try:
            await self._run()
        finally:
            self._turn_instructions_down()
            self._idle.set()

    async def _run(self) -> None:
        try:
            await self._answer(self._invite)
        except Refused as refusal:
            self._refuse(self._invite.id, refusal)
            await self._give_up("refused", status=refusal.status, reason=refusal.reason)
            return
        except (OSError, StoreError) as error:  # no room, or a part of ours is down
            self._refuse(self._invite.id, Refused(503, "Service Unavailable", _BUSY))
            await self._give_up("not_recordable", cause=str(error))
            return
        except Exception:  # our fault: this call fails, with an answer, and no other
            log.exception("session.failed")
            self._refuse(self._invite.id, Refused(500, "Server Internal Error"))
            await self._give_up("failed")
            return
        try:
            cause = await self._record()
        except Exception:  # our fault: hang up, and keep what was recorded
            log.exception("session.failed")
            self._desk.signalling.request(self.dialog, "BYE")
            cause = "failed"
        self._turn_instructions_down()
        await self._end(cause)

    async def _answer(self, invite: InviteReceived) -> None:
        at = self._desk.clock()
        changes = self._session.offer(_body(invite.request), at)
        await self._apply(changes, at)
        sdp = self._session.answer(self._local(), self._desk.address_for(invite.peer))
        document = self._session.document()
        self._row = row = SessionRow(
            id=self.session_id,
            sip_call_id=self.dialog.call_id,
            state="recording",
            started_at=at,
            peer=f"{invite.peer.transport}:{invite.peer.host}:{invite.peer.port}",
            folder=str(self._folder),
            document=document.model_dump_json(),
            warnings=document.warnings,
            node=self._desk.database.node,
            group_id=document.group_id,
        )
        started = envelope.session_started(facts_of(document, self.dialog.call_id, at))

        def store(connection: Connection) -> None:
            recordings.insert(connection, row)
            outbox.append(connection, [started], self._desk.sinks)

        # On disk before we say yes: from the 200 on, nothing of this call may be lost.
        await self._desk.database.write(store)
        self._on_stored(self)
        self._started_at = at
        self._answer_with(invite.id, sdp)
        if self._desk.live is not None:
            self._desk.live.follow(row, document)
        self._desk.metrics.sessions_active.inc()
        log.info(
            "session.started",
            peer=row.peer,
            streams=len(document.streams),
            participants=len(document.participants),
            warnings=list(document.warnings),
        )

    async def _record(self) -> str:
        """Follow the dialog to its end; returns the cause."""
        while True:
            if self._inbox.empty():
                self._idle.set()
            match await self._next_event():
                case InviteReceived() | UpdateReceived() as change:
                    await self._renegotiate(change)
                case AckReceived(request=request):
                    await self._take_ack(request)
                    self._ask_for_metadata()
                case MediaEvent(name="silent", stream_id=stream):
                    self._silent.add(stream)
                case MediaEvent(name="started" | "heard_again", stream_id=stream):
                    self._silent.discard(stream)
                case MediaEvent() as event:
                    await self._flag(event)
                case Instruction() as instruction:
                    await self._follow(instruction)
                case RequestAnswered(method="OPTIONS", response=response):
                    self._unanswered = self._unanswered + 1 if response.status == 408 else 0
                    if self._unanswered >= _PROBES:
                        log.warning("session.peer_gone", probes=self._unanswered)
                        self._desk.signalling.request(self.dialog, "BYE")
                        return "peer_gone"
                case RequestAnswered(method=method, response=response):
                    if response.status >= 300:
                        log.info("session.request_refused", status=response.status)
                    elif method == "INVITE":
                        await self._take_refresh(response)
                case InviteCancelled(id=id):
                    if id == self._invite.id:
                        return "cancelled"
                    if id == self._followed:  # and not answered: it is as if it had never come
                        await self._go_back()
                case DialogEnded(cause=cause, request=request):
                    self._take_last_metadata(request)
                    return cause

    async def _next_event(self) -> Event:
        """What happens next; an SRC that sends nothing is asked whether it knows of the call.

        One that has crashed sends no BYE either, and its call must not be recorded for ever.
        """
        while True:
            try:
                async with asyncio.timeout(_PROBE_S if self._is_quiet() else None):
                    return await self._inbox.get()
            except TimeoutError:
                self._desk.signalling.request(self.dialog, "OPTIONS")

    def _is_quiet(self) -> bool:
        """Whether no stream is heard: silent for RTP_TIMEOUT, or on hold."""
        paused = set(self._session.streams_paused())
        return all(
            index in paused or self._stream_id(index) in self._silent for index in self._ports
        )

    async def _renegotiate(self, change: InviteReceived | UpdateReceived) -> None:
        at = self._desk.clock()
        invite = isinstance(change, InviteReceived)
        try:
            changes = self._session.offer(_body(change.request), at, invite=invite)
        except Refused as refusal:
            self._refuse(change.id, refusal)
            return
        try:
            await self._follow_sdp(changes, at)
        except Refused as refusal:
            self._session.withdraw()
            self._refuse(change.id, refusal)
            return
        sdp: bytes | None = None
        if changes.needs_answer:
            sdp = self._session.answer(self._local(), self._desk.address_for(change.peer))
        self._followed = change.id
        await self._store_update(changes, at)
        self._answer_with(change.id, sdp)
        if not invite:
            self._ask_for_metadata()

    async def _go_back(self) -> None:
        """Undo the last change: its CANCEL came while we were following it."""
        self._followed = ""
        at = self._desk.clock()
        changes = self._session.cancelled(at)
        try:
            await self._follow_sdp(changes, at)
        except Refused as refusal:  # a stream that it had removed; the others are as before
            log.error("session.not_as_before", cause=str(refusal))
        await self._store_update(changes, at)

    async def _follow(self, instruction: Instruction) -> None:
        """Pause or resume as told by somebody other than the SRC, which is not asked."""
        at, order, done = self._desk.clock(), instruction.order, instruction.done
        failure: Exception | None = None
        try:
            if instruction.pause:
                changes = self._session.pause(order, at)
            else:
                changes = self._session.resume(*order.target, at)
        except LookupError as error:
            failure = error
        else:
            try:
                await self._apply(changes, at)
            except OSError as error:  # it holds once a worker is there again, but nobody knows when
                failure = error
            log.info(
                "session.told_to_pause" if instruction.pause else "session.told_to_resume",
                label=order.label,
                participant=order.participant_id,
                by=order.by,
                reason=order.reason,
            )
            await self._store_update(changes, at)
        if done.done():
            return
        if failure is not None:
            done.set_exception(failure)
            return
        streams = self._session.document().streams
        done.set_result(tuple(one.label for one in streams if one.state == "paused"))

    def _turn_instructions_down(self) -> None:
        """What comes to an instruction after the end of the call."""
        self._over = True
        waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for event in waiting:
            if not isinstance(event, Instruction):
                self._inbox.put_nowait(event)
            elif not event.done.done():
                event.done.set_exception(NotRecording())

    async def _take_ack(self, ack: Request) -> None:
        """Take the answer to an offer of ours, and metadata, as far as the ACK has any."""
        at = self._desk.clock()
        try:
            body = _body(ack)
        except Refused as refusal:  # there is no answer to an ACK that could say so
            log.warning("session.ack_body_ignored", reason=refusal.reason)
            body = Body()
        try:
            changes = self._session.acknowledged(body, at)
        except Refused as refusal:
            log.warning("session.late_answer_refused", reason=refusal.reason)
            self._desk.signalling.request(self.dialog, "BYE")
            return
        await self._follow_sdp(changes, at)
        await self._store_update(changes, at)

    async def _take_refresh(self, answer: Response) -> None:
        """Take the answer to the offer with which our session timer was refreshed."""
        at = self._desk.clock()
        body = Body()
        try:
            body = _body(answer)
            changes = self._session.refreshed(body, at)
        except Refused as refusal:  # the SRC is there, and what was agreed on before still holds
            log.warning("session.refresh_answer_ignored", reason=refusal.reason)
            changes = self._session.offer(Body(metadata=body.metadata), at, invite=False)
        await self._follow_sdp(changes, at)
        await self._store_update(changes, at)

    async def _follow_sdp(self, changes: Changes, at: datetime) -> None:
        """Apply what holds, whether or not a media worker answers. Raises Refused (503)."""
        try:
            await self._apply(changes, at)
        except OSError as error:  # one that starts again is told
            log.error("session.media_behind", cause=str(error))

    async def _flag(self, first: MediaEvent) -> None:
        """Warn of audio that is missing, of which a worker's death or a full disk has several streams
        tell; one update for all.
        """
        if not self._note_trouble(first):
            return  # told in the log
        waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for event in waiting:
            if not self._note_trouble(event):
                self._inbox.put_nowait(event)
        await self._store_update(Changes(metadata_changed=True), self._desk.clock())

    def _note_trouble(self, event: Event) -> bool:
        match event:
            case MediaEvent(name="interrupted" | "lost", stream_id=stream, seconds=seconds):
                self._session.note_interruption(self._index_of(stream), seconds)
            case MediaEvent(name="write_failed", stream_id=stream, cause=str(cause)):
                self._session.note_unwritten(self._index_of(stream), cause)
            case MediaEvent(name="handshake_failed", stream_id=stream, cause=str(cause)):
                self._session.note_handshake(self._index_of(stream), cause)
            case _:
                return False
        return True

    def _ask_for_metadata(self) -> None:
        """Ask for a complete document when one was lost on us. RFC 7866 §9.2."""
        if not self._session.metadata_lost or self._snapshots_left <= 0:
            return
        headers = self._invite.request.headers
        accepted = {one.partition(";")[0].strip().lower() for one in headers.values("Accept")}
        methods = {one.upper() for one in headers.values("Allow")}
        if SNAPSHOT_REQUEST_TYPE not in accepted or "UPDATE" not in methods:
            return
        self._snapshots_left -= 1
        log.info("session.snapshot_requested")
        self._desk.signalling.request(
            self.dialog,
            "UPDATE",
            headers=(("Content-Disposition", "recording-session"),),
            content_type=SNAPSHOT_REQUEST_TYPE,
            body=SNAPSHOT_REQUEST,
        )

    def _take_last_metadata(self, bye: Request | None) -> None:
        """Some SRCs send a last metadata document in the BYE."""
        if bye is None or not bye.body:
            return
        try:
            last = _body(bye)
            self._session.offer(Body(metadata=last.metadata), self._desk.clock(), invite=False)
        except Refused as refusal:
            log.warning("session.bye_body_ignored", reason=refusal.reason)

    async def _apply(self, changes: Changes, at: datetime) -> None:
        """Make the media engine follow what was negotiated.

        Raises Refused (503) where a stream cannot be opened, OSError where no media worker answers:
        it is told of the rest when it does.
        """
        media = self._desk.media
        opened: list[int] = []
        outcomes = await asyncio.gather(
            *(media.open(self._spec(stream)) for stream in changes.opened), return_exceptions=True
        )
        failures: list[BaseException] = []
        for stream, outcome in zip(changes.opened, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                log.error("session.stream_not_opened", label=stream.label, cause=str(outcome))
                failures.append(outcome)
            else:
                self._ports[stream.index] = outcome
                opened.append(stream.index)
        if failures:
            await media.close([self._stream_id(index) for index in opened])
            for index in opened:
                del self._ports[index]
            if isinstance(failures[0], NoPortLeft | OSError):
                raise Refused(503, "Service Unavailable", _BUSY) from failures[0]
            raise failures[0]
        told = [media.update(self._spec(stream)) for stream in changes.changed]
        told += [media.pause(self._stream_id(index), True, at) for index in changes.paused]
        told += [media.pause(self._stream_id(index), False, at) for index in changes.resumed]
        untold = [one for one in await asyncio.gather(*told, return_exceptions=True) if one]
        if changes.closed:
            reports = await media.close([self._stream_id(index) for index in changes.closed])
            self._note_quality(reports)
            for index in changes.closed:
                self._ports.pop(index, None)
        for failure in untold:
            raise failure

    async def _store_update(self, changes: Changes, at: datetime) -> None:
        """Note the change and tell the listeners; a full disk does not end the call."""
        if not changes.any:
            return
        self._updates += 1
        await self._shed()
        document = self._session.document()
        facts = facts_of(document, self.dialog.call_id, at)
        number = self._updates
        labels = {one.index: one.label for one in document.streams}
        events = self._untold
        if changes.metadata_changed or changes.opened or changes.closed:
            events.append(envelope.session_updated(facts, number))
        if changes.paused:
            paused = [labels[index] for index in changes.paused]
            reasons = _reasons(document, paused)
            events.append(envelope.session_paused(facts, number, reasons))
            for one in reasons:
                self._desk.metrics.stream_pauses_total.labels(cause=one.cause).inc()
        if changes.resumed:
            resumed = [labels[index] for index in changes.resumed]
            events.append(envelope.session_resumed(facts, number, resumed))

        def store(connection: Connection) -> None:
            recordings.update(
                connection,
                self.session_id,
                document=document.model_dump_json(),
                warnings=document.warnings,
                group_id=document.group_id,
            )
            outbox.append(connection, events, self._desk.sinks)

        try:
            await self._desk.database.write(store)
            self._untold = []
        except StoreError as error:  # stored with the next change, or with the end
            log.error("session.update_not_stored", cause=str(error))
        if self._desk.live is not None:
            self._desk.live.follow(self._row, document)
        log.info(
            "session.updated",
            opened=len(changes.opened),
            closed=len(changes.closed),
            paused=len(changes.paused),
            resumed=len(changes.resumed),
            metadata=changes.metadata_changed,
        )

    async def _shed(self) -> None:
        """Keep the document of a call of weeks small: what is long over, the archive puts back."""
        past = self._session.long_past()
        if not past:
            return
        try:
            await asyncio.to_thread(long_past.append, self._folder, self.session_id, past)
        except OSError as error:  # then it stays large
            log.warning("session.past_not_noted", cause=str(error))
            return
        self._session.forget(past)

    async def _end(self, cause: str) -> None:
        """Close the streams, note the end, and have the audio archived."""
        at = self._desk.clock()
        self._desk.metrics.sessions_active.dec()
        reports = await self._desk.media.close([self._stream_id(index) for index in self._ports])
        self._note_quality(reports)
        while not self._inbox.empty():  # what the closing itself brought to light
            self._note_trouble(self._inbox.get_nowait())
        self._session.end(at)
        if self._desk.live is not None:
            self._desk.live.end(self.session_id, self._session.document())
        log.info(
            "session.ended",
            cause=cause,
            seconds=round((at - self._started_at).total_seconds(), 3),
            packets=sum(report.packets for report in reports),
            lost=sum(report.lost for report in reports),
        )
        document = self._session.document()
        await self._desk.archive.end(self._row, cause, at, document, self._untold)

    async def _give_up(self, event: str, **why: object) -> None:
        """An INVITE that came to nothing leaves nothing behind."""
        log.warning(f"session.{event}", **why)
        await self._desk.media.close([self._stream_id(index) for index in self._ports])
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _answer_with(self, id: RequestId, sdp: bytes | None) -> None:
        kind = "application/sdp" if sdp is not None else None
        self._desk.signalling.respond(id, 200, content_type=kind, body=sdp or b"")

    def _refuse(self, id: RequestId, refusal: Refused) -> None:
        self._desk.signalling.respond(
            id, refusal.status, reason=refusal.reason, headers=refusal.headers
        )

    def _local(self) -> dict[int, int]:
        return {index: port.rtp_port for index, port in self._ports.items()}

    def _fingerprint(self) -> Fingerprint:
        if self._desk.certificate is None:
            raise ValueError("there is no certificate")
        return self._desk.certificate().fingerprint

    def _dtls(self, stream: StreamToRecord) -> DtlsTask | None:
        if not stream.fingerprints or self._desk.certificate is None:
            return None
        return DtlsTask(stream.fingerprints, self._desk.certificate().pem)

    def _spec(self, stream: StreamToRecord) -> StreamSpec:
        return StreamSpec(
            stream_id=self._stream_id(stream.index),
            session_id=self.session_id,
            index=stream.index,
            label=stream.label,
            codecs=stream.codecs,
            folder=self._folder,
            host=self._desk.receive_at(self._invite.peer),
            keys=stream.keys,
            dtls=self._dtls(stream),
            rtcp=stream.rtcp,
            rtcp_mux=stream.rtcp_mux,
            peer=self._invite.peer.host,
        )

    def _note_quality(self, reports: Sequence[StreamReport]) -> None:
        indices = {self._stream_id(index): index for index in self._ports}
        for one in reports:
            quality = StreamQuality(
                packets=one.packets,
                lost=one.lost,
                loss_ratio=round(one.loss_ratio, 6) if one.loss_ratio is not None else None,
                duplicates=one.duplicates,
                unauthenticated=one.unauthenticated,
                jitter_ms=one.jitter_ms,
                mos=one.mos,
            )
            self._session.note_quality(indices[one.stream_id], quality)

    def _stream_id(self, index: int) -> str:
        return f"{self.session_id}-{index}"

    def _index_of(self, stream_id: str) -> int:
        return int(stream_id.removeprefix(f"{self.session_id}-"))


def _reasons(document: SessionDocument, labels: Sequence[str]) -> list[PausedStream]:
    """Why these streams have just been paused."""
    found: list[PausedStream] = []
    for label in labels:
        stream = document.stream(label)
        pauses = stream.pauses if stream is not None else ()
        found += [
            PausedStream(
                label=label,
                cause=one.cause,
                participant_id=one.participant_id,
                by=one.by,
                reason=one.reason,
            )
            for one in pauses
            if one.until is None
        ]
    return found


def _body(message: Request | Response) -> Body:
    return parse_body(message.content_type, message.headers.get("Content-Encoding"), message.body)
