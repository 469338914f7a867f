"""SIP over TCP and TLS: a connection is a stream of messages."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from siprec_bridge.signalling.udp import zone_of
from siprec_bridge.sip import BrokenStream, KeepAlive, Peer, StreamFramer

log = structlog.get_logger()

_WRITE_LIMIT = 1 << 20  # a peer that does not read is cut off
_HALF_MESSAGE_TIMEOUT_S = 32.0
_LAST_WORDS_S = 1.0


class StreamConnection(asyncio.Protocol):
    """One connection. `on_heard` is called whenever something comes, `on_lost` once it is gone."""

    def __init__(
        self,
        flow: int,
        receive: Callable[[bytes, Peer], None],
        refuse: Callable[[BrokenStream, Peer], None],
        on_made: Callable[["StreamConnection"], None],
        on_heard: Callable[["StreamConnection"], None],
        on_lost: Callable[["StreamConnection"], None],
        *,
        ours: bool = False,
    ) -> None:
        self.flow = flow
        self.ours = ours  # we opened it
        self.aliases: set[int] = set()  # ports of its peer's host that it stands for. RFC 5923
        self._receive = receive
        self._refuse = refuse
        self._on_made = on_made
        self._on_heard = on_heard
        self._on_lost = on_lost
        self._framer = StreamFramer()
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._over = False  # nothing is read or written any more

    @property
    def peer(self) -> Peer | None:
        """Its other end, once the connection is there."""
        return self._peer

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The verified certificate of a TLS peer that had to show one."""
        return self._transport.get_extra_info("peercert") if self._transport is not None else None

    @property
    def is_open(self) -> bool:
        """Whether what is sent can still get there."""
        if self._transport is None or self._over:
            return False
        return not self._transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Asyncio: the connection is there."""
        self._transport = transport
        address = transport.get_extra_info("peername")
        if address is None:  # its other end has closed it already
            transport.abort()
            return
        host, port = address[:2]
        local_host, local_port = transport.get_extra_info("sockname")[:2]
        kind = "tls" if transport.get_extra_info("ssl_object") is not None else "tcp"
        self._peer = Peer(
            kind, host, port, self.flow, local_host, local_port, zone=zone_of(address)
        )
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Asyncio: some bytes came."""
        assert self._peer is not None
        if not self.is_open:
            return  # the rest of a broken stream, or what TLS had read already
        self._on_heard(self)
        broken: BrokenStream | None = None
        try:
            whole = self._framer.feed(data)
        except BrokenStream as error:
            whole, broken = error.whole, error
        for message in whole:
            if isinstance(message, KeepAlive):
                self.send(b"\r\n")
            else:
                self._receive(message, self._peer)
        if broken is not None:
            self._refuse(broken, self._peer)
            self._hang_up()
        else:
            self._watch(anew=bool(whole))

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio: the connection is gone."""
        if self._patience is not None:
            self._patience.cancel()
        self._on_lost(self)

    def send(self, data: bytes) -> None:
        """Write bytes; a peer that does not take them loses its connection."""
        if self._transport is None or not self.is_open:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _WRITE_LIMIT and self._peer is not None:
            log.warning("sip.peer_does_not_read", peer=_shown(self._peer))
            self._transport.abort()

    def close(self) -> None:
        """Send what waits and close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever waits."""
        if self._transport is not None:
            self._transport.abort()

    def _hang_up(self) -> None:
        """Close, but not at once: what is unread by then would take our last words along."""
        if self._transport is None or not self.is_open:
            return
        self._over = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if self._patience is not None:
            self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.close)

    def _watch(self, *, anew: bool) -> None:
        """A message that is begun must be finished in time, however slowly it comes."""
        if self._patience is not None and (anew or not self._framer.pending):
            self._patience.cancel()
            self._patience = None
        if self._framer.pending and self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(_HALF_MESSAGE_TIMEOUT_S, self._lose_patience)

    def _lose_patience(self) -> None:
        if self._peer is not None:
            log.warning("sip.message_not_finished", peer=_shown(self._peer))
        self.close()


def _shown(peer: Peer) -> str:
    return f"{peer.transport}:{peer.host}:{peer.port}"
