"""The AMQP sink: topic exchange, persistent, mandatory, confirmed. CloudEvents in binary mode.

Routing key: `<type>.<session id>`, such as `transcript.final.6f…`: bind `transcript.final.#`. Where
the call's tenant or direction is known, the event has `call.<tenant>.<direction>.<type>` as well.
"""

import asyncio
import contextlib
import json
import re
import secrets
from typing import Any, Literal

import aiormq
import structlog
from aiormq.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pamqp.commands import Basic

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.broker import (
    BROKER_ERRORS,
    BrokerAway,
    BrokerConnection,
    Brokers,
    cause_of,
)
from siprec_bridge.delivery.events import CONTENT_TYPE
from siprec_bridge.delivery.relay import Declined, Returned, Unacceptable, Unreachable
from siprec_bridge.store import Event
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

Topology = Literal["declare", "check"]

_PUBLISH_TIMEOUT_S = 15.0
_TOPOLOGY_TIMEOUT_S = 10.0
_WATCH_S = 0.25
_LARGE = 65_536  # octets: beyond, one is written after the other, so that few are in memory
_BLOCKED = "the broker takes nothing now: its memory or disk alarm is on"
_PERSISTENT = 2
_CALL_IDS = '"call_ids":'
_JSON = json.JSONDecoder()


class AmqpSink:
    """A broker. `publish` returns once it has confirmed; `connect` again after any trouble.

    `topology`: the exchange is declared, or must be there. Transcripts of more than `inline_limit`
    octets go by reference, to an address that begins with `public_url`. A broker that blocks us keeps what it
    has not confirmed: nothing is sent again for that, and nothing further until it unblocks.
    """

    name = "amqp"

    def __init__(
        self,
        brokers: Brokers,
        metrics: Metrics,
        *,
        exchange: str = "siprec",
        topology: Topology = "declare",
        inline_limit: int | None = None,
        public_url: str = "",
        publish_timeout_s: float = _PUBLISH_TIMEOUT_S,
    ) -> None:
        self._brokers = brokers
        self._exchange = exchange
        self._topology = topology
        self._metrics = metrics
        self._inline_limit = inline_limit
        self._public_url = public_url
        self._publish_timeout_s = publish_timeout_s
        self._connection: BrokerConnection | None = None
        self._channel: aiormq.Channel | None = None
        self._watching: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._deadlines: set[asyncio.Timeout] = set()  # of what is not confirmed yet
        self._blocked = False
        self._suspects = 0  # so many events go one by one: the broker objected to one of them
        self._one_by_one = asyncio.Lock()
        self.trouble: str | None = "not connected yet"

    @property
    def address(self) -> str:
        """Where it goes, without credentials."""
        return f"{self._brokers.addresses}, {self._exchange}"

    @property
    def connected(self) -> bool:
        """Whether a broker is there and takes what we publish."""
        return self._open and not self._blocked

    @property
    def _open(self) -> bool:
        return self._channel is not None and not self._channel.is_closed

    async def connect(self) -> None:
        """Connect and see to the exchange, unless that is done. Raises Unreachable."""
        async with self._connecting:
            if self._open:
                if self._blocked:
                    raise Unreachable(_BLOCKED)
                return
            await self._drop("connection closed")
            try:
                connection = self._connection = await self._brokers.connect()
                async with asyncio.timeout(_TOPOLOGY_TIMEOUT_S):
                    channel = await connection.amqp.channel(on_return_raises=True)
                    assert isinstance(channel, aiormq.Channel)
                    await channel.exchange_declare(
                        self._exchange,
                        exchange_type="topic",
                        durable=True,
                        passive=self._topology == "check",
                    )
            except BrokerAway as error:
                self.trouble = str(error)
                raise Unreachable(self.trouble) from error
            except BROKER_ERRORS as error:
                cause = cause_of(error)
                if isinstance(error, ChannelNotFoundEntity):
                    cause += " (AMQP_TOPOLOGY=check: it must be there)"
                await self._drop(cause)
                self.trouble = cause
                raise Unreachable(cause) from error
            self._channel = channel
            self._watching = asyncio.create_task(self._watch(connection))
            self.trouble = None
            self._metrics.amqp_connected.set(1)
            log.info("amqp.connected", broker=connection.address, exchange=self._exchange)

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
        channel = self._channel
        if channel is None or channel.is_closed:
            raise Unreachable(self.trouble or "not connected")
        if self._blocked:
            raise Unreachable(_BLOCKED)
        body = event.body.encode()
        if self._inline_limit is not None and len(body) > self._inline_limit:
            body = envelope.by_reference(event, self._inline_limit, self._public_url).encode()
        deadline = asyncio.timeout(self._publish_timeout_s)
        try:
            async with deadline:
                self._deadlines.add(deadline)
                await channel.basic_publish(
                    body,
                    exchange=self._exchange,
                    routing_key=f"{event.type}.{event.session_id}",
                    properties=_properties(event),
                    mandatory=True,
                    wait=len(body) > _LARGE,
                )
        except PublishError as error:
            raise Returned("unroutable: no queue is bound to its routing key") from error
        except DeliveryError as error:
            raise Declined("the broker refused it (nack)") from error
        except ChannelPreconditionFailed as error:
            # It closes the channel for all that are under way and does not say over which.
            cause, alone = cause_of(error), len(self._deadlines) == 1
            self._suspects = max(self._suspects, len(self._deadlines))
            await self._drop(cause)
            if alone:
                raise Unacceptable(cause) from error
            raise Unreachable(cause) from error
        except TimeoutError as error:
            # It may have arrived: it is sent again, and its id tells the consumer.
            cause = f"no confirm within {self._publish_timeout_s:g} s"
            await self._drop(cause)
            raise Unreachable(cause) from error
        except BROKER_ERRORS as error:
            cause = cause_of(error)
            await self._drop(cause)
            raise Unreachable(cause) from error
        except asyncio.CancelledError:
            # aiormq cancels whoever waits for a confirm when its connection breaks.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unreachable("the connection broke") from None
        finally:
            self._deadlines.discard(deadline)

    async def try_out(self) -> None:
        """Take a message through the exchange to a queue of our own. Raises Unreachable."""
        channel = self._channel
        if channel is None:
            raise Unreachable(self.trouble or "not connected")
        key = f"doctor.{secrets.token_hex(8)}"
        try:
            queue = (await channel.queue_declare(exclusive=True)).queue or ""
            await channel.queue_bind(queue, self._exchange, key)
            await channel.basic_publish(b"ping", exchange=self._exchange, routing_key=key)
            found = await channel.basic_get(queue, no_ack=True)
        except BROKER_ERRORS as error:
            raise Unreachable(cause_of(error)) from error
        if found.body != b"ping":
            raise Unreachable("the message was confirmed and is not in the queue")

    async def close(self) -> None:
        """Disconnect."""
        await self._drop("disconnected")

    async def _watch(self, connection: BrokerConnection) -> None:
        """See the connection end, and the broker block and unblock us. Never raises."""
        ended = connection.amqp.closing
        while True:
            await asyncio.wait([ended], timeout=_WATCH_S)
            if ended.done():
                break
            # Whoever is blocked waits for as long as it takes: to send again would only add to it.
            if (blocked := await connection.blocked()) != self._blocked:
                self._set_blocked(blocked)
        if connection is not self._connection:
            return  # we have dropped it ourselves
        error = None if ended.cancelled() else ended.exception()
        self.trouble = cause_of(error) if error is not None else "connection closed"
        log.error("amqp.connection_lost", broker=connection.address, cause=self.trouble)
        self._metrics.amqp_connected.set(0)
        self._set_blocked(False)

    def _set_blocked(self, blocked: bool) -> None:
        if blocked == self._blocked:
            return
        self._blocked = blocked
        self._metrics.amqp_blocked.set(int(blocked))
        until = None if blocked else asyncio.get_running_loop().time() + self._publish_timeout_s
        for deadline in self._deadlines:
            with contextlib.suppress(RuntimeError):  # has just expired
                deadline.reschedule(until)
        if blocked:
            self.trouble = _BLOCKED
            log.error("amqp.blocked", cause=_BLOCKED, unconfirmed=len(self._deadlines))
        elif self.trouble == _BLOCKED:
            self.trouble = None
            log.info("amqp.unblocked")

    async def _drop(self, cause: str) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        watching, self._watching = self._watching, None
        self._metrics.amqp_connected.set(0)
        if watching is not None:
            watching.cancel()
        self._set_blocked(False)
        self.trouble = self.trouble or cause
        if connection is not None:
            await connection.close()


def _properties(event: Event) -> Basic.Properties:
    headers: dict[str, Any] = {
        f"ce-{name}": value
        for name, value in envelope.attributes(event).items()
        if name != "datacontenttype"  # binary mode: the content type says it
    }
    if further := _further_keys(event):
        headers["CC"] = further  # a queue that is bound to several of its keys gets it once
    return Basic.Properties(
        content_type=CONTENT_TYPE,
        content_encoding="utf-8",
        delivery_mode=_PERSISTENT,
        message_id=event.id,
        message_type=event.type,
        timestamp=event.at,
        app_id="siprec-bridge",
        headers=headers,
    )


def _further_keys(event: Event) -> list[str]:
    """`call.<tenant>.<direction>.<type>`, with `-` for what is not known, or nothing."""
    # The body is our own JSON: reading all of it would cost more than all the rest.
    place = event.body.find(_CALL_IDS)
    if place < 0:
        return []
    call_ids, _ = _JSON.raw_decode(event.body, place + len(_CALL_IDS))
    tenant, direction = call_ids.get("tenant"), call_ids.get("direction")
    if not (tenant or direction):
        return []
    return [f"call.{_word(tenant)}.{_word(direction)}.{event.type}"]


def _word(text: str | None) -> str:
    """A word of a routing key, which a dot would end; a key has 255 octets at most."""
    kept = re.sub(r"[^\w@+-]", "_", text or "-").lower()
    return kept.encode()[:100].decode(errors="ignore")
