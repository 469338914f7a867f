"""Alembic runs this: the connection is handed in, so one transaction holds all steps."""

from alembic import context

from siprec_bridge.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
