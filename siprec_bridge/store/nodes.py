"""What a node is to the others that share its database: its name, its duties, and the news of them.

One connection, outside of the pools, holds advisory locks for as long as this process lives and
reaches the server; another node gets them when it does not.
"""

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from siprec_bridge.store.dialect import CHANNEL, TRY_LOCK, UNLOCK, Postgresql
from siprec_bridge.store.errors import StoreError

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger()

# A server that was not told of our end notices within 25 s: see `dialect`.
_PATIENCE_S = 40.0
_PAUSE_S = 0.5


def node_id(folder: Path) -> str:
    """The name of the node whose data this folder has, made up when it has none. Raises OSError."""
    path = folder / "node-id"
    with contextlib.suppress(FileExistsError):
        made = folder / f".node-id-{secrets.token_hex(4)}"
        made.write_text(f"{socket.gethostname().partition('.')[0]}-{secrets.token_hex(4)}\n")
        try:
            os.link(made, path)  # whole or not at all, whoever else makes one up
        finally:
            made.unlink()
    return path.read_text().strip()


class Sentinel:
    """Holds the node's name and duties, and hears of others' commits, in a thread of its own.

    `on_news` is called in that thread. `trouble`: why this node is not what it says, in a line.
    """

    def __init__(self, backend: Postgresql, node: str, on_news: Callable[[], None]) -> None:
        self._backend = backend
        self._node = node
        self._on_news = on_news
        self._wanted: set[str] = set()
        self._held: frozenset[str] = frozenset()
        self._entered = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-node", daemon=True)
        self.trouble: str | None = None

    def start(self) -> None:
        """Return once the name is ours. Raises StoreError when another bridge has it."""
        self._thread.start()
        if not self._entered.wait(_PATIENCE_S):
            self.stop()
            raise StoreError(self.trouble or "the database did not answer")

    def stop(self) -> None:
        """Let others have what we held."""
        self._ending.set()
        self._thread.join()

    def leads(self, duty: str) -> bool:
        """Whether this node, of all, is the one with this duty. The first time, it applies for it."""
        self._wanted.add(duty)
        return duty in self._held

    def leave(self, duty: str) -> None:
        """Let another node have this duty, until we apply for it again."""
        self._wanted.discard(duty)
        self._held -= {duty}

    def _run(self) -> None:
        import psycopg

        while not self._ending.is_set():
            try:
                with self._backend.connect() as connection:
                    self._serve(connection)
            except (psycopg.Error, StoreError) as error:
                log.warning("node.connection_lost", cause=" ".join(str(error).split()))
            finally:
                self._held = frozenset()
            self._ending.wait(_PAUSE_S)

    def _serve(self, connection: "psycopg.Connection[Any]") -> None:
        """Until the connection is lost, or we end. Raises psycopg's errors."""
        if not _lock(connection, f"node {self._node}"):
            if self.trouble is None:
                self.trouble = f"another bridge runs as NODE_ID={self._node}"
                log.error("node.name_taken", node=self._node)
            return
        self.trouble = None
        connection.execute(f"LISTEN {CHANNEL}".encode())
        self._entered.set()
        self._on_news()  # what happened while nobody listened
        locked: set[str] = set()  # on this connection
        while not self._ending.is_set():
            wanted = set(self._wanted)
            for duty in locked - wanted:
                connection.execute(UNLOCK.encode(), (duty,))
                locked.remove(duty)
            for duty in wanted - self._held:
                if duty in locked or _lock(connection, duty):
                    locked.add(duty)
                    self._held |= {duty}
                    log.info("node.leads", duty=duty)
                    self._on_news()
            connection.execute("SELECT 1")  # a server that is gone does not notify
            for _ in connection.notifies(timeout=_PAUSE_S, stop_after=1):
                self._on_news()


def _lock(connection: "psycopg.Connection[Any]", name: str) -> bool:
    found = connection.execute(TRY_LOCK.encode(), (name,)).fetchone()
    return found is not None and bool(found[0])
