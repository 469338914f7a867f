"""A real RabbitMQ node of its own: own ports, name, cookie and folders, nothing shared.

It runs as the user who runs the tests, root or not, next to whatever broker the machine has.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from harness.certificates import Authority
from harness.ports import server_port

CERTIFIED = "siprec-bridge"  # a user who may come with a certificate of that name
PATIENCE_S = 45.0
_BIN = Path("/usr/lib/rabbitmq/bin")  # Debian's own wrapper in PATH insists on root or rabbitmq
_HANDSHAKE = b"AMQP\x00\x00\x09\x01"


class RabbitMq:
    """One broker node. `start` takes a few seconds, so share one per test session.

    Its data survives `stop` and `kill9`: start it again and durable things are there. All
    methods block: in a coroutine, call `start` and `ctl` through `asyncio.to_thread`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self.tls_port = server_port(), server_port()
        self._epmd_port, self._distribution_port = server_port(), server_port()
        self.authority: Authority | None = None
        self.node = f"siprec{self.port}@localhost"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._broker: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        """Whether this machine has RabbitMQ."""
        return (_BIN / "rabbitmq-server").exists() and shutil.which("epmd") is not None

    @property
    def url(self) -> str:
        """AMQP URL of the node."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """The same over TLS; the certificate is for 127.0.0.1 and signed by `authority`."""
        return f"amqps://127.0.0.1:{self.tls_port}/"

    def running(self) -> bool:
        """Whether the node's process is there."""
        return self._broker is not None and self._broker.poll() is None

    def start(self) -> None:
        """Start the node and wait until it answers AMQP."""
        if self.running():
            return
        self._write_configuration()
        self._start_epmd()
        with (self._folder / "console.log").open("ab") as console:
            self._broker = subprocess.Popen(
                [_BIN / "rabbitmq-server", "-noinput"],
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if not self.running() or time.monotonic() > deadline:
                self.kill9()
                raise AssertionError(f"RabbitMQ did not start:\n{self._log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Let the node end in good order, and its epmd; the folder stays."""
        if self._broker is not None:
            self._broker.terminate()
            try:
                self._broker.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill9()
            self._broker = None
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait(PATIENCE_S)
            self._epmd = None

    def kill9(self) -> None:
        """kill -9 for the node and the ports that it opened, and wait until it is gone."""
        if self._broker is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._broker.pid, signal.SIGKILL)
        self._broker.wait(PATIENCE_S)
        self._broker = None

    def write_down(self) -> None:
        """Have it write down which queues and bindings there are (about 2 s).

        Killed within moments of their making, this version has channels that hang when it is back.
        """
        assert self.ctl("eval", "mnesia:sync_log().").strip() == "ok"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the node (about 2 s) and return what it printed."""
        done = subprocess.run(
            [_BIN / "rabbitmqctl", "-q", "-n", self.node, *arguments],
            env=self._environment(),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _write_configuration(self) -> None:
        is_new = not (self._folder / "data").exists()
        for name in ("data", "log", "home"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        if self.authority is None:
            self.authority = Authority(self._folder / "tls")
        certificate, key = self.authority.sign("localhost")
        (self._folder / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
        # Once: a broker that loads them again while it recovers from a kill has left a client hang.
        definitions = self._definitions() if is_new else ""
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.authority.ca}\n"
            f"ssl_options.certfile = {certificate}\n"
            f"ssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_peer\n"
            "ssl_options.fail_if_no_peer_cert = false\n"
            "ssl_cert_login_from = common_name\n"
            "auth_mechanisms.1 = PLAIN\n"
            "auth_mechanisms.2 = AMQPLAIN\n"
            "auth_mechanisms.3 = EXTERNAL\n"
            f"{definitions}"
            "disk_free_limit.absolute = 1MB\n"
            "max_message_size = 1000000\n"
            "log.file.level = warning\n"
        )

    def _definitions(self) -> str:
        """The line that has the node's users made."""
        file = self._folder / "definitions.json"
        file.write_text(json.dumps(_users("guest", CERTIFIED)))
        return f"load_definitions = {file}\n"

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return kept | {
            "HOME": str(folder / "home"),  # of the Erlang cookie
            "LC_ALL": "C.UTF-8",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_ALLOW_INPUT": "1",  # exec the VM, so that the child's pid is the node's
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +SDio 2 +A 2",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _start_epmd(self) -> None:
        """Start the name server ourselves: one that the node starts would outlive it."""
        if self._epmd is not None and self._epmd.poll() is None:
            return
        self._epmd = subprocess.Popen(
            ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._epmd_port), 1.0).close()
                return
            time.sleep(0.01)
        raise AssertionError("epmd did not start")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.settimeout(2.0)
                connection.sendall(_HANDSHAKE)
                return connection.recv(1) == b"\x01"  # Connection.Start, a method frame
        except OSError:
            return False

    def _log_tail(self) -> str:
        files = [self._folder / "console.log", *(self._folder / "log").glob("*.log")]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in files)


def _users(*names: str) -> dict[str, object]:
    """Users who may do everything, each with its name as password."""

    def digest(name: str) -> str:
        salt = b"salt"
        return base64.b64encode(salt + hashlib.sha256(salt + name.encode()).digest()).decode()

    return {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": name,
                "password_hash": digest(name),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator",
            }
            for name in names
        ],
        "permissions": [
            {"user": name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
            for name in names
        ],
    }
