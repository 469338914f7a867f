"""What is first of a vendor's jobs, without a look at all that wait."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index(
        "ix_jobs_state_vendor_order_at_id", "jobs", ["state", "vendor", "order_at", "id"]
    )
