"""All calls: gives each dialog its recorder, keeps recorders apart, and stops in good order."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable

import structlog

from siprec_bridge.media import MediaEvent
from siprec_bridge.recording.capacity import Capacity
from siprec_bridge.recording.desk import Desk
from siprec_bridge.recording.recorder import NotRecording, Recorder
from siprec_bridge.sip import (
    AckReceived,
    DialogEnded,
    DialogId,
    InviteCancelled,
    InviteReceived,
    Output,
    RequestAnswered,
    RequestReceived,
    UpdateReceived,
)
from siprec_bridge.siprec import PauseOrder, is_siprec

log = structlog.get_logger()

_OPTIONS_HEADERS = (
    ("Accept", "application/sdp, application/rs-metadata+xml, application/rs-metadata"),
    ("Accept", "multipart/mixed"),
    ("Accept-Encoding", "identity"),
    ("Accept-Language", "en"),
)
_BUSY = (("Retry-After", "10"),)
# Of media events, by recorders.
_MINDED = ("silent", "heard_again", "interrupted", "lost", "handshake_failed", "write_failed")
_REMEMBERED = 20_000


class RecordingService:
    """The SIP side's listener. One task per call; none of them can end another.

    While it is stopping or full, new calls and OPTIONS get 503 with Retry-After, so that the SRC
    goes elsewhere.
    """

    def __init__(
        self,
        desk: Desk,
        capacity: Capacity | None = None,
        *,
        siprec_only: bool = False,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._desk = desk
        self._siprec_only = siprec_only
        self._new_id = new_id
        self._capacity = capacity or Capacity()
        self._calls: dict[DialogId, Recorder] = {}
        self._recorders: dict[str, Recorder] = {}  # by session id, until the audio is archived
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: dict[str, float] = {}  # since when calls wait to be stored, oldest first
        self._stored: OrderedDict[str, str] = OrderedDict()  # Call-ID to session id, newest last
        self._stopping = False

    @property
    def active(self) -> int:
        """Dialogs that are being recorded."""
        return len(self._calls)

    def call_id_of(self, session_id: str) -> str | None:
        """The SIP Call-ID of a session that is being recorded or archived."""
        recorder = self._recorders.get(session_id)
        return recorder.dialog.call_id if recorder is not None else None

    def session_of(self, call_id: str) -> str | None:
        """The id of the session with this SIP Call-ID, if it is stored and not long over."""
        return self._stored.get(call_id)

    async def pause(self, session_id: str, order: PauseOrder) -> tuple[str, ...]:
        """Record less of a running session; returns the labels of all that is not recorded then.

        Raises LookupError (no such stream or participant), NotRecording, OSError.
        """
        return await self._recording(session_id).instruct(order, pause=True)

    async def resume(self, session_id: str, order: PauseOrder) -> tuple[str, ...]:
        """Lift the order with the same target; returns and raises as `pause` does."""
        return await self._recording(session_id).instruct(order, pause=False)

    def on_sip(self, event: Output) -> None:
        """Take what the SIP side reports; never blocks."""
        match event:
            case InviteReceived(initial=True):
                self._start(event)
            case (
                InviteReceived() | UpdateReceived() | AckReceived()
                | InviteCancelled() | RequestAnswered() | DialogEnded()
            ):  # fmt: skip
                recorder = self._calls.get(event.dialog)
                if recorder is None:
                    return
                recorder.deliver(event)
                over = isinstance(event, DialogEnded) or (
                    isinstance(event, InviteCancelled) and recorder.is_cancelled_by(event)
                )
                if over:
                    del self._calls[event.dialog]
            case RequestReceived():
                self._answer(event)
            case _:
                pass  # bytes to send and bookkeeping: the listener's business

    def on_media(self, event: MediaEvent) -> None:
        """Take what the media side noticed of a stream."""
        recorder = self._recorders.get(event.session_id)
        if recorder is not None and event.name in _MINDED:
            recorder.deliver(event)

    async def settled(self) -> None:
        """Return once every recorder has dealt with what it was told so far."""
        for recorder in list(self._recorders.values()):
            await recorder.settled()

    async def stop(self, patience: float) -> None:
        """Take no new calls; let running ones end, hang up on those that do not, archive all."""
        self._stopping = True
        if self._tasks:
            log.info("service.draining", calls=self.active, patience_s=patience)
            await asyncio.wait(self._tasks, timeout=patience)
        for dialog in list(self._calls):
            self._desk.signalling.request(dialog, "BYE")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        for task in self._tasks:  # what is left is on disk and is recovered at the next start
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _recording(self, session_id: str) -> Recorder:
        recorder = self._recorders.get(session_id)
        if recorder is None:
            raise NotRecording
        return recorder

    def _unavailable(self) -> str | None:
        if self._stopping:
            return "draining"
        oldest = next(iter(self._starting.values()), None)
        waiting = asyncio.get_running_loop().time() - oldest if oldest is not None else 0.0
        return self._capacity.exhausted_by(self.active, waiting)

    def _start(self, invite: InviteReceived) -> None:
        if self._siprec_only and not is_siprec(invite.request):
            # RFC 3261 §21.4.16: what it would have to support.
            self._turn_away(invite, "not_siprec", 421, (("Require", "siprec"),))
            return
        cause = self._unavailable()
        if cause is None:
            now = asyncio.get_running_loop().time()
            cause = "rate" if self._capacity.too_fast(invite.peer.host, now) else None
        if cause is not None:
            self._turn_away(invite, cause, 503, _BUSY)
            return
        recorder = Recorder(self._new_id(), invite, self._desk, on_stored=self._remember)
        self._calls[invite.dialog] = recorder
        self._recorders[recorder.session_id] = recorder
        task = asyncio.create_task(recorder.run(), name=f"recorder {recorder.session_id}")
        self._tasks.add(task)
        self._starting[recorder.session_id] = asyncio.get_running_loop().time()
        task.add_done_callback(lambda done: self._forget(recorder, done))

    def _turn_away(
        self,
        invite: InviteReceived,
        cause: str,
        status: int,
        headers: tuple[tuple[str, str], ...],
    ) -> None:
        self._desk.metrics.calls_turned_away_total.labels(reason=cause).inc()
        log.warning(
            "call.turned_away",
            cause=cause,
            sip_call_id=invite.dialog.call_id,
            peer=f"{invite.peer.transport}:{invite.peer.host}:{invite.peer.port}",
            calls=self.active,
        )
        self._desk.signalling.respond(invite.id, status, headers=headers)

    def _remember(self, recorder: Recorder) -> None:
        self._starting.pop(recorder.session_id, None)
        self._stored[recorder.dialog.call_id] = recorder.session_id
        while len(self._stored) > _REMEMBERED:
            self._stored.popitem(last=False)

    def _forget(self, recorder: Recorder, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._calls.pop(recorder.dialog, None)
        self._starting.pop(recorder.session_id, None)
        self._recorders.pop(recorder.session_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session.lost_its_task", session_id=recorder.session_id, exc_info=error)

    def _answer(self, event: RequestReceived) -> None:
        signalling = self._desk.signalling
        if event.request.method != "OPTIONS":
            # INFO, MESSAGE and the like carry nothing that we record, but must not end the call.
            signalling.respond(event.id, 200)
        elif event.dialog is None and self._unavailable() is not None:
            signalling.respond(event.id, 503, headers=_BUSY)
        else:
            signalling.respond(event.id, 200, headers=_OPTIONS_HEADERS)
