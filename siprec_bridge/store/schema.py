"""The tables. A change here needs a migration; a test compares the two."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite has no time zones: there it is stored as naive UTC text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; raises ValueError for a naive time, whose meaning nobody knows."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time its zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[Sequence[str]]):
    """Folded words in order, see `words`: a tsvector, or their text for SQLite's FTS5. Not read."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """A tsvector where there is one."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TSVECTOR())
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        """Letters and digits need no escapes, and are not parsed once more."""
        if value is None:
            return None
        if dialect.name == "postgresql":
            return " ".join(f"'{word}':{place}" for place, word in enumerate(value, 1))
        return " ".join(value)


# A number for each event, for as long as the database is there. SQLite's are of 64 bits anyway.
_Sequence = Integer().with_variant(BigInteger(), "postgresql")

# Named constraints, so that later migrations can change them on every database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_AUDIO_THERE = text("audio_deleted_at IS NULL")

sessions = Table(
    "sessions",
    metadata,
    Column("id", String, primary_key=True),
    Column("sip_call_id", String, nullable=False),
    Column("state", String, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("end_cause", String),
    Column("peer", String, nullable=False),
    Column("folder", String, nullable=False),
    Column("document", Text, nullable=False),
    Column("audio", Text),
    Column("warnings", Text, nullable=False),  # a JSON list of texts
    Column("audio_bytes", BigInteger),  # of all its files; null: not measured yet
    Column("audio_deleted_at", UtcDateTime),
    Column("held", Text),  # who keeps it from being deleted, and why, as JSON
    Column("assurance", String),  # the verdict, once there is one
    Column("node", String),  # that recorded it; null: the only one
    Column(
        "group_id", String
    ),  # by which sessions are joined; null: none, or one beyond all measure
    Index("ix_sessions_group_id_started_at_id", "group_id", "started_at", "id"),
    Index("ix_sessions_started_at_id", "started_at", "id"),
    Index("ix_sessions_state_started_at_id", "state", "started_at", "id"),
    Index("ix_sessions_sip_call_id", "sip_call_id"),
    Index(
        "ix_sessions_with_audio",
        "started_at",
        "id",
        sqlite_where=_AUDIO_THERE,
        postgresql_where=_AUDIO_THERE,
    ),
    Index("ix_sessions_assurance_started_at_id", "assurance", "started_at", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", UtcDateTime),
    Column("vendor", String, nullable=False),
    Column("model", String),
    Column("language", String),
    Column("audio_seconds", Float, nullable=False),
    Column("solo", Boolean(create_constraint=False), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("reason", String),
    Column("exit_code", Integer),
    Column("stderr_tail", Text),
    Column("run_seconds", Float),
    Column("temp_bytes", Integer),
    Column("node", String),  # that has its audio; null: any
    Column("runner", String),  # the node that runs it
    Column("lease_until", UtcDateTime),  # after that, the runner is taken for dead
    Column("priority", String, nullable=False, server_default="normal"),
    Column("source", String, nullable=False, server_default=""),
    Column("prompt", Text),
    Column("tried", String, nullable=False, server_default=""),
    Column("order_at", UtcDateTime),
    Index("ix_jobs_state_order_at_id", "state", "order_at", "id"),
    Index("ix_jobs_state_vendor_order_at_id", "state", "vendor", "order_at", "id"),
    Index("ix_jobs_line", "state", "source", "priority", "audio_seconds"),
    Index("ix_jobs_state_created_at_id", "state", "created_at", "id"),
    Index("ix_jobs_created_at_id", "created_at", "id"),
    Index("ix_jobs_session_id", "session_id"),
)

transcripts = Table(
    "transcripts",
    metadata,
    Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("job_id", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# What finds words is made by the migration alone: a GIN index in PostgreSQL; in SQLite the FTS5
# table `passages_fts`, which triggers keep like this one.
passages = Table(
    "passages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),  # of the session
    Column("words", Words, nullable=False),
    Column("who", Words, nullable=False),
    Index("ix_passages_session_id", "session_id"),
    Index("ix_passages_started_at_session_id", "started_at", "session_id"),
)

# No foreign key to sessions: what was promised to consumers outlives the session's removal.
events = Table(
    "events",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("session_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("body", Text, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),  # `at` may be long before
    Index("ix_events_session_id_seq", "session_id", "seq"),
    sqlite_autoincrement=True,  # a listener's cursor must never meet a reused number
)

_PENDING = text("state = 'pending'")
_PARKED = text("state = 'parked'")

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", ForeignKey("events.seq", ondelete="CASCADE"), primary_key=True),
    Column("sink", String, primary_key=True),
    Column("session_id", String, nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", UtcDateTime),
    Column("holds_back", Boolean(create_constraint=False), nullable=False),
    Column("reason", String),
    Column("failing_since", UtcDateTime),  # its first failure since it was appended or sent again
    # Partial: what is delivered is most of the table and is never looked for.
    Index("ix_deliveries_pending", "sink", "seq", sqlite_where=_PENDING, postgresql_where=_PENDING),
    Index(
        "ix_deliveries_pending_of_session",
        "sink",
        "session_id",
        "seq",
        sqlite_where=_PENDING,
        postgresql_where=_PENDING,
    ),
    Index("ix_deliveries_parked", "sink", "seq", sqlite_where=_PARKED, postgresql_where=_PARKED),
)

# No foreign key either: objects must go after the session's row has gone.
_TO_DO = text("state <> 'done'")

deposits = Table(
    "deposits",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("node", String),  # that has the files; null: any
    Column("state", String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("not_before", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("place", String),  # the store's URL
    Column("prefix", String),  # of its keys there
    Column("manifest", Text),
    Column("stale", Text),  # names of objects that an earlier manifest had, as a JSON list
    Column("octets", BigInteger),
    Column("stored_at", UtcDateTime),
    Column("sealed_at", UtcDateTime),
    Column("plain_gone_at", UtcDateTime),
    Column("local_gone_at", UtcDateTime),
    Column("dropping", String),  # what of the local files is being deleted
    Column("runner", String),
    Column("lease_until", UtcDateTime),
    Index("ix_deposits_to_do", "not_before", sqlite_where=_TO_DO, postgresql_where=_TO_DO),
    Index("ix_deposits_state_created_at", "state", "created_at"),
)

sip_messages = Table(
    "sip_messages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("session_id", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("sent", Boolean, nullable=False),
    Column("peer", String, nullable=False),
    Column("text", Text, nullable=False),
    Index("ix_sip_messages_session_id_id", "session_id", "id"),
    sqlite_autoincrement=True,
)

# Kept when what it tells of is gone: no key to sessions, and no retention.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("action", String, nullable=False),
    Column("actor", String),
    Column("reason", String),
    Column("subject", String, nullable=False),  # a hash
    Column("detail", Text, nullable=False),  # JSON
    sqlite_autoincrement=True,
)

probe = Table(
    "probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
)


def values_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A result row as keyword arguments of its dataclass."""
    return {str(name): value for name, value in row.items()}
