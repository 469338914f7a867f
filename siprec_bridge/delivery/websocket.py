"""The WebSocket front: `/ws/transcripts`, one CloudEvent as JSON in each frame.

    ?session=  ?group=  ?call_id=  ?call_uuid=   one of these three     ?participant=  id, name, AoR
    ?type=transcript.final,session.   beginnings of types    ?final=true  only what will not change
    ?since=  sequence to go on after    ?ticket=  in place of a token   ?subscribe=later  by messages

The first frame is `{"type": "listener.ready", "sequence": N}`. Whoever reads too slowly gets
`listener.lagged` and is cut off: connect again with `since`.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Connection
from websockets.asyncio.server import Server, ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from siprec_bridge.access import Client, Gate, Refused, View
from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.subscriptions import (
    OF_THE_QUERY,
    Frame,
    Message,
    Query,
    Subscription,
    parse_message,
    parse_query,
)
from siprec_bridge.store import Database, Event, StoreError, outbox, recordings
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

PATH = "/ws/transcripts"
_QUEUE = 1000  # events that may wait for one listener
_PASSING = 100  # beyond, what is stored nowhere is kept from him
_PAGE = 500
_HANDSHAKE_TIMEOUT_S = 10.0
_PING_S = 20.0  # between pings, and for the pong: idle listeners stay, dead ones are noticed
_CLOSE_S = 10.0  # for a listener to agree to a close
_LARGEST_FRAME = 1 << 16  # of a listener, who has little to say
_MOST_SUBSCRIPTIONS = 50  # of one listener
# Events are handed out at intervals that grow with the listeners: a write costs more than an event.
_PAUSE_PER_LISTENER_S = 50e-6
_LONGEST_PAUSE_S = 0.1
_LAGGED = 1013  # try again later
_NOT_ALLOWED = 1008  # policy violation

Wanted = tuple[Subscription, ...]


@dataclass(eq=False, slots=True)
class _Listener:
    connection: ServerConnection
    client: Client
    query: Query
    source: str  # its address, as far as we trust who says it
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    # Events with what they are wanted for, and what the listener says, in the order they came.
    queue: asyncio.Queue[tuple[Frame, Wanted] | str | bytes] = field(
        default_factory=lambda: asyncio.Queue(_QUEUE)
    )
    missed: int = 0  # since its queue was full
    last: int = 0  # sequence of the last event that it was sent, or does not want
    resting: bool = False  # its task has nothing to do and waits for the queue

    def wanted(self, frame: Frame) -> Wanted:
        """The subscriptions that an event is for."""
        return tuple([one for one in self.subscriptions.values() if one.wants(frame)])

    @property
    def takes_at_once(self) -> bool:
        """Whether nothing waits for it, here or in its connection."""
        transport = self.connection.transport
        return (
            self.resting
            and self.queue.empty()
            and self.connection.protocol.state is State.OPEN
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def name_of(self, wanted: Wanted) -> str:
        """What an event tells of the subscriptions that it is for.

        Whoever has made none by a message gets no name that he did not give.
        """
        plain = self.subscriptions.keys() <= {OF_THE_QUERY}
        return "" if plain else ",".join(one.id for one in wanted)

    def still(self, wanted: Wanted) -> Wanted:
        """Of these, the ones that were not ended meanwhile."""
        return tuple(one for one in wanted if self.subscriptions.get(one.id) is one)


class _Sight:
    """Whose sessions may be seen, for the events of a page: as the database has them then."""

    def __init__(self, rows: dict[str, tuple[str, str]]) -> None:
        self._rows = rows
        self._judged: dict[tuple[View, str], bool] = {}

    def sees(self, view: View, event: Event) -> bool:
        """Whether all sessions may be seen that an event tells of.

        One that is gone cannot be judged: nobody sees it but those who see all.
        """
        return view.whole or all(self._sees(view, id) for id in envelope.sessions_named(event))

    def _sees(self, view: View, session_id: str) -> bool:
        key = view, session_id
        if key not in self._judged:
            row = self._rows.get(session_id)
            self._judged[key] = row is not None and view.sees(*row)
        return self._judged[key]


class TranscriptSocket:
    """All listeners, and the tail of the outbox that feeds them.

    It serves connections that another front door accepted: see `connection`. `gate` says who may
    listen; `per_client` is how many listeners a token, or without tokens a source, may have at once
    (0: no limit).
    """

    def __init__(
        self, database: Database, metrics: Metrics, gate: Gate, *, per_client: int = 0
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._gate = gate
        self._per_client = per_client
        self._counts: Counter[str] = Counter()
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
        # No compression: each listener would have its own, at more than all else that a frame costs.
        protocol = ServerProtocol(max_size=_LARGEST_FRAME)
        return ServerConnection(
            protocol,
            self._server,
            ping_interval=_PING_S,
            ping_timeout=_PING_S,
            close_timeout=_CLOSE_S,
        )

    async def pass_on(self, event: Event) -> None:
        """Send an event that is stored nowhere to who listens now, unless he is slow.

        What is stored by now goes first. Raises StoreError.
        """
        if not self._listeners:
            return
        async with self._reading:
            if self._news.is_set():  # what was stored before it comes before it
                await self._take_new()
            sight = _Sight({})
            if any(not one.client.view.whole for one in self._listeners):
                faces = partial(recordings.faces, ids={event.session_id})
                sight = _Sight(await self._database.read(faces))
            self._hand_on(Frame(replace(event, seq=self._sequence), passing=True), sight)

    async def recheck(self) -> None:
        """Close the listeners who would not be let in now, since a token or login has ended."""
        gone = [one for one in self._listeners if not self._gate.knows(one.client)]
        for one in gone:
            log.info("websocket.listener_ended", client=one.client.name, cause="no longer allowed")
        why = "the token or login is no longer valid"
        closing = (one.connection.close(_NOT_ALLOWED, why) for one in gone)
        await asyncio.gather(*closing, return_exceptions=True)

    async def _serve(self, connection: ServerConnection) -> None:
        """One connection from its handshake to its end."""
        assert self._server is not None
        listener: _Listener | None = None

        def check(connection: ServerConnection, request: Request) -> Response | None:
            nonlocal listener
            found = self._admit(connection, request)
            if isinstance(found, Response):
                return found
            listener = found
            return None

        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                await connection.handshake(check)
            if connection.protocol.state is not State.OPEN or listener is None:
                connection.transport.abort()
                return
            self._server.all_connections.add(connection)
            connection.start_keepalive()
            async with connection:
                await self._talk(listener)
        except ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001  one listener's trouble is its own
            log.warning("websocket.connection_failed", cause=str(error) or type(error).__name__)
            connection.transport.abort()
        finally:
            if listener is not None:
                self._counts[self._counted(listener)] -= 1
                self._counts += Counter()  # keeps what is above zero
            self._server.all_connections.discard(connection)
            task = asyncio.current_task()
            if task is not None:
                self._server.handler_tasks.discard(task)

    def _admit(self, connection: ServerConnection, request: Request) -> _Listener | Response:
        """A listener who may listen, counted, or the answer in place of the handshake."""
        if urlsplit(request.path).path != PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"there is only {PATH}\n")
        try:
            query = parse_query(request.path)
        except ValueError as error:
            return connection.respond(HTTPStatus.BAD_REQUEST, f"{error}\n")
        headers = {
            name: "; ".join(values) if (values := request.headers.get_all(name)) else None
            for name in ("Authorization", "Cookie", "Origin", "Host", "X-Forwarded-For")
        }
        source = self._gate.source(str(connection.remote_address[0]), headers["X-Forwarded-For"])
        try:
            self._gate.check_host(headers["Host"])
            client = self._gate.client(
                source,
                authorization=headers["Authorization"],
                cookie=headers["Cookie"],
                ticket=query.ticket,
            )
            needed = client.login is not None
            self._gate.check_origin(headers["Origin"], headers["Host"], needed=needed)
            self._gate.require(client, "listen")
            listener = _Listener(connection, client, query, source)
            if self._per_client and self._counts[self._counted(listener)] >= self._per_client:
                self._gate.count_refusal("listeners")
                text = f"{self._per_client} listeners of this client are there already"
                raise Refused(429, "listeners", text, retry_after=60)
        except Refused as refused:
            answer = connection.respond(HTTPStatus(refused.status), f"{refused.text}\n")
            for name, value in refused.headers.items():
                answer.headers[name] = value
            return answer
        if query.first is not None:
            listener.subscriptions[OF_THE_QUERY] = query.first
        self._counts[self._counted(listener)] += 1
        return listener

    def _counted(self, listener: _Listener) -> str:
        return listener.source if self._gate.open else f"token {listener.client.name}"

    async def _talk(self, listener: _Listener) -> None:
        connection = listener.connection
        since = listener.query.since
        oldest = await self._database.read(outbox.first_seq)
        async with self._reading:
            if not self._listeners:
                self._sequence = await self._database.read(outbox.last_seq)
            self._listeners.add(listener)
            here = self._sequence
        self._metrics.websocket_listeners.set(len(self._listeners))
        name = listener.client.name
        log.info("websocket.listener", source=listener.source, client=name, since=since)
        talk = asyncio.current_task()
        assert talk is not None
        ear = asyncio.create_task(_hear(listener), name="websocket reader")

        def gone(_: asyncio.Task[None]) -> None:
            talk.cancel()  # it may be waiting for an event that never comes

        ear.add_done_callback(gone)
        try:
            ready = {"type": "listener.ready", "sequence": here, "oldest": oldest or here + 1}
            await connection.send(json.dumps(ready))
            if since is not None:
                if (wrong := await self._not_ours(since, here)) is not None:
                    log.warning(
                        "websocket.strange_cursor", source=listener.source, client=name, cause=wrong
                    )
                    await connection.send(json.dumps({"type": "listener.error", "error": wrong}))
                    await connection.close(_NOT_ALLOWED, "since is not of this database")
                    return
                await self._replay(listener, tuple(listener.subscriptions.values()), since, here)
            listener.last = max(since or 0, here)
            while True:
                if listener.missed and listener.queue.empty():
                    await self._cut_off(listener)
                    return
                listener.resting = True
                news = await listener.queue.get()
                listener.resting = False
                match news:
                    case (frame, wanted):
                        # Not what it has been told already, or what it asked to come after.
                        fresh = frame.passing or frame.event.seq > listener.last
                        if fresh and (wanted := listener.still(wanted)):
                            await self._send(listener, frame, wanted)
                            listener.last = max(listener.last, frame.event.seq)
                    case said:
                        await self._answer(listener, said)
        finally:
            ear.remove_done_callback(gone)
            ear.cancel()
            self._listeners.discard(listener)
            self._metrics.websocket_listeners.set(len(self._listeners))

    async def _send(self, listener: _Listener, frame: Frame, wanted: Wanted) -> None:
        await listener.connection.send(frame.named(listener.name_of(wanted)))
        self._metrics.websocket_events_sent_total.inc()

    async def _answer(self, listener: _Listener, said: str | bytes) -> None:
        """Do what a listener says, or tell it what is wrong with that."""
        try:
            message = parse_message(said)
            async with self._reading:
                await self._take_new()  # what is stored by now is not news to what comes next
                here = self._sequence
                if message.since is not None:
                    wrong = await self._not_ours(message.since, here)
                    if wrong is not None:
                        raise ValueError(wrong)
                self._change(listener, message)
        except ValueError as error:
            told = {"type": "listener.error", "error": str(error), "message": str(said[:200])}
            await listener.connection.send(json.dumps(told))
            return
        done = "subscribed" if message.subscribe else "unsubscribed"
        ids = [one.id for one in message.subscribe] or list(message.unsubscribe)
        note = {"type": f"listener.{done}", "ids": ids, "sequence": here}
        await listener.connection.send(json.dumps(note))
        if message.since is not None:
            await self._replay(listener, message.subscribe, message.since, here)

    async def _not_ours(self, since: int, here: int) -> str | None:
        """Why a cursor cannot be of this database, as it is now: that would leave out all up to it."""
        if since <= here:
            return None
        # Another node may have told of it that is ahead of us, and its event be deleted by now.
        latest = await self._database.read(outbox.latest_number)
        if since <= latest:
            return None
        return (
            f"since: {since} was never reached, {latest} is the latest: the database is another, or "
            "was restored; begin anew with since=0"
        )

    def _change(self, listener: _Listener, message: Message) -> None:
        """Raises ValueError, and then nothing is changed."""
        subscriptions = listener.subscriptions
        unknown = [one for one in message.unsubscribe if one not in subscriptions]
        if unknown:
            raise ValueError(f"unsubscribe: there is no subscription {unknown[0]}")
        after = subscriptions.keys() | {one.id for one in message.subscribe}
        if len(after) > _MOST_SUBSCRIPTIONS:
            raise ValueError(f"subscribe: {_MOST_SUBSCRIPTIONS} subscriptions at most")
        for id in message.unsubscribe:
            subscriptions.pop(id, None)
        subscriptions.update({one.id: one for one in message.subscribe})

    async def _replay(self, listener: _Listener, wanted: Wanted, last: int, until: int) -> None:
        """Send what was stored after `last`, up to `until`."""
        view = listener.client.view
        # Each once: of the beginnings of types there are few, of what a listener may name not.
        types = list(dict.fromkeys(kind for one in wanted for kind in one.type)) if all(
            one.type for one in wanted
        ) else []  # fmt: skip
        sessions = {one.session for one in wanted}
        session = next(iter(sessions)) if len(sessions) == 1 else None
        while last < until:
            page, sight = await self._database.read(
                partial(
                    _read, seq=last, types=types, until=until, judged=not view.whole,
                    session_id=session,
                )
            )  # fmt: skip
            for event in page:
                if not sight.sees(view, event):
                    continue
                frame = Frame(event)
                if matching := tuple(one for one in wanted if one.wants(frame)):
                    await self._send(listener, frame, matching)
            last = page[-1].seq if len(page) == _PAGE else until

    async def _cut_off(self, listener: _Listener) -> None:
        connection, missed = listener.connection, listener.missed
        self._metrics.websocket_events_missed_total.inc(missed)
        log.warning(
            "websocket.listener_lagged",
            source=listener.source,
            client=listener.client.name,
            missed=missed,
        )
        note = {"type": "listener.lagged", "missed": missed, "sequence": listener.last}
        await connection.send(json.dumps(note))
        await connection.close(_LAGGED, "read faster, or resume with since")

    async def _follow(self) -> None:
        """Read new events once for all listeners."""
        while True:
            await self._news.wait()
            try:
                async with self._reading:
                    await self._take_new()
            except StoreError as error:
                log.error("websocket.store_failed", cause=str(error))
                await asyncio.sleep(1.0)
            await asyncio.sleep(min(_LONGEST_PAUSE_S, _PAUSE_PER_LISTENER_S * len(self._listeners)))

    async def _take_new(self) -> None:
        self._news.clear()
        while self._listeners:
            judged = any(not one.client.view.whole for one in self._listeners)
            try:
                page, sight = await self._database.read(
                    partial(_read, seq=self._sequence, judged=judged)
                )
            except BaseException:  # cancelled, too: others are still to be told
                self._news.set()
                raise
            self._hand_out([Frame(event) for event in page], sight)
            if len(page) < _PAGE:
                self._sequence = page[-1].seq if page else self._sequence
                return
            self._sequence = page[-1].seq

    def _hand_out(self, frames: Sequence[Frame], sight: _Sight) -> None:
        packed: dict[tuple[tuple[int, str], ...], bytes] = {}  # most listeners get the same
        for listener in self._listeners:
            view = listener.client.view
            news = [
                (frame, wanted)
                for frame in frames
                if (wanted := listener.wanted(frame)) and sight.sees(view, frame.event)
            ]
            if not news:
                continue
            if listener.missed:
                listener.missed += len(news)
            elif listener.takes_at_once:
                self._write(listener, news, packed)
            else:
                _queue(listener, news)

    def _hand_on(self, frame: Frame, sight: _Sight) -> None:
        """Tell what is stored nowhere to those who can take it."""
        for listener in self._listeners:
            wanted = listener.wanted(frame)
            if not wanted or not sight.sees(listener.client.view, frame.event):
                continue
            if listener.takes_at_once:
                listener.connection.transport.write(frame.octets(listener.name_of(wanted)))
                self._metrics.websocket_events_sent_total.inc()
            elif listener.missed or listener.queue.qsize() >= _PASSING:
                self._metrics.websocket_passing_dropped_total.inc()
            else:
                listener.queue.put_nowait((frame, wanted))

    def _write(
        self,
        listener: _Listener,
        news: Sequence[tuple[Frame, Wanted]],
        packed: dict[tuple[tuple[int, str], ...], bytes],
    ) -> None:
        """Send what is new in one write, without waking the listener's task."""
        fresh = [(frame, listener.name_of(wanted)) for frame, wanted in news
                 if frame.event.seq > listener.last]  # fmt: skip
        if not fresh:
            return
        key = tuple((frame.event.seq, name) for frame, name in fresh)
        octets = packed.get(key)
        if octets is None:
            octets = packed[key] = b"".join(frame.octets(name) for frame, name in fresh)
        listener.connection.transport.write(octets)
        listener.last = fresh[-1][0].event.seq
        self._metrics.websocket_events_sent_total.inc(len(fresh))


def _queue(listener: _Listener, news: Sequence[tuple[Frame, Wanted]]) -> None:
    """Leave the events to the listener's task, which waits where its connection is full."""
    for number, one in enumerate(news):
        try:
            listener.queue.put_nowait(one)
        except asyncio.QueueFull:
            listener.missed = len(news) - number
            return


def _read(
    connection: Connection,
    *,
    seq: int,
    judged: bool,
    types: Sequence[str] = (),
    until: int | None = None,
    session_id: str | None = None,
) -> tuple[list[Event], _Sight]:
    """A page of events, with their sessions where somebody may not see all of them."""
    page = outbox.since(connection, seq, _PAGE, types=types, until=until, session_id=session_id)
    ids = {id for event in page for id in envelope.sessions_named(event)} if judged else ()
    return page, _Sight(recordings.faces(connection, ids))


async def _hear(listener: _Listener) -> None:
    """Take what a listener says, and notice that it is gone."""
    try:
        async for said in listener.connection:
            await listener.queue.put(said)
    except ConnectionClosed:
        pass
