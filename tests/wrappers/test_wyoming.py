"""`whisper-wyoming` as a program, against servers built on the protocol's own library."""

import asyncio
import json
import os
import signal
import socket
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from harness.bridge import eventually
from harness.calls import SAMPLE
from harness.wyoming_servers import Script, raw_server, wyoming_server
from siprec_bridge.trial import sample_words, word_error_rate
from siprec_wrappers.wyoming import resolve

PROGRAM = str(Path(sys.executable).with_name("whisper-wyoming"))
ALICE, BOB = SAMPLE / "alice.wav", SAMPLE / "bob.wav"


async def start(*arguments: object, uri: str) -> asyncio.subprocess.Process:
    environment = {"PATH": os.environ["PATH"], "WHISPER_WYOMING_TIMEOUT": "50s"}
    return await asyncio.create_subprocess_exec(
        PROGRAM, *map(str, arguments), env=environment | {"WHISPER_WYOMING_URI": uri},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def run(*arguments: object, uri: str) -> tuple[int, str]:
    process = await start(*arguments, uri=uri)
    async with asyncio.timeout(55):
        out, err = await process.communicate()
    assert out == b""
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, err.decode()


def read(folder: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return document


@pytest.mark.parametrize("behaviour", ["answers", "streams"])
async def test_each_file_comes_back_as_text_over_its_length(tmp_path: Path, behaviour: str) -> None:
    async with wyoming_server(Script(behaviour, models=("tiny", "base"))) as server:
        code, err = await run(
            ALICE, BOB, "--model", "base", "--output_dir", tmp_path, "-f", "json",
            "--language", "en", uri=server.uri,
        )  # fmt: skip

    assert (code, err) == (0, "")
    for name in ("alice", "bob"):
        document = read(tmp_path, name)
        (segment,) = document["segments"]
        assert word_error_rate(sample_words()[name], segment["text"]) <= 0.2
        assert (segment["start"], segment["end"]) == (0.0, pytest.approx(13.96, abs=0.1))
        assert (document["language"], document["model"]) == ("en", "base")
    assert [(one.name, one.language) for one in server.asked] == [("base", "en")] * 2
    assert server.octets == [one.stat().st_size - 44 for one in (ALICE, BOB)]
    assert server.chunks > 100  # not the whole file at once


async def test_a_unix_socket_and_a_model_that_the_server_does_not_have(tmp_path: Path) -> None:
    async with wyoming_server(Script(), tmp_path / "s") as server:
        code, err = await run(
            BOB, "--model", "large-v3", "--output_dir", tmp_path, "-f", "json", uri=server.uri
        )

    assert code == 0
    assert "no model large-v3 there (tiny): it chooses itself" in err
    assert read(tmp_path, "bob")["model"] == "tiny"


async def test_silence_is_an_empty_output(tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.wav"
    with wave.open(str(quiet), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    async with wyoming_server(Script()) as server:
        code, _ = await run(quiet, "--model", "tiny", "--output_dir", tmp_path, uri=server.uri)

    assert code == 0
    assert read(tmp_path, "quiet")["segments"] == []


@pytest.mark.parametrize(
    ("script", "code", "expected"),
    [
        (Script("fails"), 1, "says: CUDA out of memory"),
        (Script("fails_early"), 1, "says: no room for more (overloaded)"),
        (Script("leaves"), 1, "connection"),
        (Script("mumbles"), 1, "its transcript cannot be read"),
        (Script("says_null"), 1, "its transcript cannot be read"),
        (Script(models=()), 127, "recognises no speech"),
    ],
)
async def test_a_servers_failure_is_told_and_nothing_is_written(
    tmp_path: Path, script: Script, code: int, expected: str
) -> None:
    async with wyoming_server(script) as server:
        got, err = await run(
            ALICE, "--model", "tiny", "--output_dir", tmp_path, "-f", "json", uri=server.uri
        )

    assert got == code
    assert expected in err
    assert f"alice.wav: {server.uri}: " in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("greeting", "code", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 127, "does not speak Wyoming: 'HTTP/1.1 400"),
        (b"220 mail ESMTP\r\n", 127, "does not speak Wyoming"),
        (90_000 * b"[" + b"\n", 127, "does not speak Wyoming"),
        (b'{"type": "info", "data": {"asr": []}}\n', 127, "recognises no speech"),
        (b"17\n", 127, "does not speak Wyoming: '17"),
        (b'{"data": {}}\n', 127, "does not speak Wyoming"),
        (b'{"type": "info", "data": {"asr": [{}]}}\n', 127, "cannot be read"),
        (b'{"type": "info", "payload_length": 999999999999}\n', 1, "beyond any reason"),
        (b'{"type": "info", "payload_length": 10}\nabc', 1, "ended within an event"),
        (b"", 1, "ended the connection without a transcript"),
    ],
)
async def test_what_is_no_wyoming_server_is_told_so(
    tmp_path: Path, greeting: bytes, code: int, expected: str
) -> None:
    async with raw_server(greeting) as uri:
        got, err = await run(ALICE, "--output_dir", tmp_path, uri=uri)

    assert got == code
    assert expected in err
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_is_not_there_makes_the_job_wait(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = await run(ALICE, "--output_dir", tmp_path, uri=uri)
    no_socket = await run(ALICE, "--output_dir", tmp_path, uri="unix:///nowhere/s")

    assert (refused[0], no_socket[0]) == (127, 127)
    assert "alice.wav: 127.0.0.1:" in refused[1]
    assert "No such file or directory" in no_socket[1]


async def test_its_own_deadline_and_a_kill_end_the_connection(tmp_path: Path) -> None:
    async with wyoming_server(Script("hangs")) as server:
        late = await run(
            BOB, "--model", "tiny", "--output_dir", tmp_path, "--timeout", "1s", uri=server.uri
        )
        async with asyncio.timeout(30):
            await server.ended.wait()
    async with wyoming_server(Script("hangs")) as server:
        process = await start(BOB, "--model", "tiny", "--output_dir", tmp_path, uri=server.uri)
        await eventually(lambda: bool(server.octets), "the audio")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            _, err = await process.communicate()
            await server.ended.wait()

    assert late[0] == 1
    assert "no result within 1 s" in late[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert err == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "uri", "code", "expected"),
    [
        ((), "", 126, "no server: say --uri"),
        ((), "http://h:1/", 126, "WHISPER_WYOMING_URI=http://h:1/: host:port, tcp://host:port or"),
        (("--uri", "h:port"), "h", 2, "--uri h:port: host:port, tcp://host:port or unix:///path"),
        (("--task", "translate"), "h", 2, "set it at the server"),
        (("--timeout", "soon"), "h", 2, "--timeout soon: a duration"),
        (("/dev/null",), "h", 1, "null: is empty"),
        (("/nowhere/a.wav",), "h", 1, "a.wav: No such file or directory"),
    ],
)
async def test_wrong_options_and_files_are_told_before_anything_is_sent(
    tmp_path: Path, arguments: tuple[str, ...], uri: str, code: int, expected: str
) -> None:
    files = arguments if arguments and arguments[0].startswith("/") else (ALICE, *arguments)

    got, err = await run(*files, "--output_dir", tmp_path, uri=uri)

    assert got == code
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gpu", ("gpu", 10300)),
        ("gpu:10301", ("gpu", 10301)),
        ("tcp://gpu:10300", ("gpu", 10300)),
        ("tcp://[::1]:10300", ("::1", 10300)),
        ("unix:///run/wyoming.sock", Path("/run/wyoming.sock")),
    ],
)
def test_where_a_server_is(uri: str, expected: object) -> None:
    assert resolve(uri) == expected


async def test_without_its_extra_it_says_what_to_install() -> None:
    hidden = "import sys; sys.modules['wyoming'] = None; import siprec_wrappers.wyoming"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", hidden, stderr=asyncio.subprocess.PIPE
    )

    _, err = await process.communicate()

    assert process.returncode == 127
    assert err == b"whisper-wyoming: needs the extra: pip install 'siprec-bridge[wyoming]'\n"
