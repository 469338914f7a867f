"""In which order jobs are run, what is asked of the recogniser, and who has failed at it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what waits keeps the order of its arrival."""
    op.add_column(
        "jobs", sa.Column("priority", sa.String(), nullable=False, server_default="normal")
    )
    op.add_column("jobs", sa.Column("source", sa.String(), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("prompt", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("tried", sa.String(), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("order_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE jobs SET order_at = created_at")
    op.create_index("ix_jobs_state_order_at_id", "jobs", ["state", "order_at", "id"])
    op.create_index("ix_jobs_line", "jobs", ["state", "source", "priority", "audio_seconds"])
