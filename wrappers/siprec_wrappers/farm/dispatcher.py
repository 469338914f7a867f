"""`whisper-farm dispatcher`: hands jobs over HTTP to nodes that may not reach broker and store.

A node proves itself by a signed token, a certificate, or both. It holds a job by a lease, which it
renews; when the lease is over, the broker gets the job back and hands it to somebody else.
"""

import asyncio
import logging
import math
import os
import secrets
import shutil
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from aiohttp import web

from siprec_wrappers.farm.broker import Broker
from siprec_wrappers.farm.clock import ClockWatch
from siprec_wrappers.farm.engine import check_result
from siprec_wrappers.farm.job import Job, job_of
from siprec_wrappers.farm.settings import SettingError, Settings
from siprec_wrappers.farm.store import Store, StoreError
from siprec_wrappers.farm.tokens import Key, Refused, node_of, read_key
from siprec_wrappers.farm.work import Work

log = logging.getLogger("whisper-farm.dispatcher")

_LARGEST_RESULT = 64 << 20
_CHUNK = 1 << 18
_LONGEST_WAIT_S = 30.0
_LOOK_EVERY_S = 0.25  # at the queue, while nodes wait: what they do not take stays the broker's
_TIMEOUT_S = 10.0
_CLOCK_EVERY_S = 60.0
_NODE = web.RequestKey("node", str)
_AWAY = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
_NO_JSON = (ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where it listens and whom it lets in."""

    host: str
    port: int
    key: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    client_ca: Path | None


@dataclass(slots=True)
class _Lease:
    node: str
    job: Job
    message: AbstractIncomingMessage
    folder: Path
    ends: float  # by the loop's clock
    busy: int = 0  # requests that use it now: it does not end under them


class Dispatcher:
    """Leases, and the HTTP that gives, renews and ends them."""

    def __init__(
        self, settings: Settings, store: Store, key: Key | None, lease_seconds: float
    ) -> None:
        self._settings = settings
        self._store = store
        self._key = key
        self._lease_seconds = lease_seconds
        self._work = Work(settings, store, "dispatcher")
        self._leases: dict[str, _Lease] = {}
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connecting = asyncio.Lock()

    def application(self) -> web.Application:
        """The routes; all but /health want a node that is known."""
        application = web.Application(middlewares=[self._admit], client_max_size=_LARGEST_RESULT)
        application.add_routes(
            [
                web.get("/health", self._health),
                web.post("/v1/work", self._take),
                web.get("/v1/work/{lease}/audio", self._audio),
                web.post("/v1/work/{lease}/renew", self._renew),
                web.put("/v1/work/{lease}/result", self._result),
                web.post("/v1/work/{lease}/failure", self._failure),
                web.post("/v1/work/{lease}/release", self._release),
            ]
        )
        return application

    async def watch(self) -> None:
        """Give back what was leased for too long, for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._lease_seconds / 4))
            now = asyncio.get_running_loop().time()
            for name, lease in list(self._leases.items()):
                if lease.ends < now and not lease.busy:
                    log.warning("%s: lease of %s is over", lease.node, lease.job.request)
                    await self._end(name, lease, give_back=True)

    async def watch_clock(self) -> None:
        """Log when our clock, by which jobs are over, is not the store's; for ever."""
        clock = ClockWatch(self._store, f"workers/dispatcher-{secrets.token_hex(8)}.json")
        while True:
            try:
                await asyncio.to_thread(clock.write, b"{}")
            except StoreError as error:
                log.warning("clock: %s", error)
            await asyncio.sleep(_CLOCK_EVERY_S)

    async def close(self) -> None:
        """Leave the broker, which takes back whatever is leased."""
        for lease in self._leases.values():
            await asyncio.to_thread(shutil.rmtree, lease.folder, ignore_errors=True)
        if self._connection is not None:
            await self._connection.close()

    @web.middleware
    async def _admit(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if request.path == "/health":
            return await handler(request)
        try:
            request[_NODE] = self._node(request)
        except Refused as reason:
            log.warning("%s refused: %s", request.remote, reason)
            return web.json_response(
                {"error": str(reason)}, status=401, headers={"WWW-Authenticate": "Bearer"}
            )
        try:
            return await handler(request)
        except _AWAY as error:  # StoreError is an OSError
            log.error("%s: %s", request.path.rpartition("/")[2], str(error) or type(error).__name__)
            return web.json_response(
                {"error": "broker or store are away"}, status=503, headers={"Retry-After": "5"}
            )

    def _node(self, request: web.Request) -> str:
        if self._key is not None:
            kind, _, token = request.headers.get("Authorization", "").partition(" ")
            if kind.lower() != "bearer" or not token:
                raise Refused("no bearer token")
            return node_of(self._key, token.strip())
        certificate = request.get_extra_info("peercert") or {}
        names = [
            value
            for group in certificate.get("subject", ())
            for field, value in group
            if field == "commonName"
        ]
        if not names:
            raise Refused("its certificate has no common name")
        return str(names[0])

    async def _health(self, request: web.Request) -> web.Response:
        try:
            await asyncio.to_thread(self._store.check)
            _ = await self._queue_channel()
        except _AWAY as error:
            return web.json_response({"error": str(error) or type(error).__name__}, status=503)
        return web.json_response({"leases": len(self._leases)})

    async def _queue_channel(self) -> AbstractChannel:
        async with self._connecting:
            if (
                self._channel is None
                or self._channel.is_closed
                or self._connection is None
                or self._connection.is_closed
            ):
                if self._connection is not None:
                    await self._connection.close()
                self._connection = await aio_pika.connect(self._settings.broker, timeout=_TIMEOUT_S)
                self._channel = await self._connection.channel()
            return self._channel

    async def _next(self) -> AbstractIncomingMessage | None:
        channel = await self._queue_channel()
        queue = await channel.get_queue(self._settings.queue, ensure=False)
        return await queue.get(fail=False, timeout=_TIMEOUT_S)

    async def _take(self, request: web.Request) -> web.Response:
        try:
            wait = float((await request.json())["wait"]) if request.body_exists else 0.0
            if not math.isfinite(wait):
                raise ValueError
        except (*_NO_JSON, OverflowError):
            return web.json_response({"error": 'expected {"wait": seconds}'}, status=400)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(max(wait, 0.0), _LONGEST_WAIT_S)
        await asyncio.to_thread(self._store.check)
        while request.transport is not None:  # else the node has gone: take nothing for it
            message = await self._next()
            if message is not None:
                lease = await self._lease(request[_NODE], message)
                if lease is not None:
                    return lease
            elif loop.time() >= until:
                return web.Response(status=204)
            else:
                await asyncio.sleep(_LOOK_EVERY_S)
        return web.Response(status=204)

    async def _lease(self, node: str, message: AbstractIncomingMessage) -> web.Response | None:
        job = job_of(message.body)
        if job is None:
            await message.reject(requeue=False)
            return None
        deliveries = message.headers.get("x-delivery-count")
        reason = self._work.exhausted(deliveries if isinstance(deliveries, int) else 0)
        try:
            if await asyncio.to_thread(self._work.settled, job):
                await asyncio.to_thread(self._work.drop, job)
                await message.ack()
                await self._signal(job)
                return None
            if reason is not None:
                await asyncio.to_thread(self._work.fail, job, reason)
                await message.reject(requeue=False)
                return None
        except StoreError:
            await message.reject(requeue=True)
            raise
        name = secrets.token_urlsafe(24)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="whisper-farm-"))
        ends = asyncio.get_running_loop().time() + self._lease_seconds
        self._leases[name] = _Lease(node, job, message, folder, ends)
        log.info("%s takes %s", node, job.request)
        return web.json_response(
            {
                "lease": name,
                "lease_seconds": self._lease_seconds,
                "job": job.to_json(),
                # The node's clock need not be right.
                "seconds_left": max(0.0, job.deadline - time.time()),
            }
        )

    def _held(self, request: web.Request) -> tuple[str, _Lease]:
        """A node's own lease; for anybody else it is not there."""
        name = request.match_info["lease"]
        lease = self._leases.get(name)
        if lease is None or lease.node != request[_NODE]:
            raise web.HTTPNotFound(text="no such lease, or it is over")
        return name, lease

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        name, lease = self._held(request)
        lease.busy += 1
        try:
            path = await asyncio.to_thread(self._store.fetch, lease.job.audio, lease.folder)
            return await _send(path, request)
        except FileNotFoundError:
            # Another may see a store that has it; the queue's limit ends this.
            await self._end(name, lease, give_back=True)
            return web.json_response({"error": "the store has no such audio"}, status=410)
        finally:
            lease.busy -= 1
            lease.ends = asyncio.get_running_loop().time() + self._lease_seconds

    async def _renew(self, request: web.Request) -> web.Response:
        _, lease = self._held(request)
        lease.ends = asyncio.get_running_loop().time() + self._lease_seconds
        cancelled = await asyncio.to_thread(self._work.cancelled, lease.job)
        return web.json_response({"cancelled": cancelled})

    async def _result(self, request: web.Request) -> web.Response:
        name, lease = self._held(request)
        lease.busy += 1
        try:
            data = await request.read()
            try:
                await asyncio.to_thread(check_result, data)
            except ValueError as error:
                return web.json_response({"error": f"no result: {error}"}, status=400)
            await asyncio.to_thread(self._work.succeed, lease.job, data)
        finally:
            lease.busy -= 1
        await self._end(name, lease, give_back=False)
        return web.Response(status=204)

    async def _failure(self, request: web.Request) -> web.Response:
        name, lease = self._held(request)
        try:
            document = await request.json()
            error, unavailable = str(document["error"])[:8192], bool(document["unavailable"])
        except _NO_JSON:
            return web.json_response({"error": "expected error and unavailable"}, status=400)
        await asyncio.to_thread(self._work.fail, lease.job, error, unavailable=unavailable)
        await self._end(name, lease, give_back=False)
        return web.Response(status=204)

    async def _release(self, request: web.Request) -> web.Response:
        name, lease = self._held(request)
        await self._end(name, lease, give_back=True)
        return web.Response(status=204)

    async def _end(self, name: str, lease: _Lease, *, give_back: bool) -> None:
        if self._leases.pop(name, None) is None:
            return
        await asyncio.to_thread(shutil.rmtree, lease.folder, ignore_errors=True)
        try:
            if give_back:
                await lease.message.reject(requeue=True)
            else:
                await lease.message.ack()
                await self._signal(lease.job)
        except _AWAY as error:
            # Its channel is gone, so the broker has the job again; a result it then finds done.
            cause = str(error) or type(error).__name__
            log.warning("%s: the broker did not hear of its end: %s", lease.job.request, cause)

    async def _signal(self, job: Job) -> None:
        channel = await self._queue_channel()
        exchange = await channel.get_exchange(self._settings.done_exchange, ensure=False)
        await exchange.publish(
            aio_pika.Message(b""),
            self._settings.routing_key(job.request),
            mandatory=False,
            timeout=_TIMEOUT_S,
        )


async def _send(path: Path, request: web.Request) -> web.StreamResponse:
    """Send a file to its end, so long as the lease is busy. Raises OSError.

    A FileResponse does so only once its handler is over, and cannot be prepared before.
    """
    with await asyncio.to_thread(path.open, "rb") as file:
        response = web.StreamResponse()
        response.content_length = os.fstat(file.fileno()).st_size
        await response.prepare(request)
        try:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                await response.write(chunk)
            await response.write_eof()
        except OSError:
            if request.transport is not None:
                request.transport.abort()  # what else is sent would pass for audio
            raise
    return response


def run_dispatcher(settings: Settings, store: Store, doors: Doors, lease_seconds: float) -> int:
    """Serve until TERM. Raises SettingError, BrokerError."""
    if doors.key is None and doors.client_ca is None:
        raise SettingError("dispatcher: --key or --client-ca: somebody must tell who a node is")
    key = read_key(doors.key) if doors.key is not None else None
    context = _tls(doors)
    broker = Broker(settings)
    broker.declare()
    broker.close()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    for name in ("aio_pika", "aiormq"):  # a connection's end is a traceback there
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(_serve(Dispatcher(settings, store, key, lease_seconds), doors, context))
    return 0


async def _serve(dispatcher: Dispatcher, doors: Doors, context: ssl.SSLContext | None) -> None:
    runner = web.AppRunner(dispatcher.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, doors.host, doors.port, ssl_context=context)
    stopped = asyncio.Event()
    for what in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(what, stopped.set)
    watches = [
        asyncio.create_task(dispatcher.watch()),
        asyncio.create_task(dispatcher.watch_clock()),
    ]
    for watch in watches:
        watch.add_done_callback(lambda _: stopped.set())
    try:
        await site.start()
        host, port = runner.addresses[0][:2]
        print(f"listening on http{'s' if context else ''}://{host}:{port}", flush=True)
        await stopped.wait()
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await runner.cleanup()
        await dispatcher.close()


def _tls(doors: Doors) -> ssl.SSLContext | None:
    if doors.tls_cert is None:
        if doors.client_ca is not None:
            raise SettingError("dispatcher: --client-ca needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(doors.tls_cert, doors.tls_key)
        if doors.client_ca is not None:
            context.load_verify_locations(doors.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"dispatcher: TLS: {error}") from error
    return context
