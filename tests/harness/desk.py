"""A recording desk without sockets: real store, media and archive, and a SIP side to look at."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from harness.ports import rtp_ports
from siprec_bridge.live.desk import LiveDesk
from siprec_bridge.media import Finisher, MediaEngine
from siprec_bridge.recording import Archive, Capacity, Desk, Orders, RecordingService
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import AnswerContent, Content, DialogId, RequestId
from siprec_bridge.store import Database
from siprec_bridge.telemetry import Metrics

_finisher = Finisher()  # one process for all tests: each would take half a second to start


@dataclass
class Answer:
    """What the recorder answered to a request."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Phone:
    """The SIP side: remembers answers by request, and requests by dialog."""

    answers: dict[RequestId, Answer] = field(default_factory=dict)
    asked: list[tuple[DialogId, str]] = field(default_factory=list)

    def respond(self, id: RequestId, status: int, **content: Unpack[AnswerContent]) -> None:
        """Remember it."""
        headers, body = content.get("headers", ()), content.get("body", b"")
        self.answers[id] = Answer(status, dict(headers), body)

    def request(self, dialog: DialogId, method: str, **content: Unpack[Content]) -> None:
        """Remember it."""
        self.asked.append((dialog, method))


@dataclass
class Office:
    """Everything that a test of the recorder looks at."""

    service: RecordingService
    phone: Phone
    database: Database
    media: MediaEngine
    archive: Archive
    metrics: Metrics
    recordings: Path


@asynccontextmanager
async def office(
    folder: Path,
    *,
    ports: tuple[int, int] | None = None,
    capacity: Capacity | None = None,
    siprec_only: bool = False,
    receiving: bool = True,
    live: Callable[[Database, MediaEngine, Metrics], LiveDesk] | None = None,
) -> AsyncIterator[Office]:
    """A recording service on a data folder; stopped at the end. Calls need `receiving`."""
    metrics = Metrics()
    database = Database(f"sqlite:///{folder / 'bridge.db'}")
    await database.start()
    first, last = ports or rtp_ports()
    media = MediaEngine(
        port_min=first, port_max=last,
        metrics=metrics, on_event=lambda event: None,
    )  # fmt: skip
    if receiving:
        await media.start()
    archive = Archive(
        database, _finisher, Orders("whisper", ("whisper",)), metrics,
        sample_rate=16000, sinks=[], clock=lambda: datetime.now(UTC), transcribe=lambda: None,
        eta=lambda audio_seconds: 100.0 + audio_seconds,
    )  # fmt: skip
    listening = live(database, media, metrics) if live is not None else None
    running = asyncio.create_task(listening.run()) if listening is not None else None
    phone = Phone()
    recordings = folder / "recordings"
    service = RecordingService(
        Desk(
            signalling=phone, media=media, database=database, archive=archive, metrics=metrics,
            policy=MediaPolicy(), recordings=recordings, sinks=[],
            clock=lambda: datetime.now(UTC), address_for=lambda peer: "127.0.0.1",
            receive_at=lambda peer: "127.0.0.1",
            live=listening,
        ),
        capacity,
        siprec_only=siprec_only,
    )  # fmt: skip
    try:
        yield Office(service, phone, database, media, archive, metrics, recordings)
    finally:
        await service.stop(0.5)
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        if receiving:
            await media.stop()
        await database.stop()
