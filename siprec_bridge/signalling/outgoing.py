"""Connections for messages whose own connection is gone. RFC 3261 §18.1.1 and §18.2.2."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.signalling.admission import domains_of
from siprec_bridge.signalling.complaints import Complaints
from siprec_bridge.signalling.locate import Locator
from siprec_bridge.signalling.stream import StreamConnection
from siprec_bridge.sip import is_address
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_ATTEMPT_S = 5.0  # name, connection and handshake together
_SERVER_S = 2.0  # for one of several servers
_MOST_TRIED = 4  # servers, in one attempt
_REST_S = 10.0  # a place that could not be reached is left alone for so long
_MOST_WAITING = 1000  # messages for one place
_MOST_ATTEMPTS = 64
_MOST_OPEN = 256
_MOST_RESTING = 1000
_COMPLAIN_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message may go over a new connection, and the address of ours that it comes from.

    `host` may be a name; without a port it is a domain that tells its servers. `server`: the one
    of them that is wanted, address and port. `zone`: of addresses that are link-local.
    """

    transport: str
    host: str
    port: int | None
    local_host: str
    server: tuple[str, int] | None = None
    zone: int = 0

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        server = f" ({self.server[0]}:{self.server[1]})" if self.server is not None else ""
        return f"{self.transport}:{self.host}{port}{server}"


class Unreachable(OSError):
    """Why no connection to a place may be made."""


class Outgoing:
    """One connection a place, shared by all that goes there; `connect` opens it.

    A place that cannot be reached costs one attempt in `_REST_S`, however much is sent there.
    """

    def __init__(
        self,
        connect: Callable[[Place], Awaitable[StreamConnection]],
        write: Callable[[bytes, StreamConnection], None],
        lost: Callable[[bytes], None],
        metrics: Metrics,
        *,
        rest: float = _REST_S,
        attempt: float = _ATTEMPT_S,
    ) -> None:
        self._connect = connect
        self._write = write
        self._lost = lost
        self._metrics = metrics
        self._rest = rest
        self._patience = attempt
        self._open: dict[Place, StreamConnection] = {}
        self._waiting: dict[Place, list[bytes]] = {}  # for an attempt that is under way
        self._resting: dict[Place, float] = {}  # until when
        self._tasks: set[asyncio.Task[None]] = set()
        self._complaints = Complaints(lambda: asyncio.get_running_loop().time(), _COMPLAIN_EVERY_S)
        self._closed = False

    def send(self, data: bytes, place: Place) -> None:
        """Send it over the connection to the place, as soon as there is one."""
        connection = self._open.get(place)
        if connection is not None and connection.is_open:
            self._write(data, connection)
            return
        self._open.pop(place, None)
        waiting = self._waiting.get(place)
        if waiting is not None:
            if data not in waiting:  # a 2xx that is sent again
                if len(waiting) < _MOST_WAITING:
                    waiting.append(data)
                else:
                    self._lose(place, [data])
            return
        now = asyncio.get_running_loop().time()
        rests = self._resting.get(place, now) > now
        if rests or self._closed or len(self._tasks) >= _MOST_ATTEMPTS:
            self._lose(place, [data])
            return
        self._waiting[place] = [data]
        task = asyncio.create_task(self._attempt(place), name=f"connection to {place}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def server_of(self, place: Place) -> tuple[str, int] | None:
        """Which of its servers a place's connection is to, if it has one."""
        connection = self._open.get(place)
        peer = connection.peer if connection is not None else None
        return (peer.host, peer.port) if peer is not None else None

    @property
    def attempts(self) -> set[asyncio.Task[None]]:
        """Those under way."""
        return self._tasks

    async def stop(self) -> None:
        """Let the attempts under way end, so that the last BYEs arrive; begin no other."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attempt(self, place: Place) -> None:
        connection: StreamConnection | None = None
        cause = ""
        try:
            async with asyncio.timeout(self._patience):
                connection = await self._connect(place)
        except TimeoutError:
            cause = f"no connection within {self._patience:g} s"
        except (OSError, ValueError, ConfigurationError) as error:  # ValueError: no host name
            cause = getattr(error, "strerror", None) or str(error)
        except Exception as error:  # our fault: the messages for other places must go on
            log.exception("sip.connection_failed", place=str(place))
            cause = type(error).__name__
        finally:
            waiting = self._waiting.pop(place)
        result = "failed" if connection is None else "opened" if connection.ours else "reused"
        self._metrics.sip_connections_opened_total.labels(
            transport=place.transport, result=result
        ).inc()
        if connection is None:
            self._leave_alone(place)
            self._lose(place, waiting)
            if (unsaid := self._complaints.due((place.transport, place.host))) is not None:
                log.warning(
                    "sip.peer_unreachable",
                    peer=str(place), cause=cause, messages=len(waiting), more_before=unsaid,
                )  # fmt: skip
            return
        log.info(f"sip.connection_{result}", peer=str(place), messages=len(waiting))
        if len(self._open) >= _MOST_OPEN:
            oldest = self._open.pop(next(iter(self._open)))
            if oldest.ours:
                oldest.close()
        self._open[place] = connection
        for data in waiting:
            self._write(data, connection)

    def _leave_alone(self, place: Place) -> None:
        now = asyncio.get_running_loop().time()
        if len(self._resting) >= _MOST_RESTING:
            self._resting = {one: until for one, until in self._resting.items() if until > now}
        self._resting[place] = now + self._rest

    def _lose(self, place: Place, messages: Sequence[bytes]) -> None:
        self._metrics.sip_undelivered_total.labels(transport=place.transport).inc(len(messages))
        for data in messages:
            # Later: who sends must not be told before he is done with sending.
            asyncio.get_running_loop().call_soon(self._lost, data)


class Dialler:
    """Opens TCP and TLS connections. Two threads look names up: slow ones must hold up no other.

    `alias` knows the connection, if any, over which a TLS peer asked for what goes to an address.
    """

    def __init__(
        self,
        accept: Callable[[], StreamConnection],
        admits: Callable[[str], bool],
        tls: Callable[[], ssl.SSLContext],
        *,
        alias: Callable[[str, int], StreamConnection | None] = lambda address, port: None,
        nameservers: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._accept = accept
        self._admits = admits
        self._tls = tls
        self._alias = alias
        self._resolver = ThreadPoolExecutor(2, thread_name_prefix="resolver")
        self._locator = Locator(self._resolver, nameservers)

    async def connect(self, place: Place) -> StreamConnection:
        """The first of its servers that answers. Raises OSError, ValueError, ConfigurationError."""
        servers = [place.server] if place.server is not None else await self.servers(place)
        if not servers:
            raise Unreachable("is no address that may talk to us")
        if place.transport == "tls":
            for address, port in servers:
                known = self._alias(address, port)
                if known is not None and _stands_for(known, place.host):
                    return known
        context: ssl.SSLContext | None = None
        if place.transport == "tls":
            context = await asyncio.to_thread(self._tls)
        error: OSError = Unreachable("no address")
        for number, (address, port) in enumerate(servers, 1):
            try:
                async with asyncio.timeout(_SERVER_S if number < len(servers) else None):
                    connection = await self._open(place, address, port, context)
                self._check(connection, context, place.host)
            except OSError as one:  # TimeoutError is one
                error = one
                continue
            return connection
        raise error

    async def servers(self, place: Place) -> list[tuple[str, int]]:
        """Addresses and ports to try, best first; none: it has none that may talk to us.

        Raises OSError, ValueError.
        """
        found = [one for one in await self._servers(place) if self._admits(one[0])]
        return found[:_MOST_TRIED]

    async def _open(
        self, place: Place, address: str, port: int, context: ssl.SSLContext | None
    ) -> StreamConnection:
        _, connection = await asyncio.get_running_loop().create_connection(
            self._accept,
            _in_zone(address, place.zone),
            port,
            ssl=context,
            server_hostname=place.host if context is not None else None,
            local_addr=(_in_zone(place.local_host, place.zone), 0),
        )
        return connection

    async def _servers(self, place: Place) -> list[tuple[str, int]]:
        """Addresses and ports in the order in which to try them."""
        family = socket.AF_INET6 if ":" in place.local_host else socket.AF_INET
        if place.port is None:
            servers = await self._locator.servers(place.host, place.transport, family)
            if servers:
                return servers
        port = place.port or (5061 if place.transport == "tls" else 5060)
        found = await asyncio.get_running_loop().run_in_executor(
            self._resolver,
            lambda: socket.getaddrinfo(place.host, port, family, socket.SOCK_STREAM),
        )
        return [(str(one[4][0]), port) for one in found]

    def _check(
        self, connection: StreamConnection, context: ssl.SSLContext | None, host: str
    ) -> None:
        """The certificate of a name must be for it, where we can tell a certificate's worth."""
        if connection.peer is None:
            raise Unreachable("it closes connections at once")
        if not connection.is_open:
            raise Unreachable("its certificate is not allowed")
        if context is None or context.verify_mode is not ssl.CERT_REQUIRED:
            return
        if not _is_for(connection, host):
            connection.close()
            raise Unreachable("its certificate is for another name")

    def close(self) -> None:
        """Look no more names up."""
        self._resolver.shutdown(wait=False, cancel_futures=True)


def _in_zone(address: str, zone: int) -> str:
    """An address as our sockets want it, which a link-local one alone does not tell."""
    return f"{address}%{zone}" if zone and ip_address(address).is_link_local else address


def _stands_for(connection: StreamConnection, host: str) -> bool:
    """Whether a peer's own connection is one to this host: its certificate tells. RFC 5923 §5.2."""
    return connection.is_open and bool(connection.certificate) and _is_for(connection, host)


def _is_for(connection: StreamConnection, host: str) -> bool:
    """Whether the certificate is for this host. Addresses are in few."""
    return is_address(host) or host.lower().rstrip(".") in domains_of(connection.certificate)
