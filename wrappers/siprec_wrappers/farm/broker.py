"""The broker's side: what is declared there, and a thin connection for all but the Celery worker.

Messages are Celery's (protocol 2), written with py-amqp: to import Celery costs a client more than
the rest of its work.
"""

import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp
from amqp.exceptions import AMQPError, MessageNacked

from siprec_wrappers.farm.job import TASK, Job, job_of
from siprec_wrappers.farm.settings import Settings

_TIMEOUT_S = 10.0
_HEARTBEAT_S = 30
# The broker takes a job away from a worker that has not confirmed it for this long, and closes its
# channel; the broker's default of 30 minutes is less than a long recording takes.
_LONGEST_JOB_MS = 24 * 3600 * 1000
# To list the dead is to take them and to give them back, which RabbitMQ 4 by itself allows 20 times.
_DEAD_QUEUE = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


class BrokerError(OSError):
    """The broker cannot be reached or refuses."""


def queue_arguments(settings: Settings) -> dict[str, object]:
    """Arguments of a pool's queue; RabbitMQ refuses the queue to whoever declares it otherwise."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": settings.attempts,
        "x-dead-letter-exchange": settings.dead_exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # at-least-once needs it
        "x-consumer-timeout": _LONGEST_JOB_MS,
    }


def address(url: str) -> dict[str, Any]:
    """py-amqp's arguments of `amqp://user:password@host:port/vhost` or amqps. Raises BrokerError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BrokerError("WHISPER_FARM_BROKER is no URL") from error
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise BrokerError("WHISPER_FARM_BROKER must be amqp://… or amqps://…")
    secure = parts.scheme == "amqps"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return {
        "host": f"{host}:{port or (5671 if secure else 5672)}",
        "userid": unquote(parts.username or "guest"),
        "password": unquote(parts.password or "guest"),
        "login_method": "PLAIN",
        "virtual_host": unquote(parts.path.removeprefix("/")) or "/",
        # Checked against the system's authorities, or those in SSL_CERT_FILE.
        "ssl": {"context": {"check_hostname": True}, "server_hostname": parts.hostname}
        if secure
        else False,
    }


class Broker:
    """One connection. All methods raise BrokerError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with _as_broker_errors():
            self._connection = amqp.Connection(
                **address(settings.broker),
                connect_timeout=_TIMEOUT_S,
                read_timeout=_TIMEOUT_S,
                write_timeout=_TIMEOUT_S,
                heartbeat=_HEARTBEAT_S,
                confirm_publish=True,
                client_properties={"connection_name": "whisper-farm"},
            )
            self._connection.connect()
            self._channel = self._connection.channel()

    def declare(self) -> None:
        """Declare exchanges and queues, which is nothing where they are there.

        Without waiting: what the broker refuses ends the next call that waits.
        """
        settings, channel = self._settings, self._channel
        with _as_broker_errors():
            for exchange in (
                settings.jobs_exchange,
                settings.dead_exchange,
                settings.done_exchange,
            ):
                channel.exchange_declare(
                    exchange, "topic", durable=True, auto_delete=False, nowait=True
                )
            for queue, exchange, key, arguments in (
                (settings.dead_queue, settings.dead_exchange, "#", _DEAD_QUEUE),
                (
                    settings.queue,
                    settings.jobs_exchange,
                    f"{settings.pool}.#",
                    queue_arguments(settings),
                ),
            ):
                channel.queue_declare(
                    queue, durable=True, auto_delete=False, arguments=arguments, nowait=True
                )
                channel.queue_bind(queue, exchange, key, nowait=True)

    def listen(self, requests: list[str], ended: dict[str, bool]) -> None:
        """Note the ends of these requests in `ended` from now on: True where the broker gave up."""

        def heard(message: Any) -> None:
            info = message.delivery_info
            request = info["routing_key"].rpartition(".")[2]
            ended[request] = ended.get(request, False) or (
                info["exchange"] == self._settings.dead_exchange
            )

        with _as_broker_errors():
            queue = f"{self._settings.name}.client.{secrets.token_hex(16)}"
            self._channel.queue_declare(queue, exclusive=True, auto_delete=True, nowait=True)
            for request in requests:
                for exchange in (self._settings.done_exchange, self._settings.dead_exchange):
                    self._channel.queue_bind(queue, exchange, f"#.{request}", nowait=True)
            self._channel.basic_consume(
                queue, consumer_tag="ends", no_ack=True, nowait=True, callback=heard
            )

    def publish(self, job: Job) -> None:
        """Hand a job to the pool's queue; returns when the broker has it on disk."""
        expires = datetime.fromtimestamp(job.deadline, UTC).isoformat()
        headers = {
            "lang": "py",
            "task": TASK,
            "id": job.request,
            "root_id": job.request,
            "parent_id": None,
            "group": None,
            "argsrepr": f"({job.id[:12]},)",
            "kwargsrepr": "{}",
            "expires": expires,
            "retries": 0,
            "timelimit": [None, None],
            "ignore_result": True,
        }
        body = json.dumps([[job.to_json()], {}, {}])
        self._send(headers, body, self._settings.routing_key(job.request))

    def _send(self, headers: dict[str, Any], body: str | bytes, routing_key: str) -> None:
        message = amqp.Message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            application_headers=headers,
            delivery_mode=2,
            correlation_id=headers["id"],
        )
        with _as_broker_errors():
            self._channel.basic_publish_confirm(
                message,
                self._settings.jobs_exchange,
                routing_key,
                timeout=_TIMEOUT_S,
                confirm_timeout=_TIMEOUT_S,
            )

    def wait(self, seconds: float) -> None:
        """Wait for one message or this long."""
        with _as_broker_errors():
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=seconds)
            self._connection.heartbeat_tick()

    def depth(self, queue: str) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consumers it has."""
        with _as_broker_errors():
            found = self._channel.queue_declare(queue, passive=True)
            return int(found.message_count), int(found.consumer_count)

    def dead(self) -> list[tuple[int, Job | None, str]]:
        """Take all dead jobs: delivery tag, job, reason. They go back when the connection closes."""
        found: list[tuple[int, Job | None, str]] = []
        with _as_broker_errors():
            waiting, _ = self.depth(self._settings.dead_queue)
            while len(found) < waiting:
                message = self._channel.basic_get(self._settings.dead_queue)
                if message is None:
                    break
                headers = message.headers or {}
                reason = str(headers.get("x-first-death-reason", "unknown"))
                found.append((message.delivery_tag, job_of(message.body), reason))
        return found

    def revive(self, tag: int, job: Job) -> None:
        """Put a dead job back to the living, then off the dead queue."""
        self.publish(job)
        with _as_broker_errors():
            self._channel.basic_ack(tag)

    def leave(self) -> None:
        """Say that we close, and do not wait for the answer; never raises."""
        with contextlib.suppress(AMQPError, OSError):
            self._connection.send_method(amqp.spec.Connection.Close, "BsBB", (200, "", 0, 0))

    def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(AMQPError, OSError):
            self._connection.close()


@contextlib.contextmanager
def _as_broker_errors() -> Iterator[None]:
    try:
        yield
    except BrokerError:
        raise
    except MessageNacked as error:
        raise BrokerError("broker: it refused the job") from error
    except (AMQPError, OSError, socket.gaierror) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BrokerError(f"broker: {cause} (WHISPER_FARM_BROKER)") from error
