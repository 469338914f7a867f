"""The engine and its transactions: one writer thread that groups commits, a few reader threads.

SQLite lets one writer in at a time, and an fsync costs milliseconds everywhere: so all works that
wait share one commit, and each caller returns when it is durable.
"""

import asyncio
import contextlib
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from siprec_bridge.store.dialect import Postgresql, backend_of, cause_of, insert_new
from siprec_bridge.store.errors import StoreError
from siprec_bridge.store.migrations import upgrade
from siprec_bridge.store.nodes import Sentinel
from siprec_bridge.store.schema import probe

log = structlog.get_logger()

T = TypeVar("T")

_GROUP_LIMIT = 500  # works that share one commit
_QUEUE_LIMIT = 10_000  # works that may wait; each has a caller that waits with it
_PROBE_TIMEOUT_S = 10.0
_AWAY_PAUSE_S = 1.0
_LOG_PATIENCE_S = 10.0
_CONFLICTS = 5  # with other nodes' transactions, until the works' callers are told
_CONFLICT_PAUSE_S = 0.1
_FRESH_S = 5.0  # a commit this recent proves that the database is writable


@dataclass(eq=False, slots=True)
class _Work:
    """A caller's transaction and, once done, its outcome."""

    do: Callable[[Connection], object]
    future: asyncio.Future[Any]
    value: object = None
    error: Exception | None = None


class Database:
    """Transactions for the event loop that called `start`. Use it from that loop only.

    `on_commit_seconds` gets the duration of every COMMIT, in the writer's thread. `wait`: seconds
    for which `start` waits for a server that is away. `node`: who this is among those that share the
    database; none: a passer-by, such as a command. `place` says where the database is.
    Raises ConfigurationError for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        on_commit_seconds: Callable[[float], None] | None = None,
        readers: int = 2,
        wait: float = 0.0,
        node: str | None = None,
    ) -> None:
        self._backend = backend_of(url)
        self.place = self._backend.place
        self.shared = self._backend.shared  # with other nodes
        self._wait_s = wait
        self.node = node if self.shared else None
        self._sentinel = (
            Sentinel(self._backend, self.node, self._hear)
            if self.node is not None and isinstance(self._backend, Postgresql)
            else None
        )
        self._on_commit_seconds = on_commit_seconds
        self._reader_count = readers
        self._listeners: list[Callable[[], None]] = []
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._open = False
        self._connected: Connection | None = None  # the writer's
        self._committed_at: float | None = None  # of the latest commit, if no failure followed

    async def start(self) -> None:
        """Create or migrate the database, under a lock, and open it. Raises StoreError."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._prepare)
        if self._sentinel is not None:
            await asyncio.to_thread(self._sentinel.start)
        self._write_engine = self._backend.engine()
        self._read_engine = self._backend.engine(readers=self._reader_count)
        self._readers = ThreadPoolExecutor(self._reader_count, thread_name_prefix="store-read")
        self._open = True
        self._writer = threading.Thread(target=self._run_writer, name="store-write", daemon=True)
        self._writer.start()

    async def stop(self) -> None:
        """Finish what was handed in, then close. Further calls end in a StoreError."""
        if not self._open:
            return
        with self._changed:
            self._open = False
            self._changed.notify()
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        if self._sentinel is not None:
            await asyncio.to_thread(self._sentinel.stop)
        self._read_engine.dispose()
        self._write_engine.dispose()

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Call `listener` in the event loop after every group of commits, and others' events.

        It must not lead to a write each time, or the database never rests.
        """
        self._listeners.append(listener)

    def leads(self, duty: str) -> bool:
        """Whether this is the one, of all that share the database, that has this duty now."""
        return self._sentinel is None or self._sentinel.leads(duty)

    def leave(self, duty: str) -> None:
        """Let another node have this duty, since we cannot do it now. `leads` applies again."""
        if self._sentinel is not None:
            self._sentinel.leave(duty)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction and return its result once that is durable.

        Raises StoreError when the database refused, or what `work` raised: then nothing of it
        is stored. `work` runs in another thread, perhaps twice, and should be short. A caller that
        is cancelled does not know whether it was done.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:
            if not self._open:
                raise StoreError("the database is closed")
            if len(self._queue) >= _QUEUE_LIMIT:
                raise StoreError(f"{_QUEUE_LIMIT} writes are waiting already")
            self._queue.append(_Work(work, future))
            self._changed.notify()
        return await future

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a snapshot of what is committed; it cannot write. Raises as `write` does."""
        if not self._open:
            raise StoreError("the database is closed")
        return await self._loop.run_in_executor(self._readers, self._read_now, work)

    async def shorten_log(self) -> None:
        """Leave nothing of what was deleted in the log beside SQLite's file.

        Readers that are at it are waited for, a while. Raises StoreError.
        """
        if not self.shared:
            await asyncio.to_thread(_truncate_log, self.place)

    async def keep_reserve(self) -> None:
        """Set room aside, where there is plenty, for a start when the disk is full."""
        if self._backend.reserve is not None:
            await asyncio.to_thread(self._backend.reserve.keep)

    async def unwritable(self) -> str | None:
        """Why nothing can be stored now (one line), or None. Writes a row unless just written."""
        if self._sentinel is not None and self._sentinel.trouble is not None:
            return self._sentinel.trouble
        committed_at = self._committed_at
        if self._open and committed_at is not None and time.monotonic() - committed_at < _FRESH_S:
            return None
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await self.write(_touch_probe)
        except StoreError as error:
            return str(error)
        except TimeoutError:
            return f"no commit within {_PROBE_TIMEOUT_S:g} s"
        return None

    def _prepare(self) -> None:
        deadline = time.monotonic() + self._wait_s
        told = False
        while True:
            try:
                self._migrate()
                return
            except (SQLAlchemyError, OSError) as error:
                cause = f"{self.place}: {cause_of(error)}"
                reserve = self._backend.reserve
                if reserve is not None and reserve.spend():
                    log.error("database.disk_full", cause=cause, effect="reserved room is used")
                    continue
                if not self._backend.is_away(error) or time.monotonic() >= deadline:
                    raise StoreError(cause) from error
            if not told:
                log.warning("database.awaited", cause=cause, for_s=self._wait_s)
                told = True
            time.sleep(min(_AWAY_PAUSE_S, max(0.0, deadline - time.monotonic())))

    def _migrate(self) -> None:
        self._backend.make_room()
        # Without foreign keys: a migration may have to rebuild a table that others refer to.
        engine = self._backend.engine(foreign_keys=False)
        try:
            with self._backend.migrating(engine) as connection:
                upgrade(connection, self.place)
        finally:
            engine.dispose()

    def _read_now(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._read_engine.begin() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise StoreError(cause_of(error)) from error

    def _run_writer(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._queue:
                    self._changed.wait()
                group = [self._queue.popleft() for _ in range(min(len(self._queue), _GROUP_LIMIT))]
            if not group:  # closed, and nothing is left
                if self._connected is not None:
                    self._connected.close()
                return
            # Cancelled before it began: then it shall not happen any more.
            group = [work for work in group if not work.future.cancelled()]
            if group:
                self._commit(group)
                with contextlib.suppress(RuntimeError):  # the loop is gone, and the callers too
                    self._loop.call_soon_threadsafe(self._resolve, group)

    def _commit(self, group: list[_Work]) -> None:
        """Run the works in one transaction and note each one's outcome. Never raises."""
        try:
            self._commit_despite_others(group)
            self._committed_at = time.monotonic()
        except Exception as error:  # noqa: BLE001  whatever it is, every caller must hear of it
            self._committed_at = None
            for work in group:
                work.error = StoreError(cause_of(error))
                work.error.__cause__ = error

    def _commit_despite_others(self, group: list[_Work]) -> None:
        """Do it again where it was ended for the sake of another node: nobody has an order of locks.

        Which rows a group locks, and when, is as its works came. Raises as COMMIT does.
        """
        for again in range(_CONFLICTS, -1, -1):
            for work in group:
                work.error = None  # of a try that came to nothing
            try:
                # Savepoints cost as much as the works: they are for groups in which one fails.
                if not self._commit_as_one(group):
                    self._commit_each(group)
                return
            except SQLAlchemyError as error:
                if not again or not self._backend.is_conflict(error):
                    raise
                log.info("database.conflict", cause=cause_of(error), works=len(group))
            time.sleep(_CONFLICT_PAUSE_S * random.random())

    def _commit_as_one(self, group: list[_Work]) -> bool:
        """Run and commit the works; False, and nothing is stored, when one of them failed.

        Raises as COMMIT does.
        """
        with self._connection() as connection, connection.begin() as transaction:
            try:
                for work in group:
                    work.value = work.do(connection)
            except Exception as error:  # its turn to tell comes when each is run on its own
                if self._backend.is_conflict(error):
                    raise
                transaction.rollback()
                return False
            self._timed_commit(connection, transaction)
        return True

    def _commit_each(self, group: list[_Work]) -> None:
        """Run each work in a savepoint and commit those that succeed. Raises as COMMIT does."""
        with self._connection() as connection, connection.begin() as transaction:
            for work in group:
                self._attempt(work, connection)
            self._timed_commit(connection, transaction)

    def _attempt(self, work: _Work, connection: Connection) -> None:
        """Run one work in its savepoint: its failure is its own.

        Raises when the savepoint cannot be rolled back, which ends the whole group, and for a
        conflict: what other works have locked is a part of it.
        """
        savepoint = connection.begin_nested()
        try:
            work.value = work.do(connection)
        except SQLAlchemyError as error:
            if self._backend.is_conflict(error):
                raise
            savepoint.rollback()
            work.error = StoreError(cause_of(error))
            work.error.__cause__ = error
        except StopIteration as error:  # a future cannot carry it
            savepoint.rollback()
            work.error = RuntimeError("the work raised StopIteration")
            work.error.__cause__ = error
        except Exception as error:  # noqa: BLE001  the caller's own error goes back to the caller
            savepoint.rollback()
            work.error = error
        else:
            savepoint.commit()

    def _timed_commit(self, connection: Connection, transaction: sa.RootTransaction) -> None:
        mark = self._backend.mark(connection)
        begun = time.perf_counter()
        try:
            transaction.commit()
        except DBAPIError as error:
            # The answer was lost, not necessarily the commit: one who does it again does it twice.
            lost = error.connection_invalidated and mark is not None
            connection.invalidate()
            connection.close()
            if not lost or not self._backend.was_committed(self._write_engine, mark or 0):
                raise
        if self._on_commit_seconds is not None:
            self._on_commit_seconds(time.perf_counter() - begun)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """The writer's connection, the same as long as it is sound."""
        connection = self._connected or self._write_engine.connect()
        self._connected = None
        try:
            yield connection
        except BaseException:
            # After a full disk or an I/O error SQLite has rolled back by itself: what state
            # its connection is in is not worth finding out.
            if not connection.closed:  # by a commit that failed: its error is the one to tell
                connection.invalidate()
                connection.close()
            raise
        if connection.closed or connection.invalidated:
            connection.close()
        else:
            self._connected = connection

    def _resolve(self, group: list[_Work]) -> None:
        """Hand the outcomes to the callers, some of whom may have gone. In the event loop."""
        for work in group:
            if work.future.done():
                continue
            if work.error is not None:
                work.future.set_exception(work.error)
            else:
                work.future.set_result(work.value)
        if any(work.error is None for work in group):
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _hear(self) -> None:
        """Another node committed events. In the sentinel's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(self._tell)


def _truncate_log(path: str) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_LOG_PATIENCE_S)) as connection:
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error
    if busy:
        log.warning("database.log_not_shortened", effect="the next checkpoints overwrite it")


def _touch_probe(connection: Connection) -> None:
    at = datetime.now(UTC)
    connection.execute(insert_new(connection, probe), {"id": 1, "at": at})
    connection.execute(probe.update().values(at=at))
