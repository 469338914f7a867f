"""The AMQP sink: topic exchange, persistent, mandatory, confirmed. CloudEvents in binary mode.

Routing key: `<type>.<session id>`, such as `transcript.final.6f…`: bind `transcript.final.#`.
"""

import asyncio

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import (
    AMQPError,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from aiormq.exceptions import InvalidFrameError
from yarl import URL

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.relay import Declined, Returned, Unacceptable, Unreachable
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import Event
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_CONNECT_TIMEOUT_S = 10.0
_PUBLISH_TIMEOUT_S = 15.0  # a broker short of memory confirms nothing until it has some
_CLOSE_TIMEOUT_S = 2.0
_HEARTBEAT_S = 15


class AmqpSink:
    """A broker. `publish` returns once it has confirmed; `connect` again after any trouble."""

    name = "amqp"

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        exchange: str = "siprec",
        publish_timeout_s: float = _PUBLISH_TIMEOUT_S,
    ) -> None:
        """Raises ConfigurationError for a URL that is none of a broker."""
        try:
            parsed = URL(url)
        except ValueError as error:
            raise ConfigurationError("AMQP_URL", f"is not a URL: {error}") from error
        if parsed.scheme not in ("amqp", "amqps") or not parsed.host:
            raise ConfigurationError("AMQP_URL", "must be amqp://user:password@host:port/vhost")
        self._url = parsed.update_query(heartbeat=str(_HEARTBEAT_S))
        self._exchange_name = exchange
        self._metrics = metrics
        self._publish_timeout_s = publish_timeout_s
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._connecting = asyncio.Lock()
        self._in_flight = 0
        self._suspects = 0  # so many events go one by one: the broker objected to one of them
        self._one_by_one = asyncio.Lock()
        self.trouble: str | None = "not connected yet"

    @property
    def address(self) -> str:
        """Where it goes, without credentials."""
        return f"{self._url.scheme}://{self._url.host}:{self._url.port}, {self._exchange_name}"

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return (
            self._connection is not None
            and not self._connection.is_closed
            and self._exchange is not None
        )

    async def connect(self) -> None:
        """Connect and declare the exchange, unless that is done. Raises Unreachable."""
        async with self._connecting:
            if self.connected:
                return
            await self._drop("connection closed")
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    connection = self._connection = await aio_pika.connect(self._url)
                    channel = await connection.channel(on_return_raises=True)
                    self._exchange = await channel.declare_exchange(
                        self._exchange_name, aio_pika.ExchangeType.TOPIC, durable=True
                    )
            except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
                cause = self._refusal(error)
                await self._drop(cause)
                raise Unreachable(cause) from error
            connection.close_callbacks.add(lambda _, error=None: self._lost(connection, error))
            self.trouble = None
            self._metrics.amqp_connected.set(1)
            log.info("amqp.connected", broker=self.address)

    async def publish(self, event: Event) -> None:
        """Publish and wait for the confirm.

        Raises Unreachable, Returned (no queue for it), Declined (nack: a queue is full),
        Unacceptable (the broker closes the channel over it: larger than it allows).
        """
        if not self._suspects:
            await self._publish(event)
            return
        async with self._one_by_one:
            try:
                await self._publish(event)
            except Unacceptable:
                self._suspects = 0
                raise
            self._suspects = max(0, self._suspects - 1)

    async def _publish(self, event: Event) -> None:
        exchange = self._exchange
        if exchange is None or not self.connected:
            raise Unreachable(self.trouble or "not connected")
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await exchange.publish(
                    _message(event),
                    routing_key=f"{event.type}.{event.session_id}",
                    mandatory=True,
                )
        except PublishError as error:
            raise Returned("unroutable: no queue is bound to its routing key") from error
        except DeliveryError as error:
            raise Declined("the broker refused it (nack)") from error
        except ChannelPreconditionFailed as error:
            # It closes the channel for all that are under way and does not say over which.
            cause, alone = _cause(error), self._in_flight == 1
            self._suspects = max(self._suspects, self._in_flight)
            await self._drop(cause)
            if alone:
                raise Unacceptable(cause) from error
            raise Unreachable(cause) from error
        except TimeoutError as error:
            # It may have arrived: it is sent again, and its id tells the consumer.
            cause = f"no confirm within {self._publish_timeout_s:g} s"
            await self._drop(cause)
            raise Unreachable(cause) from error
        except (AMQPError, OSError, RuntimeError) as error:
            cause = _cause(error)
            await self._drop(cause)
            raise Unreachable(cause) from error
        except asyncio.CancelledError:
            # aiormq cancels whoever waits for a confirm when its connection breaks.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unreachable("the connection broke") from None
        finally:
            self._in_flight -= 1

    async def close(self) -> None:
        """Disconnect."""
        await self._drop("disconnected")

    def _lost(self, connection: AbstractConnection, error: BaseException | None) -> None:
        if connection is not self._connection:
            return  # we have dropped it ourselves
        self.trouble = _cause(error) if error is not None else "connection closed"
        log.error("amqp.connection_lost", broker=self.address, cause=self.trouble)
        self._metrics.amqp_connected.set(0)

    async def _drop(self, cause: str) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        self._metrics.amqp_connected.set(0)
        self.trouble = self.trouble or cause
        if connection is not None:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await connection.close()
            except (AMQPError, OSError, TimeoutError, RuntimeError):
                pass  # it was broken anyway

    def _refusal(self, error: BaseException) -> str:
        """Why there is no connection, in one line."""
        if isinstance(error, InvalidFrameError) and "Connection.OpenOk" in str(error):
            # aiormq does not pass on what the broker said to that.
            return f"the broker does not let us into its virtual host {self._virtual_host}"
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer within {_CONNECT_TIMEOUT_S:g} s"
        return _cause(error)

    @property
    def _virtual_host(self) -> str:
        return self._url.path.removeprefix("/") or "/"


def _message(event: Event) -> aio_pika.Message:
    return aio_pika.Message(
        event.body.encode(),
        content_type=envelope.CONTENT_TYPE,
        content_encoding="utf-8",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=event.id,
        type=event.type,
        timestamp=event.at,
        app_id="siprec-bridge",
        headers={
            f"ce-{name}": value
            for name, value in envelope.attributes(event).items()
            if name != "datacontenttype"  # binary mode: the content type says it
        },
    )


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
