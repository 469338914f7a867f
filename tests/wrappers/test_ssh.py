"""`whisper-ssh` against a real sshd: what can go wrong on the way there."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.recognisers import calls, ended, is_alive, recogniser, wrapped
from harness.sshd import Sshd

PROGRAM = Path(sys.executable).with_name("whisper-ssh")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if not Sshd.installed():
        pytest.fail("sshd is not installed: run scripts/setup test")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


def start(folder: Path, sshd: Sshd, program: Path, **variables: str) -> subprocess.Popen[str]:
    settings = {
        "WHISPER_SSH_HOST": sshd.host,
        "WHISPER_SSH_OPTIONS": sshd.options,
        "WHISPER_SSH_PROGRAM": str(program),
        "XDG_RUNTIME_DIR": str(folder),
    }
    return wrapped(PROGRAM, folder, settings | variables)


def run(folder: Path, sshd: Sshd, program: Path, **variables: str) -> tuple[int, str]:
    return ended(start(folder, sshd, program, **variables))


def eventually_gone(program: Path, sshd: Sshd) -> None:
    pids = [int(str(one["pid"])) for one in calls(program)]
    wait_for(lambda: not any(map(is_alive, pids)) and not list(sshd.tmp.iterdir()))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_call(program: Path) -> None:
    wait_for(lambda: calls(program))


def test_a_host_that_does_not_answer_lets_the_job_wait(tmp_path: Path, sshd: Sshd) -> None:
    program = recogniser(tmp_path, "speaks")

    code, err = run(tmp_path, sshd, program, WHISPER_SSH_OPTIONS=f"-p 1 {sshd.options}")

    assert code == 126
    assert "Connection refused" in err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-o IdentityFile=none -i /nowhere", "Permission denied"),
        ("-o UserKnownHostsFile=/dev/null", "Host key verification failed"),
    ],
    ids=["no key of ours", "a host key that we do not know"],
)
def test_who_is_turned_away_is_asked_nothing_and_told_why(
    tmp_path: Path, sshd: Sshd, options: str, reason: str
) -> None:
    program = recogniser(tmp_path, "speaks")
    theirs = f"-F none -p {sshd.port} -o IdentitiesOnly=yes"
    if "nowhere" in options:
        theirs += f" -o UserKnownHostsFile={sshd.folder}/known_hosts"

    code, err = run(tmp_path, sshd, program, WHISPER_SSH_OPTIONS=f"{options} {theirs}")

    assert code == 126
    assert reason in err


def test_a_connection_that_breaks_ends_the_program_there(tmp_path: Path, sshd: Sshd) -> None:
    program = recogniser(tmp_path, "hangs_in_a_child")
    process = start(tmp_path, sshd, program)
    child_file = program.with_suffix(".child")
    wait_for(lambda: child_file.exists() and child_file.read_text())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "connection broke" in err
    eventually_gone(program, sshd)
    assert not is_alive(int(program.with_suffix(".child").read_text()))


def test_the_programs_255_is_no_lost_connection(tmp_path: Path, sshd: Sshd) -> None:
    program = tmp_path / "ends with 255"
    program.write_text("#!/bin/sh\necho no such model >&2\nexit 255\n")
    program.chmod(0o755)

    code, err = run(tmp_path, sshd, program, WHISPER_SSH_PROGRAM=f"'{program}'")

    assert code == 255
    assert "no such model" in err


def test_a_host_without_room_for_the_audio_fails_the_run(tmp_path: Path, sshd: Sshd) -> None:
    program = recogniser(tmp_path, "speaks")

    sshd.tmp.rmdir()
    try:
        code, err = run(tmp_path, sshd, program)
    finally:
        sshd.tmp.mkdir()

    assert code == 1
    assert "nothing was started there" in err
    assert "Traceback" not in err


def test_a_kept_connection_serves_the_next_run(tmp_path: Path, sshd: Sshd) -> None:
    program = recogniser(tmp_path, "speaks")
    short = Path(f"/tmp/whisper-ssh-test-{os.getpid()}")
    short.mkdir()
    logins = (sshd.folder / "sshd.log").read_text().count("Accepted publickey")
    try:
        first = run(tmp_path, sshd, program, WHISPER_SSH_KEEP="5m", XDG_RUNTIME_DIR=str(short))
        again = run(tmp_path, sshd, program, WHISPER_SSH_KEEP="5m", XDG_RUNTIME_DIR=str(short))

        assert first == again == (0, "")
        assert json.loads((tmp_path / "out" / "a.json").read_text())["text"] == "hello there"
        log = (sshd.folder / "sshd.log").read_text()
        assert log.count("Accepted publickey") == logins + 1
        folder = short / f"whisper-ssh-{os.getuid()}"
        assert folder.stat().st_mode & 0o777 == 0o700
        (kept,) = folder.iterdir()
        subprocess.run(["ssh", "-O", "exit", "-S", str(kept), sshd.host], check=True)
        wait_for(lambda: not list(folder.iterdir()))
        folder.rmdir()
    finally:
        short.rmdir()


def test_a_kept_connection_outlives_no_run_that_is_killed(tmp_path: Path, sshd: Sshd) -> None:
    program = recogniser(tmp_path, "hangs")
    short = Path(f"/tmp/whisper-ssh-kill-{os.getpid()}")
    short.mkdir()
    try:
        process = start(tmp_path, sshd, program, WHISPER_SSH_KEEP="1s", XDG_RUNTIME_DIR=str(short))
        wait_for_call(program)

        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)

        eventually_gone(program, sshd)
        folder = short / f"whisper-ssh-{os.getuid()}"
        wait_for(lambda: not list(folder.iterdir()))  # a second after its last use
        folder.rmdir()
    finally:
        short.rmdir()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WHISPER_SSH_HOST", "", "must name the host"),
        ("WHISPER_SSH_HOST", "-oProxyCommand=id", "must name the host"),
        ("WHISPER_SSH_PROGRAM", "'half", "No closing quotation"),
        ("WHISPER_SSH_KEEP", "a while", "must be a time"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, sshd: Sshd, name: str, value: str, message: str
) -> None:
    code, err = run(tmp_path, sshd, tmp_path, **{name: value})

    assert code == 126
    assert f"{name}" in err
    assert message in err
