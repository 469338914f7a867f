"""Since when a delivery fails: after days of it, it is parked."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("deliveries", sa.Column("failing_since", sa.DateTime(timezone=True)))
