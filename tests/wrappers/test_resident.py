"""whisper-resident as a program, before a real `siprec-asr` with a tiny model."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from harness.asr import free_ports, wav
from harness.tiny_whisper import make_ctranslate2

PROGRAM = str(Path(sys.executable).with_name("whisper-resident"))
SERVER = str(Path(sys.executable).with_name("siprec-asr"))
SAID = "Good morning how can I help you"


def run(url: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"WHISPER_RESIDENT_URL": url} | environment,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real server process; its Unix and its TCP address."""
    folder = tmp_path_factory.mktemp("asr")
    make_ctranslate2(folder / "models" / "tiny", SAID)
    (port,) = free_ports(1)
    settings = {
        "ASR_SOCKET": str(folder / "asr.sock"),
        "ASR_PORT": str(port),
        "ASR_WYOMING_PORT": "0",
        "ASR_MODELS_DIR": str(folder / "models"),
        "ASR_TOKEN": "s3cret",
        "ASR_PRELOAD": "tiny",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SERVER], env=os.environ | settings, stderr=log)
    try:
        eventually_ready(folder / "log", process)
        yield f"unix://{folder / 'asr.sock'}", f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) == 0, (folder / "log").read_text()


def eventually_ready(log: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        if "model.loaded" in log.read_text():
            return
        threading.Event().wait(0.05)
    raise AssertionError(log.read_text())


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{name}.wav" for name in ("alice", "bob with a space")]
    for number, file in enumerate(files, 1):
        file.write_bytes(wav(number, 8000 * number))
    return files


def run_at(
    tmp_path: Path, audio: list[Path], *answers: bytes, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it before a server that gives these answers, each on a connection of its own."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as body:
                    while b"Content-Length" not in (line := body.readline()):
                        pass
                    body.readline(), body.readline(), body.read(int(line.split()[1]))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = run(url, audio[0], "-o", tmp_path / "out", "-f", "txt", **environment)
        thread.join(10)
    return done


@pytest.mark.parametrize("way", ["unix", "unix by path", "tcp"])
def test_two_files_in_one_run_over(
    server: tuple[str, str], tmp_path: Path, audio: list[Path], way: str
) -> None:
    done = run(
        server[way == "tcp"], "--vad_filter", "False", *audio, "--model", "tiny", "--output_dir", tmp_path / "out",
        "--output_format", "json", "--language", "English", "--beam_size", "1", "--fp16", "False",
        "--word_timestamps=True",
        WHISPER_RESIDENT_TOKEN="s3cret", WHISPER_RESIDENT_SEND="paths" if "path" in way else "",
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == "whisper-resident: ignored: --fp16 False\n"
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "alice.json", "bob with a space.json",
    ]  # fmt: skip
    document = json.loads((tmp_path / "out" / "alice.json").read_text())
    assert (document["text"], document["model"]) == (SAID, "tiny")
    assert document["segments"][0]["words"][0]["word"] == " Good"


def test_all_formats(server: tuple[str, str], tmp_path: Path, audio: list[Path]) -> None:
    done = run(server[0], audio[0], "--model", "tiny", "-o", tmp_path, "-f", "all")

    assert done.returncode == 0, done.stderr
    for form in ("json", "txt", "srt", "vtt", "tsv"):
        assert SAID in (tmp_path / f"alice.{form}").read_text()


def test_what_the_server_says_is_passed_on(
    server: tuple[str, str], tmp_path: Path, audio: list[Path]
) -> None:
    (tmp_path / "text.wav").write_text("hello")

    model = run(server[0], audio[0], "--model", "gpt", "-o", tmp_path / "out")
    text = run(
        server[0], audio[0], tmp_path / "text.wav", "--model", "tiny", "-o", tmp_path / "out"
    )
    login = run(server[1], audio[0], "--model", "tiny", "-o", tmp_path / "out")

    assert (model.returncode, text.returncode, login.returncode) == (1, 1, 1)
    assert "404 there is no model 'gpt'" in model.stderr
    assert "415 text: not audio" in text.stderr
    assert "401 a bearer token is needed" in login.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_server_the_recogniser_is_away(tmp_path: Path, audio: list[Path]) -> None:
    (port,) = free_ports(1)

    for url in (f"unix://{tmp_path / 'none.sock'}", f"http://127.0.0.1:{port}"):
        done = run(url, audio[0], "-o", tmp_path)
        assert done.returncode == 127
        assert url in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("answer", "code", "cause"),
    [
        (b"", 127, "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", 127, "within the answer"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 5\r\n\r\nproxy", 127, "502 proxy"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", 1, "none of siprec-asr's"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 1, "none of siprec-asr's"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n" + b'{"outputs":[]}', 1, "none of"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n", 1, "none of siprec-asr's"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + 90_000 * b"[", 1, "none of"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n"
            b'{"outputs":[{"name":"alice","txt":["hi"]}]}',
            1,
            "none of",
        ),
        (b"x" * 200_000, 1, "none of siprec-asr's"),
    ],
)
def test_an_answer_that_is_none_is_no_result(
    tmp_path: Path, audio: list[Path], answer: bytes, code: int, cause: str
) -> None:
    done = run_at(tmp_path, audio, answer)

    assert (done.returncode, cause in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_server_without_room_is_asked_again_in_time(tmp_path: Path, audio: list[Path]) -> None:
    busy = b"HTTP/1.1 429 Full\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nfull"
    outputs = json.dumps({"outputs": [{"name": "alice", "txt": "hello"}]}).encode()
    good = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(outputs) + outputs

    done = run_at(tmp_path, audio, busy, good)
    late = run_at(tmp_path, audio, busy, WHISPER_RESIDENT_TIMEOUT="0.9")

    assert (done.returncode, (tmp_path / "out" / "alice.txt").read_text()) == (0, "hello")
    assert (late.returncode, "429 full; no time is left" in late.stderr) == (1, True)


def test_it_keeps_its_own_deadline_at_a_server_that_never_answers(
    tmp_path: Path, audio: list[Path]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = run(url, audio[0], "-o", tmp_path, WHISPER_RESIDENT_TIMEOUT="0.3s")

    assert done.returncode == 1
    assert "in time" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_when_it_is_killed_the_server_sees_the_end_of_the_connection_at_once(
    tmp_path: Path, audio: list[Path], number: signal.Signals
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [PROGRAM, str(audio[0]), "-o", str(tmp_path / "out")],
            env=os.environ | {"WHISPER_RESIDENT_URL": url},
            stderr=subprocess.PIPE,
        )
        connection, _ = listener.accept()
        with connection, process:
            connection.settimeout(10)
            assert connection.recv(65536).startswith(b"POST /transcribe")

            process.send_signal(number)

            while connection.recv(1 << 20):
                pass
            assert process.wait(10) == -number
            assert process.stderr is not None
            assert process.stderr.read() == b""
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_exit_code_2(tmp_path: Path, audio: list[Path]) -> None:
    assert run("unix:///none", "-o", tmp_path).returncode == 2
    assert run("unix:///none", audio[0], "--beam_size", "many").returncode == 2
    assert run("unix:///none", audio[0], tmp_path / "x" / "alice.wav").returncode == 2
    assert run("unix:///none", tmp_path / "missing.wav").returncode == 1


@pytest.mark.parametrize(
    ("url", "variables", "named"),
    [
        ("ftp://host", {}, "WHISPER_RESIDENT_URL=ftp://host: "),
        ("unix:///none", {"WHISPER_RESIDENT_TIMEOUT": "soon"}, "WHISPER_RESIDENT_TIMEOUT=soon: "),
        ("unix:///none", {"WHISPER_RESIDENT_SEND": "path"}, "WHISPER_RESIDENT_SEND=path: "),
    ],
)
def test_a_wrong_variable_is_named_and_the_job_waits(
    audio: list[Path], url: str, variables: dict[str, str], named: str
) -> None:
    done = run(url, audio[0], **variables)

    assert done.returncode == 126
    assert done.stderr.startswith(f"whisper-resident: {named}")


def test_it_imports_little_so_that_it_starts_fast() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import siprec_wrappers.resident, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    heavy = {"numpy", "http.client", "ssl", "asyncio", "urllib.request", "email", "logging"}
    assert heavy & set(done.stdout.split()) == set()
