"""Whose sessions and jobs are whose, where several bridges share the database."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; in rows of before they are null: nobody shared them."""
    op.add_column("sessions", sa.Column("node", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("node", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("runner", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
