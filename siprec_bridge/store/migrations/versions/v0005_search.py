"""Search over transcripts, filled from those that are there."""

import sqlalchemy as sa
from alembic import op

from siprec_bridge.store.schema import UtcDateTime, Words
from siprec_bridge.store.words import parts_of

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BATCH = 100


def upgrade() -> None:
    """Make the table and its index, and fill them."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    passages = op.create_table(
        "passages",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("words", Words(), nullable=False),
        sa.Column("who", Words(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_passages"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_passages_session_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_passages_session_id", "passages", ["session_id"])
    op.create_index("ix_passages_started_at_session_id", "passages", ["started_at", "session_id"])
    if postgresql:
        op.create_index(
            "ix_passages_words_who",
            "passages",
            ["words", "who"],
            postgresql_using="gin",
            postgresql_with={"fastupdate": "off"},  # a list of what is new would be read each time
        )
        # A number for each event, for as long as the database is there.
        op.alter_column("events", "seq", type_=sa.BigInteger())
        op.alter_column("deliveries", "seq", type_=sa.BigInteger())
        op.execute("ALTER SEQUENCE events_seq_seq AS bigint")
    else:
        # The words come folded: nothing but spaces divides them.
        op.execute(
            "CREATE VIRTUAL TABLE passages_fts USING fts5"
            "(words, who, content='passages', content_rowid='id', tokenize='ascii')"
        )
        op.execute(
            "CREATE TRIGGER passages_insert AFTER INSERT ON passages BEGIN "
            "INSERT INTO passages_fts (rowid, words, who) VALUES (new.id, new.words, new.who); END"
        )
        op.execute(
            "CREATE TRIGGER passages_delete AFTER DELETE ON passages BEGIN "
            "INSERT INTO passages_fts (passages_fts, rowid, words, who) "
            "VALUES ('delete', old.id, old.words, old.who); END"
        )
    _fill(passages)


def _fill(passages: sa.Table) -> None:
    connection = op.get_bind()
    sessions = sa.table("sessions", sa.column("id"), sa.column("started_at", UtcDateTime()))
    transcripts = sa.table(
        "transcripts", sa.column("session_id"), sa.column("version"), sa.column("document")
    )
    newer = transcripts.alias("newer")
    latest = (
        sa.select(transcripts.c.session_id, sessions.c.started_at, transcripts.c.document)
        .join(sessions, sessions.c.id == transcripts.c.session_id)
        .where(
            ~sa.exists().where(
                newer.c.session_id == transcripts.c.session_id,
                newer.c.version > transcripts.c.version,
            )
        )
        .order_by(transcripts.c.session_id)
        .limit(_BATCH)
    )
    after = ""
    while rows := connection.execute(latest.where(transcripts.c.session_id > after)).all():
        values = [
            {"session_id": id, "started_at": at, "words": part.words, "who": part.who}
            for id, at, document in rows
            for part in parts_of(document)
        ]
        connection.execute(passages.insert(), values)
        after = rows[-1].session_id
