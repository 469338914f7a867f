"""A farm of its own for a test: exchanges, queues and store that nobody else uses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.rabbitmq import RabbitMq
from siprec_wrappers.farm.broker import Broker, BrokerError
from siprec_wrappers.farm.settings import Settings, read_settings

PROGRAM = str(Path(sys.executable).with_name("whisper-farm"))
PATIENCE_S = 40.0


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


def audio(path: Path, seconds: float = 0.1, tone: int = 0) -> Path:
    """A WAV of 16 kHz whose content differs by `tone`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(tone.to_bytes(2, "little") * round(16000 * seconds))
    return path


class Part:
    """A running part of a farm, in a session of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log_file = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [PROGRAM, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def log(self) -> str:
        """All that it has written."""
        return self.log_file.read_text(errors="replace")

    def child(self) -> int:
        """Pid of a worker's one child."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [int(one) for one in children if "tracker" not in _command_line(int(one))]
        assert len(found) == 1, (children, self.log())
        return found[0]

    def kill9(self) -> None:
        """kill -9 for it and its child."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """TERM, and the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.kill9()


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


class Farm:
    """Its folder has the store, logs and outputs."""

    def __init__(self, folder: Path, broker: RabbitMq, **options: str) -> None:
        self.folder = folder
        self.broker = broker
        self.store = folder / "store"
        self.store.mkdir(parents=True)
        self._parts: list[Part] = []
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("WHISPER_")
        } | {
            "WHISPER_FARM_BROKER": broker.url,
            "WHISPER_FARM_STORE": str(self.store),
            "WHISPER_FARM_NAME": f"farm-{uuid.uuid4().hex[:12]}",
            "WHISPER_FARM_TIMEOUT": "50s",
        }
        self.environment |= {f"WHISPER_FARM_{name}": text for name, text in options.items()}

    @property
    def settings(self) -> Settings:
        """As its parts read them."""
        return read_settings(self.environment)

    def part(self, *arguments: str, **options: str) -> Part:
        """Start a part; it ends with the farm."""
        environment = self.environment | {f"WHISPER_FARM_{n}": text for n, text in options.items()}
        log = self.folder / f"{arguments[0].replace('/', '_')[-40:]}-{len(self._parts)}.log"
        part = Part(list(arguments), environment, log)
        self._parts.append(part)
        return part

    def worker(self, command: Path | str, **options: str) -> Part:
        """Start a worker and wait until it takes jobs."""
        before = self.depth()[1]
        part = self.part("worker", COMMAND=str(command), **options)
        until(
            lambda: self.depth()[1] > before or part.process.poll() is not None,
            "a worker that takes jobs",
        )
        assert part.process.poll() is None, part.log()
        return part

    def client(self, *files: Path, out: str = "out", **options: str) -> Part:
        """Start the CLI contract on these files."""
        return self.part(*self.call(*files, out=out), **options)

    def call(self, *files: Path, out: str = "out") -> list[str]:
        """The contract's arguments."""
        folder = self.folder / out
        folder.mkdir(exist_ok=True)
        return [
            *map(str, files), "--model", "base", "--output_dir", str(folder),
            "--output_format", "json",
        ]  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return subprocess.run(
            [PROGRAM, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def text(self, name: str, out: str = "out") -> str:
        """What was heard in a file."""
        return str(json.loads((self.folder / out / f"{name}.json").read_text())["text"])

    def depth(self, *, dead: bool = False) -> tuple[int, int]:
        """Messages and consumers of its queue, 0 while the broker is away."""
        try:
            broker = Broker(self.settings)
            broker.declare()
            counts = broker.depth(self.settings.dead_queue if dead else self.settings.queue)
        except BrokerError:
            return 0, 0
        broker.close()
        return counts

    def kept(self, folder: str) -> list[str]:
        """Names in a folder of the store."""
        path = self.store / folder
        return sorted(one.name for one in path.iterdir()) if path.is_dir() else []

    def close(self) -> None:
        """End all parts."""
        for part in self._parts:
            part.kill9()


@contextlib.contextmanager
def farm(folder: Path, broker: RabbitMq, **options: str) -> Iterator[Farm]:
    """A farm and all its parts' end."""
    one = Farm(folder, broker, **options)
    try:
        yield one
    finally:
        one.close()
