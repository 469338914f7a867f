"""Sessions, jobs, transcripts, and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _time(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _word(name: str, *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "sessions",
        _word("id", nullable=False),
        _word("sip_call_id", nullable=False),
        _word("state", nullable=False),
        _time("started_at", nullable=False),
        _time("ended_at"),
        _word("end_cause"),
        _word("peer", nullable=False),
        _word("folder", nullable=False),
        _text("document", nullable=False),
        _text("audio"),
        _text("warnings", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_started_at_id", "sessions", ["started_at", "id"])
    op.create_index("ix_sessions_state_started_at_id", "sessions", ["state", "started_at", "id"])
    op.create_index("ix_sessions_sip_call_id", "sessions", ["sip_call_id"])

    op.create_table(
        "jobs",
        _word("id", nullable=False),
        _word("session_id", nullable=False),
        _word("state", nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _time("not_before"),
        _word("vendor", nullable=False),
        _word("model"),
        _word("language"),
        sa.Column("audio_seconds", sa.Float(), nullable=False),
        sa.Column("solo", sa.Boolean(), nullable=False),
        _time("created_at", nullable=False),
        _time("started_at"),
        _time("finished_at"),
        _word("reason"),
        sa.Column("exit_code", sa.Integer()),
        _text("stderr_tail"),
        sa.Column("run_seconds", sa.Float()),
        sa.Column("temp_bytes", sa.Integer()),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_jobs_session_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_jobs_state_created_at_id", "jobs", ["state", "created_at", "id"])
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_session_id", "jobs", ["session_id"])

    op.create_table(
        "transcripts",
        _word("session_id", nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        _word("job_id", nullable=False),
        _text("text", nullable=False),
        _text("document", nullable=False),
        _time("created_at", nullable=False),
        sa.PrimaryKeyConstraint("session_id", "version", name="pk_transcripts"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_transcripts_session_id", ondelete="CASCADE"
        ),
    )

    op.create_table(
        "events",
        sa.Column("seq", sa.Integer(), autoincrement=True, nullable=False),
        _word("id", nullable=False),
        _word("session_id", nullable=False),
        _word("type", nullable=False),
        _time("at", nullable=False),
        _text("body", nullable=False),
        _time("recorded_at", nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
        sa.UniqueConstraint("id", name="uq_events_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_session_id_seq", "events", ["session_id", "seq"])

    op.create_table(
        "deliveries",
        sa.Column("seq", sa.Integer(), nullable=False),
        _word("sink", nullable=False),
        _word("session_id", nullable=False),
        _word("state", nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _time("not_before"),
        sa.Column("holds_back", sa.Boolean(), nullable=False),
        _word("reason"),
        sa.PrimaryKeyConstraint("seq", "sink", name="pk_deliveries"),
        sa.ForeignKeyConstraint(
            ["seq"], ["events.seq"], name="fk_deliveries_seq", ondelete="CASCADE"
        ),
    )
    pending, parked = sa.text("state = 'pending'"), sa.text("state = 'parked'")
    op.create_index(
        "ix_deliveries_pending",
        "deliveries",
        ["sink", "seq"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
    op.create_index(
        "ix_deliveries_pending_of_session",
        "deliveries",
        ["sink", "session_id", "seq"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
    op.create_index(
        "ix_deliveries_parked",
        "deliveries",
        ["sink", "seq"],
        sqlite_where=parked,
        postgresql_where=parked,
    )

    op.create_table(
        "probe",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        _time("at", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_probe"),
    )
