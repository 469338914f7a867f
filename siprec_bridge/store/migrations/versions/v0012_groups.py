"""Sessions by the group that their communication sessions are of, filled from their documents."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_BATCH = 500
_LONGEST = 500  # characters, as `recordings` has it


def upgrade() -> None:
    """Add the column and its index, and fill it."""
    op.add_column("sessions", sa.Column("group_id", sa.String(), nullable=True))
    op.create_index(
        "ix_sessions_group_id_started_at_id", "sessions", ["group_id", "started_at", "id"]
    )
    connection = op.get_bind()
    sessions = sa.table(
        "sessions", sa.column("id"), sa.column("document"), sa.column("group_id", sa.String)
    )
    page = sa.select(sessions.c.id, sessions.c.document).order_by(sessions.c.id).limit(_BATCH)
    change = sessions.update().where(sessions.c.id == sa.bindparam("this"))
    after = ""
    while rows := connection.execute(page.where(sessions.c.id > after)).all():
        groups = [(id, json.loads(document).get("group_id")) for id, document in rows]
        values = [
            {"this": id, "group_id": group}
            for id, group in groups
            if group and len(group) <= _LONGEST
        ]
        if values:
            connection.execute(change, values)
        after = rows[-1].id
