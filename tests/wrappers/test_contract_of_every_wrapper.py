"""Every wrapper, the same cases: what its caller relies on (wrappers/README.md).

A wrapper joins by a row in WRAPPERS: a function that leads it to a recogniser which behaves as
told (harness.recognisers), wherever that one runs.
"""

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soxr

from harness.calls import SAMPLE
from harness.docker import Docker
from harness.recognisers import calls, is_alive, recogniser
from harness.sshd import Sshd
from harness.whispercpp import whisper_cli
from siprec_bridge.doctor import word_error_rate

PATIENCE_S = 8.0
BIN = Path(sys.executable).parent


@dataclass
class Chain:
    """A wrapper with all that it leads to, down to the recogniser."""

    program: str
    variables: dict[str, str]
    far: Path  # where the far side keeps its files; nothing may stay there
    prefix: str  # of the wrapper's own variables
    log: Path  # the recogniser, whose calls are known
    program_run: Path | None = None  # what the wrapper runs, if that is not the recogniser
    model: str = "base"
    speaks_openai: bool = True  # the recogniser gets openai-whisper's own options

    def asked(self, output: Path, *more: str) -> list[str]:
        """The arguments behind the audio files, as the bridge gives them."""
        return [
            "--model", self.model, "--output_dir", str(output), "--output_format", "json", *more,
        ]  # fmt: skip

    def start(self, *arguments: object, **more: str) -> subprocess.Popen[str]:
        """Run it as the bridge does: leader of a group, nothing on stdin."""
        return subprocess.Popen(
            [BIN / self.program, *map(str, arguments)],
            env=os.environ | self.variables | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=40)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def is_over(self) -> bool:
        """Whether nothing of it runs any more or lies about on the far side."""
        return not any(map(is_alive, self.pids())) and not list(self.far.iterdir())

    def pids(self) -> list[int]:
        """The recogniser's processes that were started."""
        return [int(str(one["pid"])) for one in calls(self.log)]


def local(folder: Path, behaviour: str, sshd: Sshd) -> Chain:
    program = recogniser(folder, behaviour)
    (folder / "nothing").mkdir()
    variables = {"WHISPER_LOCAL_PROGRAM": str(program)}
    return Chain("whisper-local", variables, folder / "nothing", "WHISPER_LOCAL", program)


def cpp(folder: Path, behaviour: str, sshd: Sshd) -> Chain:
    program = recogniser(folder, behaviour)
    (folder / "nothing").mkdir()
    double = whisper_cli(folder, program)
    variables = {"WHISPER_CPP_PROGRAM": str(double)}
    return Chain(
        "whisper-cpp", variables, folder / "nothing", "WHISPER_CPP", program,
        program_run=double, model=str(folder / "ggml-base.bin"), speaks_openai=False,
    )  # fmt: skip


def docker(folder: Path, behaviour: str, sshd: Sshd, *, volume: bool = False) -> Chain:
    program = recogniser(folder, behaviour)
    engine = Docker(folder)
    variables = {
        "WHISPER_DOCKER_CLI": str(engine.client),
        "WHISPER_DOCKER_CONTAINER": "whisper",
        "WHISPER_DOCKER_PROGRAM": shlex.quote(str(program)),
    }
    if volume:
        variables["WHISPER_DOCKER_VOLUME"] = f"{folder}:{folder}"
    return Chain("whisper-docker", variables, engine.tmp, "WHISPER_DOCKER", program)


def docker_volume(folder: Path, behaviour: str, sshd: Sshd) -> Chain:
    return docker(folder, behaviour, sshd, volume=True)


def ssh(folder: Path, behaviour: str, sshd: Sshd) -> Chain:
    program = recogniser(folder, behaviour)
    variables = {
        "WHISPER_SSH_HOST": sshd.host,
        "WHISPER_SSH_OPTIONS": sshd.options,
        "WHISPER_SSH_PROGRAM": shlex.quote(str(program)),
    }
    return Chain("whisper-ssh", variables, sshd.tmp, "WHISPER_SSH", program)


Builder = Callable[[Path, str, Sshd], Chain]
WRAPPERS: dict[str, Builder] = {
    "local": local,
    "cpp": cpp,
    "docker": docker,
    "docker-volume": docker_volume,
    "ssh": ssh,
}
PROGRAMS = ("whisper-cpp", "whisper-local", "whisper-docker", "whisper-ssh")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if not Sshd.installed():
        pytest.fail("sshd is not installed: run scripts/setup test")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=WRAPPERS)
def chain_to(
    request: pytest.FixtureRequest, tmp_path: Path, sshd: Sshd
) -> Iterator[Callable[[str], Chain]]:
    made: list[Chain] = []

    def build(behaviour: str) -> Chain:
        folder = tmp_path / 'it\'s a $HOME "folder"'
        folder.mkdir()
        made.append(WRAPPERS[request.param](folder, behaviour, sshd))
        return made[-1]

    yield build
    for chain in made:
        eventually(chain.is_over)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wav(path: Path, pcm: bytes = bytes(16000)) -> Path:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(pcm)
    return path


def room(chain: Chain) -> Path:
    """A folder as the bridge makes one for a run: what a wrapper is given lies there."""
    folder = chain.log.parent / "run"
    folder.mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    return folder


def test_two_files_are_one_run_and_two_outputs(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("speaks")
    run = room(chain)

    done = chain.run(wav(run / "a.wav"), wav(run / "b.wav"), *chain.asked(run / "out"))

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(file.name for file in (run / "out").iterdir()) == ["a.json", "b.json"]
    for name in ("a.json", "b.json"):
        document = json.loads((run / "out" / name).read_text())
        assert document["text"] == "hello there"
        assert document["segments"][0]["start"] == 0.2
    assert len(chain.pids()) == 1


def test_no_speech_is_an_output_without_text(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("is_silent")
    run = room(chain)

    done = chain.run(wav(run / "quiet.wav"), *chain.asked(run / "out"))

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((run / "out" / "quiet.json").read_text())["text"] == ""


def test_what_it_was_asked_arrives_word_for_word(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("speaks")
    run = room(chain)
    odd = ["--prompt", "it's $HOME; \"O'Neil\" `id` \\ * \n(two lines) ü", "--beam-size", "5"]

    done = chain.run(
        wav(run / 'it\'s $(id) "x".wav'),
        *chain.asked(
            run / "out", "--task", "translate", "--language", "cy", "--model_dir", "/m o/d", *odd
        ),
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "out" / 'it\'s $(id) "x".json').exists()
    got = calls(chain.log)[0]["arguments"]
    assert isinstance(got, list)
    if chain.speaks_openai:
        assert got[-4:] == odd
        pairs = {("--task", "translate"), ("--language", "cy"), ("--model_dir", "/m o/d")}
        assert pairs <= set(itertools.pairwise(got))


def test_a_file_that_is_not_there_is_named_and_nothing_is_run(
    chain_to: Callable[[str], Chain],
) -> None:
    chain = chain_to("speaks")
    run = room(chain)

    missing = chain.run(wav(run / "a.wav"), run / "none.wav", *chain.asked(run / "out"))
    twins = chain.run(
        wav(run / "one" / "a.wav"), wav(run / "two" / "a.wav"), *chain.asked(run / "out")
    )

    assert missing.returncode == twins.returncode == 1
    assert "none.wav: No such file" in missing.stderr
    assert "a.wav: another file of this run has the name a" in twins.stderr
    assert chain.pids() == []
    assert list((run / "out").iterdir()) == []


def test_a_failed_run_has_the_programs_own_code_and_words(
    chain_to: Callable[[str], Chain],
) -> None:
    chain = chain_to("exits_1")
    run = room(chain)

    done = chain.run(wav(run / "a.wav"), *chain.asked(run / "out"))

    assert done.returncode == 1
    assert "out of memory on GPU 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((run / "out").iterdir()) == []


def test_what_was_said_is_never_on_stderr(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("tells_and_exits_1")
    run = room(chain)

    done = chain.run(wav(run / "a.wav"), *chain.asked(run / "out"))

    assert done.returncode == 1
    assert "my card number is" in done.stdout
    assert "card" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("behaviour", ["writes_bad_json", "writes_nothing", "writes_a_pipe"])
def test_half_an_output_is_none(chain_to: Callable[[str], Chain], behaviour: str) -> None:
    chain = chain_to(behaviour)
    run = room(chain)

    done = chain.run(wav(run / "a.wav"), *chain.asked(run / "out"))

    assert done.returncode == 1
    assert "a.json" in done.stderr
    assert list((run / "out").iterdir()) == []


def test_a_program_that_is_not_there_lets_the_job_wait(
    chain_to: Callable[[str], Chain],
) -> None:
    chain = chain_to("speaks")
    program = chain.program_run or chain.log
    program.unlink()
    run = room(chain)

    done = chain.run(wav(run / "a.wav"), *chain.asked(run / "out"))

    assert done.returncode in (126, 127)
    assert program.name in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("whom", ["wrapper", "group"])
def test_ended_in_mid_run_it_takes_the_recogniser_with_it(
    chain_to: Callable[[str], Chain], number: signal.Signals, whom: str
) -> None:
    chain = chain_to("hangs")
    run = room(chain)
    process = chain.start(wav(run / "a.wav"), *chain.asked(run / "out"))
    eventually(lambda: chain.pids() != [])

    begun = time.monotonic()
    os.kill(process.pid if whom == "wrapper" else -process.pid, number)
    _, stderr = process.communicate(timeout=20)

    assert time.monotonic() - begun < 3.5
    assert "Traceback" not in stderr
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert list((run / "out").iterdir()) == []
    # The fixture sees to it that nothing runs or lies about on the far side.


def test_what_ignores_term_is_ended_too(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("ignores_term")
    run = room(chain)
    process = chain.start(wav(run / "a.wav"), *chain.asked(run / "out"))
    eventually(lambda: chain.pids() != [])

    process.terminate()
    process.communicate(timeout=20)

    assert process.returncode == 128 + signal.SIGTERM


def test_it_has_a_deadline_of_its_own(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("hangs_in_a_child")
    run = room(chain)

    done = chain.run(
        wav(run / "a.wav"), *chain.asked(run / "out"), **{f"{chain.prefix}_TIMEOUT": "1.5s"}
    )

    assert done.returncode == 124
    assert "no result within 1.5 s" in done.stderr
    child = chain.log.with_suffix(".child")  # not there where a busy machine took so long to start
    eventually(lambda: not child.exists() or not is_alive(int(child.read_text())))
    assert list((run / "out").iterdir()) == []


@pytest.mark.peer
def test_real_text_comes_through(chain_to: Callable[[str], Chain]) -> None:
    chain = chain_to("speaks")
    run = room(chain)
    chain.log.write_text(f"#!/bin/sh\nexec '{BIN}/whisper-standin' \"$@\"\n")
    first, *_ = json.loads((SAMPLE / "transcript.json").read_text())
    with wave.open(str(SAMPLE / f"{first['speaker']}.wav")) as whole:
        rate = whole.getframerate()
        pcm = np.frombuffer(whole.readframes(round((first["end"] + 0.2) * rate)), "<i2")
    heard_at = soxr.resample(pcm.astype(np.int16), rate, 16000)
    start = wav(run / "start.wav", pcm=heard_at.astype("<i2").tobytes())

    done = chain.run(start, *chain.asked(run / "out"))

    assert done.returncode == 0, done.stderr
    heard = json.loads((run / "out" / "start.json").read_text())["text"]
    assert word_error_rate(first["text"], heard) <= 0.25


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_the_variables_and_no_heavy_import_is_made(program: str) -> None:
    shown = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, timeout=30)
    module = program.removeprefix("whisper-").replace("-", "_")
    loaded = subprocess.run(
        [sys.executable, "-c", f"import siprec_wrappers.{module}, sys; print(*sys.modules)"],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout.split()  # fmt: skip

    assert shown.returncode == 0
    assert f"{program.upper().replace('-', '_')}_TIMEOUT" in shown.stdout
    assert "exit codes:" in shown.stdout
    assert not {"numpy", "asyncio", "siprec_bridge", "aiohttp", "ssl"} & set(loaded)


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_arguments_and_wrong_times_are_told(program: str) -> None:
    name = f"{program.upper().replace('-', '_')}_TIMEOUT"

    none = subprocess.run([BIN / program], capture_output=True, text=True, timeout=30)
    wrong = subprocess.run(
        [BIN / program, "a.wav"], env=os.environ | {name: "soon"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    everywhere = subprocess.run(
        [BIN / program, "a.wav"], env=os.environ | {"WHISPER_TIMEOUT": "never"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert none.returncode == 2
    assert wrong.returncode == 126
    assert f"{name}=soon: must be a time" in wrong.stderr
    assert f"{program}: WHISPER_TIMEOUT=never: must be a time" in everywhere.stderr


@pytest.mark.parametrize(
    ("program", "needed"),
    [
        ("whisper-http", "URL"),
        ("whisper-wyoming", "URI"),
        ("whisper-resident", "URL"),
        ("whisper-farm", "BROKER"),
    ],
)
def test_help_of_those_that_ask_a_server_names_variables_and_exit_codes(
    program: str, needed: str
) -> None:
    shown = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, timeout=30)

    prefix = program.upper().replace("-", "_")
    assert shown.returncode == 0
    assert {f"{prefix}_{needed}", f"{prefix}_TIMEOUT"} <= set(re.findall(r"[A-Z_]+", shown.stdout))
    assert "exit codes:" in shown.stdout
