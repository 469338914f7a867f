"""What retention needs to know of a session."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and an index of what still has its audio."""
    op.add_column("sessions", sa.Column("audio_bytes", sa.BigInteger()))
    op.add_column("sessions", sa.Column("audio_deleted_at", sa.DateTime(timezone=True)))
    op.add_column("sessions", sa.Column("held", sa.Text()))
    there = sa.text("audio_deleted_at IS NULL")
    op.create_index(
        "ix_sessions_with_audio",
        "sessions",
        ["started_at", "id"],
        sqlite_where=there,
        postgresql_where=there,
    )
