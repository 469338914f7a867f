"""What every recorder works with: who signals, who receives, where it is written down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, Unpack

from siprec_bridge.media import StreamPort, StreamReport, StreamSpec
from siprec_bridge.recording.archive import Archive
from siprec_bridge.sdp import Fingerprint, MediaPolicy
from siprec_bridge.sip import AnswerContent, Content, DialogId, Peer, RequestId
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import Database, SessionRow, outbox
from siprec_bridge.telemetry import Metrics


class Signalling(Protocol):
    """What a recorder asks of the SIP side."""

    def respond(self, id: RequestId, status: int, **content: Unpack[AnswerContent]) -> None:
        """Answer a request; one that is no longer waiting for an answer is passed over."""
        ...

    def request(self, dialog: DialogId, method: str, **content: Unpack[Content]) -> None:
        """Send a request in a dialog."""
        ...


class Media(Protocol):
    """What a recorder asks of whoever receives its streams."""

    async def open(self, spec: StreamSpec) -> StreamPort:
        """Receive a stream. Raises NoPortLeft, OSError."""
        ...

    async def update(self, spec: StreamSpec) -> None:
        """Note that a stream's payload types or keys are others from now on."""
        ...

    async def pause(self, stream_id: str, paused: bool, at: datetime) -> None:
        """Keep nothing of a stream, or record it again."""
        ...

    async def close(self, stream_ids: Sequence[str]) -> list[StreamReport]:
        """Make what has arrived durable and stop receiving; unknown ids are skipped."""
        ...


class Certificate(Protocol):
    """What SRCs know us by where keys are agreed on by DTLS; `pem` has the private key as well."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What the SDP tells."""
        ...

    @property
    def pem(self) -> bytes:
        """What the media side needs."""
        ...


class Live(Protocol):
    """Who is told of sessions so that they can be heard while they last. Neither may block or raise."""

    def follow(self, row: SessionRow, document: SessionDocument) -> None:
        """A session was answered, or has changed."""
        ...

    def end(self, session_id: str, document: SessionDocument) -> None:
        """A session's streams are closed."""
        ...


@dataclass(frozen=True)
class Desk:
    """What every recorder works with."""

    signalling: Signalling
    media: Media
    database: Database
    archive: Archive
    metrics: Metrics
    policy: MediaPolicy
    recordings: Path
    sinks: Sequence[outbox.Recipient]
    clock: Callable[[], datetime]
    address_for: Callable[[Peer], str]  # what SDP tells this peer to send to
    receive_at: Callable[[Peer], str]  # the address of ours where its streams are received
    certificate: Callable[[], Certificate] | None = None  # None: DTLS-SRTP is refused
    live: Live | None = None
