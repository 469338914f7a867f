"""All SIP endpoints, and the loop around the machine: receive, perform, wake at its deadline."""

import asyncio
import itertools
import math
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import structlog

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.signalling.admission import Admission, domains_of
from siprec_bridge.signalling.complaints import Complaints
from siprec_bridge.signalling.outgoing import Dialler, Outgoing, Place, Unreachable
from siprec_bridge.signalling.stream import StreamConnection
from siprec_bridge.signalling.tls import TlsServerContext
from siprec_bridge.signalling.udp import UdpEndpoint
from siprec_bridge.sip import (
    AliasAsked,
    AnswerContent,
    BrokenStream,
    Content,
    DialogId,
    Malformed,
    NextServerWanted,
    Output,
    Peer,
    RequestId,
    RequestSeen,
    ResponseSent,
    Send,
    SipServer,
)
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_BACKLOG = 1024
_HANDSHAKE_TIMEOUT_S = 10.0
_MOST_CONNECTIONS = 20_000  # where files are without number, memory is not
_MOST_SEARCHES = 256  # at once, for servers of peers
_SEARCH_S = 5.0
_DRAIN_S = 6.0  # longer than an attempt at a connection takes
_MOST_ALIASES = 16  # of one connection
_SOCKET_BUFFER = 4 << 20  # a burst of INVITEs of some KB each must not be lost


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that SIP listens on."""

    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Listener:
    """Binds the endpoints and drives the machine. `on_event` gets what it reports, in order.

    `nameservers`: those to ask, address and port, instead of the system's. `most_connections`
    are open at once; by default, half of the files that the process may open, up to 20,000.
    """

    def __init__(
        self,
        server: SipServer,
        on_event: Callable[[Output], None],
        metrics: Metrics,
        admission: Admission | None = None,
        trace: Callable[[bytes, Peer, bool], None] = lambda data, peer, sent: None,
        nameservers: Sequence[tuple[str, int]] = (),
        most_connections: int | None = None,
    ) -> None:
        self._most_connections = most_connections or _half_of_all_files()
        self._server = server
        self._admission = admission or Admission()
        self._trace = trace  # gets every message of admitted peers, both ways
        self._on_event = on_event
        self._metrics = metrics
        self._flows = itertools.count(1)
        self._udp: dict[int, UdpEndpoint] = {}
        # By flow, in the order in which they give way: strangers, then the longest silent.
        self._connections: OrderedDict[int, StreamConnection] = OrderedDict()
        self._streams: list[tuple[str, asyncio.Server]] = []  # transport and server
        self._tls: TlsServerContext | None = None
        self._aliases: dict[tuple[str, int], StreamConnection] = {}  # RFC 5923: latest that asked
        self._dialler = Dialler(
            self._dial,
            self._admission.admits,
            self._client_context,
            alias=lambda address, port: self._aliases.get((address, port)),
            nameservers=nameservers,
        )
        self._outgoing = Outgoing(self._dialler.connect, self._write, self._take_back, metrics)
        self._searches: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._crowds = Complaints(self._now, every=60.0)
        self._strangers = Complaints(self._now, every=3600.0)
        self._garbled_streams = Complaints(self._now, every=math.inf)
        self._garbled_datagrams = Complaints(self._now, every=60.0)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where SIP is received now."""
        udp = [Endpoint("udp", one.host, one.port) for one in self._udp.values()]
        streams = [
            Endpoint(transport, *one.getsockname()[:2])
            for transport, server in self._streams
            if server.is_serving()
            for one in server.sockets
        ]
        return (*udp, *streams)

    async def start(
        self,
        hosts: Sequence[str],
        *,
        udp_ports: Sequence[int],
        tcp_ports: Sequence[int],
        tls_port: int | None = None,
        tls: TlsServerContext | None = None,
    ) -> None:
        """Bind every port at every host. A port 0 takes one that is free for both UDP and TCP.

        Raises ConfigurationError when an address cannot be bound.
        """
        self._tls = tls
        for host in dict.fromkeys(hosts):
            for port in dict.fromkeys((*udp_ports, *tcp_ports)):
                await self._bind(host, port, udp=port in udp_ports, tcp=port in tcp_ports)
            if tls_port is not None and tls is not None:
                await self._bind_tls(host, tls_port, tls.context)

    async def stop(self) -> None:
        """Unbind and close the connections, once what waits for one of ours is on its way."""
        await self._drain()
        await self._outgoing.stop()
        for search in self._searches:
            search.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)
        self._dialler.close()
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for endpoint in self._udp.values():
            endpoint.close()
        for _, server in self._streams:
            server.close()
        for connection in list(self._connections.values()):
            connection.close()
        await asyncio.sleep(0)  # lets the transports say goodbye

    async def _drain(self) -> None:
        """Let the last BYEs find their server, their connection, or else their way back."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _DRAIN_S
        while under_way := self._searches | self._outgoing.attempts:
            left = until - loop.time()
            if left <= 0:
                return
            await asyncio.wait(under_way, timeout=left)
            await asyncio.sleep(0)  # what was lost is told with the next turn

    def respond(self, id: RequestId, status: int, **content: Unpack[AnswerContent]) -> None:
        """Answer a request; one that no longer waits for an answer is passed over."""
        self._perform(self._server.respond(id, status, now=self._now(), **content))

    def request(self, dialog: DialogId, method: str, **content: Unpack[Content]) -> None:
        """Send a request in a dialog."""
        self._perform(self._server.request(dialog, method, now=self._now(), **content))

    async def _bind(self, host: str, port: int, *, udp: bool, tcp: bool) -> None:
        loop = asyncio.get_running_loop()
        for attempt in range(20 if port == 0 else 1):
            stream: asyncio.Server | None = None
            try:
                if tcp:
                    stream = await loop.create_server(
                        self._accept, host, port, backlog=_BACKLOG, reuse_address=True
                    )
                wanted = stream.sockets[0].getsockname()[1] if stream is not None else port
                if udp:
                    await self._bind_udp(host, wanted)
            except OSError as error:
                if stream is not None:
                    stream.close()
                if port == 0 and attempt < 19:
                    continue  # the port that TCP got is taken for UDP: another one
                raise ConfigurationError.cannot_listen(
                    "SIP", (host, port), error, host="SIP_HOST", port="PORTS"
                ) from error
            if stream is not None:
                self._streams.append(("tcp", stream))
            return

    async def _bind_tls(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        try:
            server = await asyncio.get_running_loop().create_server(
                self._accept,
                host,
                port,
                ssl=tls,
                ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S,
                backlog=_BACKLOG,
                reuse_address=True,
            )
        except OSError as error:
            raise ConfigurationError.cannot_listen(
                "SIP", (host, port), error, host="SIP_HOST", port="TLS_PORT"
            ) from error
        self._streams.append(("tls", server))

    async def _bind_udp(self, host: str, port: int) -> None:
        flow = next(self._flows)
        endpoint = UdpEndpoint(flow, self._receive)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = found[0]
        one = socket.socket(family, kind)
        try:
            if family == socket.AF_INET6:
                # As asyncio does for TCP: "::" leaves IPv4 to a listener of its own.
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
            one.setblocking(False)
            one.bind(address)
            await loop.create_datagram_endpoint(lambda: endpoint, sock=one)
        except OSError:
            one.close()
            raise
        self._udp[flow] = endpoint

    def _accept(self, *, ours: bool = False) -> StreamConnection:
        return StreamConnection(
            next(self._flows),
            self._receive,
            self._refuse,
            self._connection_made,
            self._connection_heard,
            self._connection_lost,
            ours=ours,
        )

    def _dial(self) -> StreamConnection:
        return self._accept(ours=True)

    def _connection_made(self, connection: StreamConnection) -> None:
        self._connections[connection.flow] = connection
        peer = connection.peer
        if peer is None:
            return
        if not self._admission.admits(peer.host):
            self._connections.move_to_end(connection.flow, last=False)
            self._note_unadmitted("sip.source_not_allowed", peer)
            if not self._admission.forbid:
                connection.close()
        elif peer.transport == "tls":
            domains = domains_of(connection.certificate)
            if not self._admission.admits_certificate(domains):
                self._connections.move_to_end(connection.flow, last=False)
                self._note_unadmitted("sip.certificate_not_allowed", peer, domains=list(domains))
                connection.close()
        if len(self._connections) > self._most_connections:
            self._make_room()

    def _connection_heard(self, connection: StreamConnection) -> None:
        peer = connection.peer
        there = connection.flow in self._connections
        if there and peer is not None and self._admission.admits(peer.host):
            self._connections.move_to_end(connection.flow)

    def _make_room(self) -> None:
        """Close the connection that is missed least; whoever needs it opens another."""
        _, idlest = self._connections.popitem(last=False)
        idlest.abort()
        self._metrics.sip_connections_crowded_out_total.inc()
        if idlest.peer is not None and (unsaid := self._crowds.due("")) is not None:
            log.warning(
                "sip.too_many_connections",
                most=self._most_connections, closed=_shown(idlest.peer), more_before=unsaid,
            )  # fmt: skip

    def _note_unadmitted(self, event: str, peer: Peer, **more: object) -> None:
        self._metrics.sip_unadmitted_total.labels(transport=peer.transport).inc()
        # Not a line a packet: a scan must not fill the disk. The metric has them all.
        if (unsaid := self._strangers.due((event, peer.host))) is not None:
            log.warning(event, peer=_shown(peer), **more, more_before=unsaid)

    def _note_malformed(self, peer: Peer, reason: str) -> None:
        self._metrics.sip_malformed_total.labels(transport=peer.transport).inc()
        unsaid = (
            self._garbled_streams.due(peer.flow)
            if peer.reliable
            else self._garbled_datagrams.due((peer.host, reason))
        )
        if unsaid is not None:
            log.warning("sip.malformed", peer=_shown(peer), reason=reason, more_before=unsaid)

    def _connection_lost(self, connection: StreamConnection) -> None:
        self._connections.pop(connection.flow, None)
        if connection.aliases:
            self._aliases = {
                place: one for place, one in self._aliases.items() if one is not connection
            }
        unsaid = self._garbled_streams.forget(connection.flow)
        if unsaid and connection.peer is not None:
            log.warning("sip.malformed_more", peer=_shown(connection.peer), messages=unsaid)

    def _refuse(self, broken: BrokenStream, peer: Peer) -> None:
        if not self._admission.admits(peer.host):
            return
        try:
            self._perform(self._server.refuse(broken, peer))
        except Exception:  # our fault, and this connection's alone
            log.exception("sip.message_not_handled", peer=_shown(peer))

    def _receive(self, data: bytes, peer: Peer) -> None:
        try:
            if not self._admission.admits(peer.host):
                if peer.transport == "udp":
                    self._note_unadmitted("sip.source_not_allowed", peer)
                if self._admission.forbid:
                    self._perform(self._server.turn_away(data, peer))
                return
            self._trace(data, peer, False)
            self._perform(self._server.receive(data, peer, self._now()))
        except Exception:  # our fault, and this message's alone: the others must go on
            log.exception("sip.message_not_handled", peer=f"{peer.transport}:{peer.host}")

    def _wake(self) -> None:
        self._alarm = None
        try:
            self._perform(self._server.advance(self._now()))
        except Exception:  # our fault: the other dialogs' timers must go on
            log.exception("sip.timer_failed")
            self._set_alarm()

    def _perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(data, peer):
                    self._send(data, peer)
                case RequestSeen(transport, method):
                    self._metrics.sip_requests_total.labels(
                        transport=transport, method=method
                    ).inc()
                case AliasAsked(peer, port):
                    self._note_alias(peer, port)
                case NextServerWanted():
                    self._search(output)
                case ResponseSent(method, status):
                    self._metrics.sip_responses_total.labels(method=method, status=status).inc()
                case Malformed(peer, reason):
                    self._note_malformed(peer, reason)
                case _:
                    self._on_event(output)
        self._set_alarm()

    def _note_alias(self, peer: Peer, port: int) -> None:
        """Take a connection for the way to its other end, whose certificate says who that is."""
        connection = self._connections.get(peer.flow)
        if connection is None or not connection.certificate:
            return  # anyone could ask for what is meant for others
        if port not in connection.aliases and len(connection.aliases) < _MOST_ALIASES:
            connection.aliases.add(port)
            self._aliases[peer.host, port] = connection

    def _send(self, data: bytes, peer: Peer) -> None:
        if peer.transport == "udp":
            self._trace(data, peer, True)
            endpoint = self._udp.get(peer.flow) or self._udp_for(peer)
            if endpoint is not None:
                endpoint.send(data, peer)
            elif not self._closed:  # later: who sends must not be told before he is done with it
                asyncio.get_running_loop().call_soon(self._take_back, data)
            return
        connection = self._connections.get(peer.flow)
        if connection is not None and connection.is_open:
            self._trace(data, peer, True)
            connection.send(data)
        elif peer.elsewhere is not None:
            self._outgoing.send(data, _place(peer))
        else:
            self._metrics.sip_undelivered_total.labels(transport=peer.transport).inc()

    def _udp_for(self, peer: Peer) -> UdpEndpoint | None:
        """A socket that sends from this address of ours, from the same port if there is one."""
        wildcard = "::" if ":" in peer.local_host else "0.0.0.0"
        fitting = [one for one in self._udp.values() if one.host in (peer.local_host, wildcard)]
        return min(fitting, key=lambda one: one.port != peer.local_port, default=None)

    def _search(self, wanted: NextServerWanted) -> None:
        """Look for another server for a request; it goes nowhere where too many do that."""
        if self._closed or len(self._searches) >= _MOST_SEARCHES:
            return self._perform(self._server.redirect(wanted.branch, None, self._now()))
        search = asyncio.create_task(self._find_server(wanted), name="search for a SIP server")
        self._searches.add(search)
        search.add_done_callback(self._searches.discard)
        return None

    async def _find_server(self, wanted: NextServerWanted) -> None:
        place = _place(wanted.peer)
        domain = replace(place, server=None)
        failed = wanted.failed | {self._outgoing.server_of(place)}
        found: list[tuple[str, int]] = []
        try:
            async with asyncio.timeout(_SEARCH_S):
                found = await self._dialler.servers(domain)
        except (OSError, ValueError) as error:  # TimeoutError is one; ValueError: no host name
            log.info("sip.no_other_server", peer=str(domain), cause=str(error))
        server = next((one for one in found if one not in failed), None)
        if server is not None:
            log.info("sip.next_server", peer=str(domain), server=f"{server[0]}:{server[1]}")
        self._perform(self._server.redirect(wanted.branch, server, self._now()))

    def _take_back(self, data: bytes) -> None:
        """What was sent cannot get anywhere."""
        try:
            self._perform(self._server.undeliverable(data, self._now()))
        except Exception:  # our fault, and this message's alone
            log.exception("sip.message_not_handled")

    def _write(self, data: bytes, connection: StreamConnection) -> None:
        if connection.peer is not None:
            self._trace(data, connection.peer, True)
        connection.send(data)

    def _client_context(self) -> ssl.SSLContext:
        if self._tls is None:
            raise Unreachable("TLS is not configured")
        return self._tls.client_context()

    def _set_alarm(self) -> None:
        at = self._server.next_deadline()
        if self._alarm is not None:
            if at == self._alarm.when():
                return
            self._alarm.cancel()
            self._alarm = None
        if at is not None and not self._closed:
            self._alarm = asyncio.get_running_loop().call_at(at, self._wake)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _half_of_all_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = soft if soft != resource.RLIM_INFINITY else 2 * _MOST_CONNECTIONS
    return min(files // 2, _MOST_CONNECTIONS)


def _place(peer: Peer) -> Place:
    """Where a message goes whose flow is gone. RFC 3263 §4."""
    host, port = peer.elsewhere or (peer.host, peer.port)
    server = None if peer.flow else (peer.host, peer.port)
    return Place(peer.transport, host, port, peer.local_host, server, peer.zone)


def _shown(peer: Peer) -> str:
    return f"{peer.transport}:{peer.host}:{peer.port}"
