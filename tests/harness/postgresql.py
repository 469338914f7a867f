"""A real PostgreSQL server of its own: own port and folder, nothing shared with the machine's.

PostgreSQL refuses to run as root: for root it runs as the user that Debian's package made.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from harness.ports import server_port

PATIENCE_S = 30.0
_PLACES = Path("/usr/lib/postgresql")


class Postgresql:
    """One server. `start` takes seconds the first time, so share one per test session.

    Its data survives `stop` and `kill9`.
    """

    def __init__(self) -> None:
        # Not in pytest's folder, which is closed to the server's user.
        self._folder = Path(tempfile.mkdtemp(prefix="siprec-pg-"))
        self.port = server_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            who = pwd.getpwnam("postgres")
            os.chown(self._folder, who.pw_uid, who.pw_gid)
            self._user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}

    @staticmethod
    def programs() -> Path | None:
        """The folder of the newest server that is installed."""
        found = sorted(_PLACES.glob("*/bin/postgres"), key=lambda one: float(one.parts[-3]))
        return found[-1].parent if found else None

    def url(self, database: str = "postgres") -> str:
        """URL of a database on it."""
        return f"postgresql://siprec:secret@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database; returns its URL."""
        name = f"t{uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        programs = self.programs()
        assert programs is not None
        data = self._folder / "data"
        if not data.exists():
            done = subprocess.run(
                [programs / "initdb", "-D", data, "-U", "siprec", "-A", "trust", "--no-sync",
                 "-E", "UTF8", "--locale=C.UTF-8"],
                cwd=self._folder, capture_output=True, text=True, timeout=PATIENCE_S, **self._user,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(self.port),
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                 "-c", "fsync=off", "-c", "max_connections=100"],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **self._user,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.sql("SELECT 1")
                return
            except psycopg.OperationalError:
                text = (self._folder / "log").read_text()[-2000:]
                assert self._process.poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once, but in good order; the data stays."""
        self._end(signal.SIGINT)

    def kill9(self) -> None:
        """kill -9 for all its processes, as if the machine had died."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if number is signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        self._process.wait(PATIENCE_S)
        self._process = None
