"""A consumer that loses nothing and does nothing twice: transcripts from RabbitMQ into SQLite.

    pip install aio-pika
    AMQP_URL=amqp://siprec-consumer:password@broker/ python amqp_consumer.py

Take it as a beginning: replace `store` by what you do with a transcript, in the transaction that
notes its id. The three rules of it: what was seen before is acknowledged and dropped, what is new is
acknowledged after our own commit, what nobody can ever read is rejected, for the dead letters.

QUEUE (siprec.transcripts), DATABASE (transcripts.db); for transcripts that come by reference
BRIDGE_URL (http://bridge:8080) and BRIDGE_TOKEN, a token of scope read.
"""

import asyncio
import hashlib
import json
import logging
import os
import signal
import sqlite3
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

log = logging.getLogger("consumer")

PREFETCH = 50
PAUSE_S = 5.0  # before a message is tried again that we could not take for reasons of our own
REMEMBER_DAYS = 60  # ids; a bridge may send again for as long as it keeps events (KEEP_EVENTS)


class Unreadable(Exception):
    """No further try will make anything of this message."""


def main() -> None:
    """Consume until SIGTERM or SIGINT."""
    if "AMQP_URL" not in os.environ:
        sys.exit("AMQP_URL=amqp://user:password@host/ says where; see the head of this file")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(consume(os.environ))


async def consume(settings: Mapping[str, str]) -> None:
    """One message at a time, in their order."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = open_database(settings.get("DATABASE", "transcripts.db"))
    # Reconnects by itself; what was not acknowledged then comes again.
    connection = await aio_pika.connect_robust(settings["AMQP_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        # It was made by definitions.json: its consumers do not choose what it is.
        queue = await channel.get_queue(settings.get("QUEUE", "siprec.transcripts"))
        in_order = asyncio.Lock()

        async def take(message: AbstractIncomingMessage) -> None:
            async with in_order:
                await handle(message, database, settings)

        await queue.consume(take)
        log.info("consuming %s", queue.name)
        await stop.wait()
    database.close()


async def handle(
    message: AbstractIncomingMessage, database: sqlite3.Connection, settings: Mapping[str, str]
) -> None:
    """Take a message and acknowledge it, or give it back."""
    try:
        id, kind = message.message_id, message.type
        if not id or not kind:
            raise Unreadable("it has no id or no type")
        if seen(database, id):
            log.info("%s %s: again, dropped", kind, id)
        else:
            data = read(message.body)
            if data.get("reference"):
                data = read(await asyncio.to_thread(fetch, data["reference"], settings))
            with database:  # one transaction: the id and what we did for it
                database.execute("INSERT INTO seen (id) VALUES (?)", (id,))
                store(database, kind, data)
    except Unreadable as error:
        log.error("%s: %s", message.message_id, error)
        await message.reject(requeue=False)  # to the dead letters
    except (OSError, sqlite3.Error) as error:
        log.error("%s: not taken now: %s", message.message_id, error)
        await asyncio.sleep(PAUSE_S)
        await message.nack(requeue=True)  # the queue's delivery-limit counts these
    else:
        await message.ack()


def open_database(path: str) -> sqlite3.Connection:
    """Open it, and make its tables."""
    database = sqlite3.connect(path)
    database.executescript(
        """
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = FULL;
        CREATE TABLE IF NOT EXISTS seen (
            id TEXT PRIMARY KEY, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
        );
        CREATE TABLE IF NOT EXISTS events (
            number INTEGER PRIMARY KEY, type TEXT, session_id TEXT, data TEXT
        );
        """
    )
    with database:
        database.execute(
            "DELETE FROM seen WHERE at < datetime('now', ?)", (f"-{REMEMBER_DAYS} days",)
        )
    return database


def seen(database: sqlite3.Connection, id: str) -> bool:
    """Whether we have committed this event before."""
    return database.execute("SELECT 1 FROM seen WHERE id = ?", (id,)).fetchone() is not None


def store(database: sqlite3.Connection, kind: str, data: dict[str, Any]) -> None:
    """What is to be done once for each event. Here: keep it."""
    database.execute(
        "INSERT INTO events (type, session_id, data) VALUES (?, ?, ?)",
        (kind, data["session_id"], json.dumps(data)),
    )


def read(body: bytes) -> dict[str, Any]:
    """The data of an event; what you need of it is to be checked here."""
    try:
        data = json.loads(body)
    except ValueError as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("session_id"), str):
        raise Unreadable("it names no session")
    return data


def fetch(reference: dict[str, Any], settings: Mapping[str, str]) -> bytes:
    """What was too large to be sent. Raises OSError, also for what is not what was announced."""
    # The token goes to the bridge that we know, not to wherever a message says.
    base = settings.get("BRIDGE_URL", "http://127.0.0.1:8080").rstrip("/")
    request = urllib.request.Request(base + urllib.parse.urlsplit(reference["url"]).path)
    if token := settings.get("BRIDGE_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
    if hashlib.sha256(body).hexdigest() != reference["sha256"]:
        raise OSError("what came is not what was announced")
    return body


if __name__ == "__main__":
    main()
