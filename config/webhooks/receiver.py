"""An example consumer of webhooks: verifies, drops what came before, answers once it is on disk.

Python's standard library alone:

    python receiver.py --secret-file crm.secret --database crm.db --port 8090

Put a proxy that speaks TLS before it. Secrets are lines of `whsec_…`, as the bridge has them; during
a change of keys both sides may have two. What was received is in the table `events` of the database.
"""

import argparse
import base64
import hashlib
import hmac
import json
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOLERANCE_S = 300  # older is a replay, or one of the clocks is wrong
LARGEST = 64 * 1024 * 1024

TABLE = """
CREATE TABLE IF NOT EXISTS events (
    place INTEGER PRIMARY KEY AUTOINCREMENT,  -- in order of arrival
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    session_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    body TEXT NOT NULL,
    times INTEGER NOT NULL DEFAULT 1          -- that it came; more than one is no trouble
)
"""
KEEP = """
INSERT INTO events (id, type, session_id, sequence, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET times = times + 1
"""


def is_genuine(keys: list[bytes], id: str, timestamp: str, signatures: str, body: bytes) -> bool:
    """Whether one of our keys made one of the signatures, and not long ago."""
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    signed = f"{id}.{timestamp}.".encode() + body
    wanted = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    given = [one.removeprefix("v1,").encode() for one in signatures.split() if one[:3] == "v1,"]
    # Every pair is compared, and in constant time: nothing is learnt from how long it takes.
    return any([hmac.compare_digest(one, other) for one in given for other in wanted])


class Receiver(ThreadingHTTPServer):
    """Keeps events in a database."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], keys: list[bytes], database: Path) -> None:
        """Opens the database."""
        super().__init__(address, Handler)
        self.keys = keys
        self.database = sqlite3.connect(database, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute(TABLE)
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is no trouble: what was not answered comes again."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def keep(self, body: bytes) -> None:
        """Raises ValueError, KeyError for what is no event, sqlite3.Error when it cannot be kept."""
        event = json.loads(body)
        row = (event["id"], event["type"], event["subject"], event["sequence"], body.decode())
        with self.lock, self.database:
            self.database.execute(KEEP, row)


class Handler(BaseHTTPRequestHandler):
    """One connection of the bridge."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # of an idle connection
    server: Receiver

    def do_POST(self) -> None:
        """Answer 204 once the event is on disk: the bridge forgets it then."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(int(length))
        id, timestamp, signatures = (
            self.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        if not is_genuine(self.server.keys, id, timestamp, signatures, body):
            return self.answer(401)
        try:
            self.server.keep(body)
        except (ValueError, KeyError, TypeError):
            return self.answer(400)  # sent again, it would be the same: the bridge parks it
        except sqlite3.Error:
            return self.answer(503)  # sent again until it can be kept
        return self.answer(204)

    def answer(self, status: int) -> None:
        """An answer without a body."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: bodies are what people said."""


def main() -> None:
    """Receive until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--database", type=Path, default=Path("events.db"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    given = parser.parse_args()
    secrets = given.secret_file.read_text().split()
    keys = [base64.b64decode(one.removeprefix("whsec_")) for one in secrets]
    with Receiver((given.host, given.port), keys, given.database) as server:
        print(f"receiving at http://{given.host}:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
