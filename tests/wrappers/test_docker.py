"""`whisper-docker` against a double of docker's client and engine (harness.docker says what it is)."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.docker import Docker
from harness.recognisers import calls, ended, is_alive, recogniser, wrapped

PROGRAM = Path(sys.executable).with_name("whisper-docker")


def start(folder: Path, docker: Docker, program: Path, **more: str) -> subprocess.Popen[str]:
    settings = {
        "WHISPER_DOCKER_CLI": str(docker.client),
        "WHISPER_DOCKER_CONTAINER": "whisper",
        "WHISPER_DOCKER_PROGRAM": str(program),
    }
    return wrapped(PROGRAM, folder, settings | more)


def run(folder: Path, docker: Docker, program: Path, **more: str) -> tuple[int, str]:
    return ended(start(folder, docker, program, **more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"WHISPER_DOCKER_CONTAINER": "other"}, "No such container: other"),
        ({"WHISPER_DOCKER_CONTAINER": "stopped"}, "container stopped is not running"),
        ({"WHISPER_DOCKER_CONTAINER": ""}, "WHISPER_DOCKER_CONTAINER: must name"),
        ({"WHISPER_DOCKER_VOLUME": "/srv"}, "must be /on/the/host:/in/the/container"),
        ({"WHISPER_DOCKER_VOLUME": "/srv:/srv"}, "is not under /srv (WHISPER_DOCKER_VOLUME)"),
        ({"WHISPER_DOCKER_CLI": "/no/docker"}, "/no/docker: No such file"),
    ],
)
def test_where_nothing_can_be_run_the_job_waits(
    tmp_path: Path, more: dict[str, str], message: str
) -> None:
    program = recogniser(tmp_path, "speaks")

    code, err = run(tmp_path, Docker(tmp_path), program, **more)

    assert code in (126, 127)
    assert message in err
    assert "Traceback" not in err
    assert calls(program) == []


def test_options_go_to_exec_and_a_volume_copies_nothing(tmp_path: Path) -> None:
    program, docker = recogniser(tmp_path, "speaks"), Docker(tmp_path)
    inside = tmp_path / "elsewhere"
    inside.symlink_to(tmp_path)

    code, err = run(
        tmp_path, docker, program, WHISPER_DOCKER_OPTIONS="--user 1000 -e LANG=C",
        WHISPER_DOCKER_VOLUME=f"{tmp_path}:{inside}",
    )  # fmt: skip

    assert (code, err) == (0, "")
    assert (
        "['exec', '-i', '--user', '1000', '-e', 'LANG=C', 'whisper', 'sh'" in docker.log.read_text()
    )
    arguments = calls(program)[0]["arguments"]
    assert isinstance(arguments, list)
    assert arguments[0] == str(inside / "a.wav")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.json"]


def test_an_engine_that_keeps_stdin_open_has_its_program_ended_all_the_same(
    tmp_path: Path,
) -> None:
    program, docker = recogniser(tmp_path, "hangs"), Docker(tmp_path, passes_on_end_of_stdin=False)
    process = start(tmp_path, docker, program)
    deadline = time.monotonic() + 40
    while not calls(program):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    begun = time.monotonic()
    process.terminate()
    process.communicate(timeout=20)

    assert time.monotonic() - begun < 10
    pid = int(str(calls(program)[0]["pid"]))
    while is_alive(pid) or list(docker.tmp.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
