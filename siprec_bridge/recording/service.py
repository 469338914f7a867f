"""All calls: gives each dialog its recorder, keeps recorders apart, and stops in good order."""

import asyncio
import uuid
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from siprec_bridge.recording.recorder import Desk, Recorder
from siprec_bridge.sip import (
    AckReceived,
    DialogEnded,
    DialogId,
    InviteCancelled,
    InviteReceived,
    Output,
    RequestReceived,
    UpdateReceived,
)

log = structlog.get_logger()

_OPTIONS_HEADERS = (
    ("Accept", "application/sdp, application/rs-metadata+xml, application/rs-metadata"),
    ("Accept", "multipart/mixed"),
    ("Accept-Encoding", "identity"),
    ("Accept-Language", "en"),
)
_BUSY = (("Retry-After", "10"),)
_REMEMBERED = 20_000


@dataclass(slots=True)
class Capacity:
    """How much the bridge takes. `free_disk` is kept up to date by whoever looks at the disk."""

    max_calls: int = 0  # at once; 0: no limit
    min_free_disk: int = 0  # octets
    free_disk: int | None = None

    def exhausted_by(self, calls: int) -> str | None:
        """What there is too little of for one more call: capacity or disk; None: nothing."""
        if self.max_calls and calls >= self.max_calls:
            return "capacity"
        if self.free_disk is not None and self.free_disk < self.min_free_disk:
            return "disk"
        return None


class RecordingService:
    """The SIP side's listener. One task per call; none of them can end another.

    While it is stopping or full, new calls and OPTIONS get 503 with Retry-After, so that the SRC
    goes elsewhere.
    """

    def __init__(self, desk: Desk, capacity: Capacity | None = None) -> None:
        self._desk = desk
        self._capacity = capacity or Capacity()
        self._calls: dict[DialogId, Recorder] = {}
        self._recorders: dict[str, Recorder] = {}  # by session id, until the audio is archived
        self._tasks: set[asyncio.Task[None]] = set()
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

    def on_sip(self, event: Output) -> None:
        """Take what the SIP side reports; never blocks."""
        match event:
            case InviteReceived(initial=True):
                self._start(event)
            case (
                InviteReceived() | UpdateReceived() | AckReceived()
                | InviteCancelled() | DialogEnded()
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

    def _unavailable(self) -> str | None:
        return "draining" if self._stopping else self._capacity.exhausted_by(self.active)

    def _start(self, invite: InviteReceived) -> None:
        cause = self._unavailable()
        if cause is not None:
            self._desk.metrics.calls_turned_away_total.labels(reason=cause).inc()
            log.warning(
                "call.turned_away",
                cause=cause,
                sip_call_id=invite.dialog.call_id,
                calls=self.active,
            )
            self._desk.signalling.respond(invite.id, 503, headers=_BUSY)
            return
        recorder = Recorder(str(uuid.uuid4()), invite, self._desk, on_stored=self._remember)
        self._calls[invite.dialog] = recorder
        self._recorders[recorder.session_id] = recorder
        task = asyncio.create_task(recorder.run(), name=f"recorder {recorder.session_id}")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget(recorder, done))

    def _remember(self, recorder: Recorder) -> None:
        self._stored[recorder.dialog.call_id] = recorder.session_id
        while len(self._stored) > _REMEMBERED:
            self._stored.popitem(last=False)

    def _forget(self, recorder: Recorder, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._calls.pop(recorder.dialog, None)
        self._recorders.pop(recorder.session_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session.lost_its_task", session_id=recorder.session_id, exc_info=error)

    def _answer(self, event: RequestReceived) -> None:
        signalling = self._desk.signalling
        if event.request.method != "OPTIONS":
            # INFO, MESSAGE and the like carry nothing that we record, but must not end the call.
            signalling.respond(event.id, 200)
        elif self._unavailable() is not None:
            signalling.respond(event.id, 503, headers=_BUSY)
        else:
            signalling.respond(event.id, 200, headers=_OPTIONS_HEADERS)
