"""What becomes of recordings after the call: encrypted, and in an object store."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; sessions that are there are entered when a bridge is told to keep them so."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "deposits",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("not_before", time, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("place", sa.String(), nullable=True),
        sa.Column("prefix", sa.String(), nullable=True),
        sa.Column("manifest", sa.Text(), nullable=True),
        sa.Column("stale", sa.Text(), nullable=True),
        sa.Column("octets", sa.BigInteger(), nullable=True),
        sa.Column("stored_at", time, nullable=True),
        sa.Column("sealed_at", time, nullable=True),
        sa.Column("plain_gone_at", time, nullable=True),
        sa.Column("local_gone_at", time, nullable=True),
        sa.Column("dropping", sa.String(), nullable=True),
        sa.Column("runner", sa.String(), nullable=True),
        sa.Column("lease_until", time, nullable=True),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_deposits")),
    )
    to_do = sa.text("state <> 'done'")
    op.create_index(
        "ix_deposits_to_do",
        "deposits",
        ["not_before"],
        sqlite_where=to_do,
        postgresql_where=to_do,
    )
    op.create_index("ix_deposits_state_created_at", "deposits", ["state", "created_at"])
