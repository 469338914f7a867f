"""Brings a database to the current schema, once, whoever starts first. Alembic's files lie here.

A step is never changed once released: the next one corrects it.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine

from siprec_bridge.store.errors import StoreError

_PATIENCE_S = 60.0


def upgrade(engine: Engine, file: Path) -> None:
    """Run the missing steps in one transaction. Raises StoreError; OSError for the lock file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    with _locked(file.with_name(file.name + ".lock")), engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:  # it holds a step that we do not know
            raise StoreError(
                f"{file}: this database was made by a newer version ({error})"
            ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; it stays behind, since removing it would let two in."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"{path}: another process holds the lock") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
