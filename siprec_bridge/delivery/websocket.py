"""The WebSocket front: `/ws/transcripts`, one CloudEvent as JSON in each frame.

    ?call_uuid=  session id, or SIP Call-ID, or group id     ?call_id=  SIP Call-ID
    ?type=transcript.final,session.   beginnings of types     ?participant=  id, name or AoR
    ?final=true  only what will not change any more           ?since=  sequence to go on after

The first frame is `{"type": "listener.ready", "sequence": N}`. Whoever reads too slowly gets
`listener.lagged` and is cut off: connect again with `since`.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from websockets.asyncio.server import Server, ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from siprec_bridge.delivery import envelope
from siprec_bridge.store import Database, Event, StoreError, outbox
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

PATH = "/ws/transcripts"
_QUEUE = 1000  # events that may wait for one listener
_PAGE = 500
_HANDSHAKE_TIMEOUT_S = 10.0
_LARGEST_FRAME = 1 << 16  # of a listener, who has nothing to say
_LAGGED = 1013  # try again later
_PARAMETERS = ("call_uuid", "call_id", "type", "participant", "final", "since")


class Frame:
    """An event on its way to listeners: its text and data are made once for all of them."""

    def __init__(self, event: Event) -> None:
        self.event = event

    @cached_property
    def text(self) -> str:
        """What is sent."""
        return envelope.structured(self.event)

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The event's data, to filter by."""
        value = json.loads(self.event.body)
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Filter:
    """What a listener wants to hear; None or empty: no matter what."""

    call_uuid: str | None = None
    call_id: str | None = None
    types: tuple[str, ...] = ()
    participant: str | None = None
    final: bool = False
    since: int | None = None

    def wants(self, frame: Frame) -> bool:
        """Whether the event passes."""
        event = frame.event
        if self.types and not event.type.startswith(self.types):
            return False
        if self.call_uuid is not None and self.call_uuid not in (
            event.session_id,
            frame.data.get("sip_call_id"),
            frame.data.get("group_id"),
        ):
            return False
        if self.call_id is not None and frame.data.get("sip_call_id") != self.call_id:
            return False
        if self.final and frame.data.get("final") is not True:
            return False
        return self.participant is None or self.participant in _names(frame.data)


def parse_filter(target: str) -> Filter:
    """Read a request target's query. Raises ValueError with what is wrong."""
    query = parse_qs(urlsplit(target).query, keep_blank_values=False, max_num_fields=20)
    unknown = [name for name in query if name not in _PARAMETERS]
    if unknown:
        raise ValueError(f"unknown parameter {unknown[0]}; there are: {', '.join(_PARAMETERS)}")
    single = {name: values[-1] for name, values in query.items()}
    since = single.get("since")
    if since is not None and not (since.isascii() and since.isdecimal() and len(since) < 19):
        raise ValueError("since must be a sequence number")
    final = single.get("final", "false").lower()
    if final not in ("true", "false", "1", "0"):
        raise ValueError("final must be true or false")
    kinds = [one.strip() for text in query.get("type", []) for one in text.split(",")]
    types = tuple(one.removesuffix("*") for one in kinds if one)
    for kind in types:
        if not any(known.startswith(kind) for known in envelope.EVENT_MODELS):
            raise ValueError(f"no type begins with {kind}")
    return Filter(
        call_uuid=single.get("call_uuid"),
        call_id=single.get("call_id"),
        types=types,
        participant=single.get("participant"),
        final=final in ("true", "1"),
        since=int(since) if since is not None else None,
    )


@dataclass(eq=False, slots=True)
class _Listener:
    wanted: Filter
    queue: asyncio.Queue[Frame]
    missed: int = 0  # since its queue was full


class TranscriptSocket:
    """All listeners, and the tail of the outbox that feeds them.

    It serves connections that another front door accepted: see `connection`.
    """

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._listeners: set[_Listener] = set()
        self._news = asyncio.Event()
        self._reading = asyncio.Lock()
        self._sequence = 0  # up to here listeners have what they want; old while there are none
        self._tail: asyncio.Task[None] | None = None
        self._server: Server | None = None

    async def start(self, listen: Callable[[], Awaitable[asyncio.Server]]) -> None:
        """Begin with what is committed from now on. `listen` starts the door at the right time."""
        self._database.on_commit(self._news.set)
        self._tail = asyncio.create_task(self._follow(), name="websocket tail")

        async def create_server() -> asyncio.Server:
            return await listen()

        self._server = await Server(create_server, self._serve)

    async def stop(self) -> None:
        """Stop listening; tell every listener that we go away (1001)."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        if self._tail is not None:
            self._tail.cancel()
            await asyncio.gather(self._tail, return_exceptions=True)

    def connection(self) -> asyncio.Protocol:
        """An asyncio protocol for one accepted connection, whatever it asks for."""
        assert self._server is not None
        protocol = ServerProtocol(
            extensions=enable_server_permessage_deflate(None), max_size=_LARGEST_FRAME
        )
        return ServerConnection(protocol, self._server)

    async def _serve(self, connection: ServerConnection) -> None:
        """One connection from its handshake to its end."""
        assert self._server is not None
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                await connection.handshake(_check)
            if connection.protocol.state is not State.OPEN:
                connection.transport.abort()
                return
            self._server.all_connections.add(connection)
            connection.start_keepalive()
            async with connection:
                await self._talk(connection)
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001  one listener's trouble is its own
            log.warning("websocket.connection_failed", cause=str(error) or type(error).__name__)
            connection.transport.abort()
        finally:
            self._server.all_connections.discard(connection)
            task = asyncio.current_task()
            if task is not None:
                self._server.handler_tasks.discard(task)

    async def _talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        wanted = parse_filter(connection.request.path)
        listener = _Listener(wanted, asyncio.Queue(_QUEUE))
        async with self._reading:
            if not self._listeners:
                self._sequence = await self._database.read(outbox.last_seq)
            self._listeners.add(listener)
            here = self._sequence
        oldest = await self._database.read(outbox.first_seq)
        self._metrics.websocket_listeners.set(len(self._listeners))
        log.info("websocket.listener", peer=str(connection.remote_address), since=wanted.since)
        talk = asyncio.current_task()
        assert talk is not None
        deaf = asyncio.create_task(_ignore(connection), name="websocket reader")

        def gone(_: asyncio.Task[None]) -> None:
            talk.cancel()  # it may be waiting for an event that never comes

        deaf.add_done_callback(gone)
        try:
            ready = {"type": "listener.ready", "sequence": here, "oldest": oldest or here + 1}
            await connection.send(json.dumps(ready))
            last = wanted.since if wanted.since is not None else here
            last = await self._replay(connection, wanted, last, here)
            while True:
                if listener.missed and listener.queue.empty():
                    await self._cut_off(connection, listener, last)
                    return
                frame = await listener.queue.get()
                if frame.event.seq <= last:
                    continue  # it asked for what comes after that
                await connection.send(frame.text)
                last = frame.event.seq
                self._metrics.websocket_events_sent_total.inc()
        finally:
            deaf.remove_done_callback(gone)
            deaf.cancel()
            self._listeners.discard(listener)
            self._metrics.websocket_listeners.set(len(self._listeners))

    async def _replay(
        self, connection: ServerConnection, wanted: Filter, last: int, until: int
    ) -> int:
        """Send what was stored before this listener came; returns the sequence it is at."""
        while last < until:
            page = await self._database.read(
                partial(outbox.since, seq=last, limit=_PAGE, types=wanted.types, until=until)
            )
            for event in page:
                frame = Frame(event)
                if wanted.wants(frame):
                    await connection.send(frame.text)
                    self._metrics.websocket_events_sent_total.inc()
            last = page[-1].seq if len(page) == _PAGE else until
        return last

    async def _cut_off(self, connection: ServerConnection, listener: _Listener, last: int) -> None:
        missed = listener.missed
        self._metrics.websocket_events_missed_total.inc(missed)
        log.warning("websocket.listener_lagged", peer=str(connection.remote_address), missed=missed)
        note = {"type": "listener.lagged", "missed": missed, "sequence": last}
        await connection.send(json.dumps(note))
        await connection.close(_LAGGED, "read faster, or resume with since")

    async def _follow(self) -> None:
        """Read new events once for all listeners."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async with self._reading:
                    await self._take_new()
            except StoreError as error:
                log.error("websocket.store_failed", cause=str(error))
                await asyncio.sleep(1.0)
                self._news.set()

    async def _take_new(self) -> None:
        while self._listeners:
            page = await self._database.read(partial(outbox.since, seq=self._sequence, limit=_PAGE))
            for event in page:
                self._hand_out(Frame(event))
            if len(page) < _PAGE:
                self._sequence = page[-1].seq if page else self._sequence
                return
            self._sequence = page[-1].seq

    def _hand_out(self, frame: Frame) -> None:
        for listener in self._listeners:
            if not listener.wanted.wants(frame):
                continue
            if listener.missed:
                listener.missed += 1
                continue
            try:
                listener.queue.put_nowait(frame)
            except asyncio.QueueFull:
                listener.missed = 1


def _check(connection: ServerConnection, request: Request) -> Response | None:
    """Refuse a wrong path or query before the handshake."""
    if urlsplit(request.path).path != PATH:
        return connection.respond(HTTPStatus.NOT_FOUND, f"there is only {PATH}\n")
    try:
        parse_filter(request.path)
    except ValueError as error:
        return connection.respond(HTTPStatus.BAD_REQUEST, f"{error}\n")
    return None


async def _ignore(connection: ServerConnection) -> None:
    """Read what a listener says, so that its closing is noticed, and make nothing of it."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            pass


def _names(data: Mapping[str, Any]) -> set[object]:
    """Every id, name and AoR of the participants in an event's data."""
    people = [data.get("participant"), *(data.get("participants") or ())]
    return {
        value
        for one in people
        if isinstance(one, dict)
        for value in (one.get("id"), one.get("name"), one.get("aor"))
        if value
    }
