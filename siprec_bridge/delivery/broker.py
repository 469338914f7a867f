"""AMQP brokers and how we get into them: several hosts in turn, TLS, a client certificate.

aiormq, which is under aio-pika, is used as it is: a channel that publishes and is confirmed is all
we need, and aio-pika's messages and waits for each write would double the CPU that an event costs.
"""

import asyncio
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiormq
from aiormq.connection import SSLContextProvider, TransportFactory
from aiormq.exceptions import AMQPError, InvalidFrameError
from yarl import URL

from siprec_bridge.provider import ConfigurationError

_CONNECT_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 2.0

# What aiormq raises for trouble with a broker; the last for a connection that has ended.
BROKER_ERRORS = (AMQPError, OSError, TimeoutError, RuntimeError)


class BrokerAway(Exception):
    """No broker lets us in; says why, in one line."""


@dataclass(frozen=True, slots=True)
class BrokerTls:
    """PEM files for amqps: who signs brokers' certificates, and our own certificate and key."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises OSError, of which ssl.SSLError is one."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(eq=False, slots=True)
class BrokerConnection:
    """An open connection to one of the brokers."""

    amqp: aiormq.Connection
    address: str
    transport: asyncio.WriteTransport

    async def blocked(self) -> bool:
        """Whether the broker said that it takes nothing now: its memory or disk alarm."""
        try:
            async with asyncio.timeout(0):
                await self.amqp.ready()
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        """Say goodbye; a broker that does not answer is cut off. What waits for it fails."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.amqp.close()
        except BROKER_ERRORS:
            pass  # it was broken anyway
        finally:
            self.transport.abort()


class Brokers:
    """The brokers of a cluster by their URLs, by commas; they are tried in turn."""

    def __init__(
        self,
        urls: str,
        *,
        tls: BrokerTls | None = None,
        external: bool = False,
        heartbeat_s: int = 15,
    ) -> None:
        """Raises ConfigurationError for what cannot be. `external`: the certificate logs us in."""
        parts = [one.strip() for one in re.split(r",(?=\s*amqps?://)", urls)]
        self._tls = tls
        self._urls = [_parse(one) for one in parts]
        wanted = {"heartbeat": str(heartbeat_s)} | ({"auth": "external"} if external else {})
        self._urls = [one.update_query(wanted) for one in self._urls]
        self._next = 0
        encrypted = all(one.scheme == "amqps" for one in self._urls)
        if tls is not None:
            if not encrypted:
                raise ConfigurationError("AMQP_URL", "must be amqps:// for AMQP_TLS_…")
            try:
                tls.context()
            except OSError as error:
                raise ConfigurationError(
                    "AMQP_TLS_CA_PATH, …CERT_PATH, …KEY_PATH", str(error)
                ) from error
        has_certificate = tls is not None and tls.certificate is not None
        if external and not (
            encrypted and (has_certificate or all("certfile" in one.query for one in self._urls))
        ):
            raise ConfigurationError("AMQP_AUTH=external", "needs amqps:// and AMQP_TLS_CERT_PATH")

    @property
    def addresses(self) -> str:
        """Where they are, without credentials."""
        return ", ".join(_address(one) for one in self._urls)

    async def connect(self) -> BrokerConnection:
        """Connect to the first that lets us in, another than the last time. Raises BrokerAway."""
        causes = []
        for turn in range(len(self._urls)):
            index = (self._next + turn) % len(self._urls)
            url = self._urls[index]
            try:
                connection = await self._open(url)
            except BROKER_ERRORS as error:
                cause = _refusal(url, error)
                causes.append(cause if len(self._urls) == 1 else f"{_address(url)}: {cause}")
            else:
                self._next = (index + 1) % len(self._urls)
                return connection
        raise BrokerAway("; ".join(causes))

    async def _open(self, url: URL) -> BrokerConnection:
        # Read anew each time: certificates are renewed.
        context = await asyncio.to_thread(self._tls.context) if self._tls is not None else None
        transports = _Corked()
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            connection = _Connection(
                url,
                context=context,
                transport_factory=transports,
                client_properties={"connection_name": "siprec-bridge"},
            )
            try:
                await connection.connect()
            except BaseException:
                if transports.transport is not None:
                    transports.transport.abort()
                raise
        assert transports.transport is not None
        return BrokerConnection(connection, _address(url), transports.transport)


class _Connection(aiormq.Connection):
    # Of ten, as it is, publishers that wait for room go on one in a turn of the loop.
    FRAME_BUFFER_SIZE = 1024


class _Corked(TransportFactory):
    """Connections that send with one system call what is written in one turn of the loop."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    async def create(
        self, url: URL, **arguments: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        contexts: SSLContextProvider = arguments.pop("ssl_context_provider")
        context = await contexts.get_context() if url.scheme == "amqps" else None
        self.transport, _ = await loop.create_connection(
            lambda: protocol, url.host or "", url.port or 0, ssl=context, **arguments
        )
        return reader, _CorkedWriter(self.transport, protocol, reader, loop)


class _CorkedWriter(asyncio.StreamWriter):
    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._held: list[bytes] = []
        self._turns = loop

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._held:
            self._turns.call_soon(self._send)
        self._held.append(bytes(data))

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self.is_closing():
            super().write(b"".join(held))

    async def drain(self) -> None:
        self._send()
        await super().drain()

    def write_eof(self) -> None:
        self._send()
        super().write_eof()

    def close(self) -> None:
        self._send()
        super().close()


def _parse(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigurationError("AMQP_URL", f"is not a URL: {error}") from error
    if url.scheme not in ("amqp", "amqps") or not url.host:
        raise ConfigurationError("AMQP_URL", "must be amqp://user:password@host:port/vhost")
    return url if url.explicit_port else url.with_port(5671 if url.scheme == "amqps" else 5672)


def _address(url: URL) -> str:
    return f"{url.scheme}://{url.host}:{url.port}"


def _refusal(url: URL, error: BaseException) -> str:
    """Why there is no connection, in one line."""
    if isinstance(error, InvalidFrameError) and "Connection.OpenOk" in str(error):
        # aiormq does not pass on what the broker said to that.
        vhost = url.path.removeprefix("/") or "/"
        return f"the broker does not let us into its virtual host {vhost}"
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {_CONNECT_TIMEOUT_S:g} s"
    return cause_of(error)


def cause_of(error: BaseException) -> str:
    """One line of why."""
    return " ".join(str(error).split()) or type(error).__name__
