"""All in which SQLite and PostgreSQL differ: connecting, locking, numbering, time, what is in doubt.

Everything else in the store is one text for both.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store.errors import StoreError
from siprec_bridge.store.reserve import Reserve
from siprec_bridge.store.schema import passages
from siprec_bridge.store.words import Term

if TYPE_CHECKING:
    import psycopg

_BUSY_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 10
_MIGRATION_PATIENCE_S = 60.0
_DOUBT_PATIENCE_S = 15.0
_DOUBT_PAUSE_S = 0.2
_SHARED_MEMORY = 1 << 15  # octets: what SQLite keeps its locks in, at least

# Advisory locks are numbers: ours are this one and the hash of a name in our schema.
_LOCK_CLASS = 0x5193EC
_LOCK_KEY = f"{_LOCK_CLASS}, hashtext(current_schema() || ':' || :name)"
CHANNEL = "siprec_bridge_events"


class Backend(Protocol):
    """One kind of database at one URL.

    `place` is what people are told of it, without the password. `shared`: other nodes may use it.
    `reserve`: room for a start on a full disk, where the disk is ours to mind.
    """

    place: str
    shared: bool
    reserve: Reserve | None

    def make_room(self) -> None:
        """Make what must exist before the first connection. Raises OSError."""
        ...

    def engine(self, readers: int = 0, *, foreign_keys: bool = True) -> Engine:
        """One writing connection, or so many that only read."""
        ...

    def migrating(self, engine: Engine) -> contextlib.AbstractContextManager[Connection]:
        """A transaction in which nobody else migrates. Raises StoreError, OSError."""
        ...

    def is_away(self, error: Exception) -> bool:
        """Whether the server could not be reached, which may pass."""
        ...

    def is_conflict(self, error: Exception) -> bool:
        """Whether a transaction was ended for the sake of another's, and would go well now."""
        ...

    def mark(self, connection: Connection) -> int | None:
        """What to ask `was_committed` about when the connection is lost in mid-commit."""
        ...

    def was_committed(self, engine: Engine, mark: int) -> bool:
        """Whether the marked transaction was committed. Raises StoreError: nobody knows."""
        ...


def backend_of(url: str) -> Backend:
    """Raises ConfigurationError for a URL that cannot be used."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:  # the latter for its port
        raise ConfigurationError("DATABASE_URL", "is not a URL such as sqlite:///PATH") from error
    match parsed.get_backend_name():
        case "sqlite":
            return Sqlite(parsed)
        case "postgresql":
            return Postgresql(parsed)
        case name:
            raise ConfigurationError(
                f"DATABASE_URL={name}", "only sqlite:///PATH and postgresql://… are supported"
            )


class Sqlite:
    """A file of our own: one writer at a time, durable at each commit."""

    shared = False

    def __init__(self, url: sa.URL) -> None:
        if not url.database or url.database == ":memory:":
            raise ConfigurationError("DATABASE_URL", "needs a file: sqlite:///PATH")
        self._path = Path(url.database).absolute()
        self._url = url.set(drivername="sqlite+pysqlite", database=str(self._path))
        self.place = str(self._path)
        self.reserve: Reserve | None = Reserve(self._path)

    def make_room(self) -> None:
        """Make the file's folder."""
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def engine(self, readers: int = 0, *, foreign_keys: bool = True) -> Engine:
        """See Backend."""
        engine = sa.create_engine(
            self._url,
            poolclass=sa.QueuePool,
            pool_size=readers or 1,
            max_overflow=0,
            hide_parameters=True,
            connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_S},
        )

        def prepare(connection: Any, _: object) -> None:
            connection.isolation_level = None  # the driver begins transactions late: we do it
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if shutil.disk_usage(self._path.parent).free < _SHARED_MEMORY:
                    # It calls it an I/O error: there is no room for the file of its locks.
                    raise sqlite3.OperationalError("database or disk is full") from error
                raise
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # what is erased is gone from the file
            connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
            connection.execute(f"PRAGMA query_only = {'ON' if readers else 'OFF'}")

        def begin(connection: Connection) -> None:
            # A writer takes its lock at once: a transaction that begins by reading could not wait.
            connection.exec_driver_sql("BEGIN" if readers else "BEGIN IMMEDIATE")

        sa.event.listen(engine, "connect", prepare)
        sa.event.listen(engine, "begin", begin)
        return engine

    @contextlib.contextmanager
    def migrating(self, engine: Engine) -> Iterator[Connection]:
        """Hold a lock file; it stays behind, since removing it would let two in."""
        path = self._path.with_name(self._path.name + ".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + _MIGRATION_PATIENCE_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreError(f"{path}: another process holds the lock") from None
                    time.sleep(0.05)
            with engine.begin() as connection:
                yield connection
        finally:
            os.close(descriptor)

    def is_away(self, error: Exception) -> bool:
        """A file does not come back."""
        return False

    def is_conflict(self, error: Exception) -> bool:
        """There is one writer."""
        return False

    def mark(self, connection: Connection) -> None:
        """A commit to a file is never in doubt."""
        return

    def was_committed(self, engine: Engine, mark: int) -> bool:
        """Never asked."""
        raise NotImplementedError


class Postgresql:
    """A server that several nodes share. Needs the extra `postgresql`."""

    shared = True
    reserve: Reserve | None = None

    def __init__(self, url: sa.URL) -> None:
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "DATABASE_URL=postgresql", "needs: pip install 'siprec-bridge[postgresql]'"
            ) from error
        self._url = url.set(drivername="postgresql+psycopg")
        self.place = sa.URL.create(
            "postgresql", host=url.host, port=url.port, database=url.database
        ).render_as_string()

    def make_room(self) -> None:
        """The database is the administrator's to make."""

    def engine(self, readers: int = 0, *, foreign_keys: bool = True) -> Engine:
        """See Backend; readers see one snapshot a transaction."""
        engine = sa.create_engine(
            self._url,
            poolclass=sa.QueuePool,
            pool_size=readers or 1,
            max_overflow=0,
            pool_pre_ping=bool(readers),  # a restarted server costs no reader an error
            hide_parameters=True,
            connect_args=_connect_arguments(self._url),
        )

        def prepare(connection: "psycopg.Connection[Any]", _: object) -> None:
            _prepare(connection)
            if readers:
                connection.execute("SET default_transaction_read_only = on")
                connection.execute("SET default_transaction_isolation = 'repeatable read'")
                # How rare a word is decides how to look for it.
                connection.execute("SET plan_cache_mode = force_custom_plan")
            connection.commit()

        sa.event.listen(engine, "connect", prepare)
        return engine

    @contextlib.contextmanager
    def migrating(self, engine: Engine) -> Iterator[Connection]:
        """Hold an advisory lock until the migration is committed."""
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_MIGRATION_PATIENCE_S:.0f}s'")
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            connection.execute(_LOCK_UNTIL_COMMIT, {"name": "migration"})
            yield connection

    def is_away(self, error: Exception) -> bool:
        """Not reached, starting, or stopping; but not: refused a password, has no such database."""
        return isinstance(error, OperationalError) and not any(
            word in str(error.orig) for word in ("authentication", "does not exist", "pg_hba")
        )

    def is_conflict(self, error: Exception) -> bool:
        """A deadlock, or a serialization failure."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        return getattr(cause, "sqlstate", None) in ("40P01", "40001")

    def mark(self, connection: Connection) -> int | None:
        """The transaction's number; None: it has written nothing."""
        found: int | None = connection.scalar(_TRANSACTION)
        return found

    def was_committed(self, engine: Engine, mark: int) -> bool:
        """Ask the server, which may have to start first, or to notice that we are gone."""
        deadline = time.monotonic() + _DOUBT_PATIENCE_S
        while True:
            with contextlib.suppress(DBAPIError), engine.connect() as connection:
                status = connection.scalar(_STATUS, {"mark": mark})
                if status in ("committed", "aborted"):
                    return bool(status == "committed")
            if time.monotonic() > deadline:
                raise StoreError("the connection was lost in a commit: nobody knows its outcome")
            time.sleep(_DOUBT_PAUSE_S)

    def connect(self) -> "psycopg.Connection[Any]":
        """A connection outside of the pools, in autocommit. Raises StoreError."""
        import psycopg

        arguments = self._url.translate_connect_args(username="user", database="dbname")
        try:
            connection = psycopg.connect(
                **{**arguments, **self._url.query, **_connect_arguments(self._url)},
                autocommit=True,
            )
            _prepare(connection)
        except psycopg.Error as error:
            raise StoreError(" ".join(str(error).split())) from error
        return connection


_TRANSACTION = sa.text("SELECT txid_current_if_assigned()")
_STATUS = sa.text("SELECT txid_status(:mark)")
_LOCK_UNTIL_COMMIT = sa.text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
_NOTIFY = sa.text(f"SELECT pg_notify('{CHANNEL}', '')")
TRY_LOCK = f"SELECT pg_try_advisory_lock({_LOCK_KEY})".replace(":name", "%s")
UNLOCK = f"SELECT pg_advisory_unlock({_LOCK_KEY})".replace(":name", "%s")


def _connect_arguments(url: sa.URL) -> dict[str, object]:
    """A peer that is gone without a word is noticed by us, and our own end by the server."""
    wanted = {
        "application_name": "siprec-bridge",
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
    }
    return {name: value for name, value in wanted.items() if name not in url.query}


def _prepare(connection: "psycopg.Connection[Any]") -> None:
    from psycopg.types.string import StrDumperUnknown

    class NulFree(StrDumperUnknown):
        """PostgreSQL has no text with NUL in it; peers do send that."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    connection.adapters.register_dumper(str, NulFree)
    for name, value in (
        ("TimeZone", "UTC"),
        ("lock_timeout", "30s"),
        # A node that froze in mid-transaction must not hold up the others.
        ("idle_in_transaction_session_timeout", "30s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ):
        connection.execute(f"SET {name} = '{value}'")
    # Confirmed is durable: what the administrator made laxer than that, we do not want.
    durable = connection.execute("SHOW synchronous_commit").fetchone()
    if durable is not None and durable[0] == "off":
        connection.execute("SET synchronous_commit = on")


def insert_new(
    connection: Connection, table: Table, returning: tuple[str, ...] = ()
) -> sa.Executable:
    """An INSERT that leaves rows alone whose key exists; `returning`: columns of those it added."""
    return _insert_new(connection.dialect.name, table, returning)


@lru_cache
def _insert_new(dialect: str, table: Table, returning: tuple[str, ...]) -> sa.Executable:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(table).on_conflict_do_nothing()
    return statement.returning(*(table.c[name] for name in returning)) if returning else statement


def number_in_order(connection: Connection) -> None:
    """From here to its commit, no other transaction gives out sequence numbers of events.

    PostgreSQL would let a later number commit first, and who reads on from the latest that it saw
    would never see the earlier one. It also tells who listens that there is news.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_UNTIL_COMMIT, {"name": "events"})
        connection.execute(_NOTIFY)


def common_time(connection: Connection, here: datetime) -> datetime:
    """The time that all nodes agree upon: the server's; else the one handed in."""
    if connection.dialect.name != "postgresql":
        return here
    found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return found


def says(
    connection: Connection, *, words: Sequence[Term], who: Sequence[Term]
) -> sa.ColumnElement[bool]:
    """That a passage has all these terms. They are letters and digits: nothing can break out."""
    columns = [(name, terms) for name, terms in (("words", words), ("who", who)) if terms]
    if connection.dialect.name == "postgresql":
        return sa.and_(
            *(
                passages.c[name].op("@@")(sa.cast(_tsquery(terms), postgresql.TSQUERY))
                for name, terms in columns
            )
        )
    match = " AND ".join(f"{name} : ({_fts5(terms)})" for name, terms in columns)
    return passages.c.id.in_(
        sa.text("SELECT rowid FROM passages_fts WHERE passages_fts MATCH :match")
        .bindparams(match=match)
        .columns(sa.column("rowid", sa.Integer))
    )


def _tsquery(terms: Sequence[Term]) -> str:
    return " & ".join(
        "(" + " <-> ".join(f"'{word}'" for word in one.words) + (":*" * one.prefix) + ")"
        for one in terms
    )


def _fts5(terms: Sequence[Term]) -> str:
    return " AND ".join(f'"{" ".join(one.words)}"' + " *" * one.prefix for one in terms)


def cause_of(error: Exception) -> str:
    """One line without SQL and without the values in it, which are callers' data."""
    if isinstance(error, SQLAlchemyError) and not isinstance(error, StatementError):
        return " ".join(str(error).split()) or type(error).__name__
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    diagnosis = getattr(cause, "diag", None)  # PostgreSQL's DETAIL holds values
    primary = getattr(diagnosis, "message_primary", None)
    return " ".join(str(primary or cause).split()) or type(cause).__name__
