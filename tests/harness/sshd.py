"""A real sshd on loopback: own configuration, port, keys and temporary folder, as this user."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PATIENCE_S = 10.0


class Sshd:
    """One server for a test folder. What logs in to it gets `tmp` as TMPDIR."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tmp = folder / "far"
        self.tmp.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        """Whether this machine has an SSH server."""
        return _program() is not None

    @property
    def host(self) -> str:
        """What to log in to."""
        return f"{getpass.getuser()}@127.0.0.1"

    @property
    def options(self) -> str:
        """Options of ssh that lead here and know nothing of the user's own configuration."""
        return (
            f"-F none -p {self.port} -i '{self.folder}/key' -o IdentitiesOnly=yes "
            f"-o 'UserKnownHostsFile=\"{self.folder}/known_hosts\"'"
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # it insists, as root
        for name in ("key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name],
                check=True,
            )
        shutil.copy(self.folder / "key.pub", self.folder / "authorized_keys")
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
        (self.folder / "sshd_config").write_text(
            f"""\
ListenAddress 127.0.0.1
Port {self.port}
HostKey "{self.folder}/host_key"
AuthorizedKeysFile "{self.folder}/authorized_keys"
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
SetEnv TMPDIR={self.tmp}
"""
        )
        program = _program()
        assert program is not None
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                log_text = (self.folder / "sshd.log").read_text()
                assert self._process.poll() is None, log_text
                assert time.monotonic() < deadline, log_text
                time.sleep(0.02)

    def stop(self) -> None:
        """End the server; connections that are open end by themselves."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)


def _program() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
