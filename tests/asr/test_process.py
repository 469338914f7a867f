"""The program: where it listens, how it starts, how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.asr import serving, wav
from siprec_asr.errors import ConfigurationError

SERVER = str(Path(sys.executable).with_name("siprec-asr"))


@dataclass(frozen=True, slots=True)
class Program:
    """A running siprec-asr; its log as it is now."""

    process: "subprocess.Popen[bytes]"
    socket: Path
    log: Path

    def wait_for(self, event: str) -> None:
        """Until the log has it."""
        until = time.monotonic() + 30
        while event not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def program(folder: Path, **settings: str) -> Iterator[Program]:
    path = Path(settings.pop("socket", str(folder / "asr.sock")))
    given = {"socket": str(path), "port": "0", "wyoming_port": "0"} | settings
    environment = {f"ASR_{name.upper()}": value for name, value in given.items()}
    log = folder / f"{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([SERVER], env=os.environ | environment, stderr=out)
    try:
        yield Program(process, path, log)
    finally:
        process.kill()
        process.wait()


def ask(path: Path, audio: bytes) -> socket.socket:
    """Send a request; the connection, to read the answer from."""
    body = json.dumps({"files": [{"name": "a", "size": len(audio)}]}).encode() + b"\n" + audio
    assert path.is_socket()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(path))
    head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
    return connection


def read(connection: socket.socket) -> bytes:
    with connection:
        octets = b""
        while chunk := connection.recv(65536):
            octets += chunk
        return octets


def test_its_socket_is_its_owners_and_a_second_server_does_not_take_it(
    tmp_path: Path, models_dir: Path
) -> None:
    with program(tmp_path, models_dir=str(models_dir), model="tiny", preload="tiny") as first:
        first.wait_for("model.loaded")
        assert first.socket.stat().st_mode & 0o777 == 0o600

        with program(tmp_path) as second:
            assert second.process.wait(30) == 1
            assert "another server listens" in second.log.read_text()

        assert read(ask(first.socket, wav(1))).startswith(b"HTTP/1.1 200")
        first.process.kill()
        first.process.wait()
        assert first.socket.exists()

        with program(tmp_path, socket_mode="0660") as third:
            third.wait_for("listens")
            assert third.socket.stat().st_mode & 0o777 == 0o660
            third.process.terminate()
            assert third.process.wait(30) == 0
        assert not third.socket.exists()


def test_sigterm_lets_what_runs_end_and_answers_it(tmp_path: Path, models_dir: Path) -> None:
    with program(
        tmp_path, models_dir=str(models_dir), model="tiny", preload="tiny", stop_timeout="5m"
    ) as one:
        one.wait_for("model.loaded")
        asked = ask(one.socket, wav(300))
        waits_for_a_run(one)

        one.process.send_signal(signal.SIGTERM)

        answer = read(asked)
        assert one.process.wait(30) == 0
        text = one.log.read_text()
    assert answer.startswith(b"HTTP/1.1 200")
    assert '"event": "transcribed"' in text
    assert "morning" not in text  # nobody's words are in the log
    assert answer.count(b"Good morning") == 2 * 10  # a window each, and again in the whole text


def test_sigterm_does_not_wait_longer_than_it_may(tmp_path: Path, models_dir: Path) -> None:
    with program(
        tmp_path, models_dir=str(models_dir), model="tiny", preload="tiny", stop_timeout="0.1s"
    ) as one:
        one.wait_for("model.loaded")
        asked = ask(one.socket, wav(1200))
        waits_for_a_run(one)
        begun = time.monotonic()

        one.process.send_signal(signal.SIGTERM)

        assert read(asked).startswith(b"HTTP/1.1 503")
        assert one.process.wait(30) == 0
        assert time.monotonic() - begun < 10


def waits_for_a_run(one: Program) -> None:
    """Until a worker is busy, by the server's own metrics."""
    until = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(one.socket))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            octets = b""
            while chunk := connection.recv(65536):
                octets += chunk
        if b"siprec_asr_runs_active 1.0" in octets:
            return
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_the_operator_must_mend_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with program(tmp_path, device="tpu") as one:
        assert one.process.wait(30) == 1
        text = one.log.read_text()

    assert text.startswith("siprec-asr: ASR_DEVICE=tpu: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("what", ["socket", "preload", "port", "wyoming_port"])
async def test_what_cannot_be_had_at_start_is_named(tmp_path: Path, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        folder = tmp_path / "none" if what == "socket" else tmp_path
        settings = {"preload": str(tmp_path)} if what == "preload" else {}
        if "port" in what:
            settings[what] = port

        with pytest.raises(ConfigurationError, match=f"^ASR_{what.upper()}"):
            async with serving(folder, None, None, **settings):
                raise AssertionError("it started")
