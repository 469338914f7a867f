"""Brings a database to the current schema, once, whoever starts first. Alembic's files lie here.

A step is never changed once released: the next one corrects it. A file is named after its step.
"""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store.errors import StoreError

_HERE = Path(__file__).parent
NEWEST: Final = max(one.name[1:5] for one in (_HERE / "versions").glob("v*.py"))


def upgrade(connection: Connection, place: str) -> None:
    """Run the missing steps in this transaction. Raises StoreError, which names the place."""
    if _version(connection) == NEWEST:
        return
    # Here, since every command comes by, and nearly always there is nothing to do.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # it holds a step that we do not know
        raise StoreError(f"{place}: this database was made by a newer version ({error})") from error


def _version(connection: Connection) -> str | None:
    """The latest step that was done; None: none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found
