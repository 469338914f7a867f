"""The AMQP sink: topic exchange, persistent, mandatory, confirmed. CloudEvents in binary mode.

Routing key: `<type>.<session id>`, such as `transcript.final.6f…`: bind `transcript.final.#`.
"""

import asyncio

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange
from aio_pika.exceptions import AMQPError, DeliveryError, PublishError
from yarl import URL

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.relay import Returned, Unreachable
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import Event
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_CONNECT_TIMEOUT_S = 10.0
_PUBLISH_TIMEOUT_S = 15.0  # a broker short of memory confirms nothing until it has some
_HEARTBEAT_S = 15


class AmqpSink:
    """A broker. `publish` returns once it has confirmed; `connect` again after any trouble."""

    name = "amqp"

    def __init__(self, url: str, metrics: Metrics, *, exchange: str = "siprec") -> None:
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
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._connecting = asyncio.Lock()
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
            await self._drop()
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    self._connection = await aio_pika.connect(self._url)
                    channel = await self._connection.channel(on_return_raises=True)
                    self._exchange = await channel.declare_exchange(
                        self._exchange_name, aio_pika.ExchangeType.TOPIC, durable=True
                    )
            except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
                await self._drop()
                self.trouble = _cause(error)
                raise Unreachable(self.trouble) from error
            self._connection.close_callbacks.add(self._lost)
            self.trouble = None
            self._metrics.amqp_connected.set(1)
            log.info("amqp.connected", broker=self.address)

    async def publish(self, event: Event) -> None:
        """Publish and wait for the confirm. Raises Unreachable, Returned."""
        exchange = self._exchange
        if exchange is None or not self.connected:
            raise Unreachable(self.trouble or "not connected")
        message = aio_pika.Message(
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
        try:
            async with asyncio.timeout(_PUBLISH_TIMEOUT_S):
                await exchange.publish(
                    message, routing_key=f"{event.type}.{event.session_id}", mandatory=True
                )
        except PublishError as error:
            raise Returned("unroutable: no queue is bound to its routing key") from error
        except DeliveryError as error:
            raise Unreachable("the broker refused it (nack)") from error
        except TimeoutError as error:
            # It may have arrived: it is sent again, and its id tells the consumer.
            await self._drop()
            raise Unreachable(f"no confirm within {_PUBLISH_TIMEOUT_S:g} s") from error
        except (AMQPError, OSError, RuntimeError) as error:
            await self._drop()
            raise Unreachable(_cause(error)) from error
        except asyncio.CancelledError:
            # aiormq cancels whoever waits for a confirm when its connection breaks.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unreachable("the connection broke") from None

    async def close(self) -> None:
        """Disconnect."""
        await self._drop()

    def _lost(self, _: object, error: BaseException | None = None) -> None:
        if self.trouble is None:
            self.trouble = _cause(error) if error is not None else "connection closed"
            log.error("amqp.connection_lost", broker=self.address, cause=self.trouble)
        self._metrics.amqp_connected.set(0)

    async def _drop(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        self._metrics.amqp_connected.set(0)
        if connection is not None:
            self.trouble = self.trouble or "connection closed"
            try:
                async with asyncio.timeout(2.0):
                    await connection.close()
            except (AMQPError, OSError, TimeoutError, RuntimeError):
                pass  # it was broken anyway


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
