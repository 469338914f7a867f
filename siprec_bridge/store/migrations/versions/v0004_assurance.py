"""Whether a session was recorded as it should be."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the verdict; sessions of before have none."""
    op.add_column("sessions", sa.Column("assurance", sa.String(), nullable=True))
    op.create_index(
        "ix_sessions_assurance_started_at_id", "sessions", ["assurance", "started_at", "id"]
    )
