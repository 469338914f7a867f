"""Brings a database to the current schema, once, whoever starts first. Alembic's files lie here.

A step is never changed once released: the next one corrects it.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from siprec_bridge.store.errors import StoreError


def upgrade(connection: Connection, place: str) -> None:
    """Run the missing steps in this transaction. Raises StoreError, which names the place."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # it holds a step that we do not know
        raise StoreError(f"{place}: this database was made by a newer version ({error})") from error
