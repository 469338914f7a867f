"""The far side's script under the shells that hosts and images have."""

import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from harness.recognisers import calls, is_alive, recogniser
from siprec_wrappers.contract import parse_arguments
from siprec_wrappers.far import far_names, far_script, tar_size

SHELLS = {
    "dash": ["/bin/dash"],
    "bash": ["/bin/bash"],
    "bash as sh": ["/bin/bash", "--posix"],
    "busybox, as in Alpine": ["/bin/busybox", "sh"],
}


def applets(folder: Path) -> Path:
    """What an Alpine image has instead of coreutils, tar and util-linux."""
    folder.mkdir()
    for name in ("tar", "head", "mktemp", "mkdir", "rm", "sleep", "setsid", "timeout", "sh"):
        (folder / name).symlink_to("/bin/busybox")
    return folder


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    command = SHELLS[request.param]
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is not installed: run scripts/setup test")
    far = tmp_path / "far"
    far.mkdir()
    path = str(applets(tmp_path / "bin")) if "busybox" in command[0] else os.environ["PATH"]
    return command, {"TMPDIR": str(far), "PATH": path}


def begin(
    shell: tuple[list[str], dict[str, str]], program: Path, *, timeout_s: float = 60
) -> subprocess.Popen[bytes]:
    """Start the script and send one file of two octets."""
    audio = program.parent / "a.wav"
    audio.write_bytes(b"ab")
    arguments = parse_arguments("test", "", [str(audio), "--output_format", "json"])
    size = tar_size(arguments.audio)
    script = far_script(
        [str(program)], far_names(arguments), arguments, timeout_s=timeout_s, size=size
    )
    sent = io.BytesIO()
    with tarfile.open(fileobj=sent, mode="w") as tar:
        about = tarfile.TarInfo(far_names(arguments)[0])
        about.size = 2
        tar.addfile(about, io.BytesIO(b"ab"))
    assert len(sent.getvalue()) == size
    command, environment = shell
    process = subprocess.Popen(
        [*command, "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(sent.getvalue())
    process.stdin.flush()
    return process


def test_it_runs_the_program_and_sends_what_it_wrote(
    shell: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    process = begin(shell, recogniser(tmp_path, "speaks"))
    assert process.stdout is not None

    started, code, tar = (
        process.stdout.readline(), process.stdout.readline(), process.stdout.read(),
    )  # fmt: skip
    _, err = process.communicate(timeout=20)

    assert started.startswith(b"whisper-far-side ")
    assert code == b"0\n"
    with tarfile.open(fileobj=io.BytesIO(tar)) as outputs:
        assert "./000.json" in outputs.getnames()
    assert (process.returncode, err) == (0, b"")
    assert list((tmp_path / "far").iterdir()) == []


@pytest.mark.parametrize("behaviour", ["hangs_in_a_child", "ignores_term"])
def test_it_ends_the_program_when_nobody_listens_any_more(
    shell: tuple[list[str], dict[str, str]], tmp_path: Path, behaviour: str
) -> None:
    program = recogniser(tmp_path, behaviour)
    process = begin(shell, program)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 30
    while not calls(program):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.communicate(timeout=20)  # closes stdin

    assert not is_alive(int(str(calls(program)[0]["pid"])))
    assert list((tmp_path / "far").iterdir()) == []


def test_it_has_a_limit_of_its_own_for_when_it_hears_nothing(
    shell: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    process = begin(shell, recogniser(tmp_path, "hangs"), timeout_s=-4)  # 5 s later than ours
    assert process.stdout is not None

    process.stdout.readline()
    code = process.stdout.readline()
    process.communicate(timeout=20)

    assert code.strip() in (b"124", b"143")  # busybox tells of the signal
    assert list((tmp_path / "far").iterdir()) == []


def test_audio_that_is_cut_off_is_not_transcribed(
    shell: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    program = recogniser(tmp_path, "speaks")
    arguments = parse_arguments("test", "", [str(tmp_path / "a.wav")])
    script = far_script([str(program)], ["000.wav"], arguments, timeout_s=60, size=10240)
    command, environment = shell

    done = subprocess.run(
        [*command, "-c", script], env=environment, input=b"000.wav" + bytes(300),
        capture_output=True, timeout=20,
    )  # fmt: skip

    assert done.returncode == 73
    assert b"did not arrive whole" in done.stderr
    assert calls(program) == []
    assert list((tmp_path / "far").iterdir()) == []
