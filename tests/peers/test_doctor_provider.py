"""`siprec-bridge doctor --provider`: the real chain, and the step that breaks."""

import json
import socket
import sys
from pathlib import Path

import pytest

from harness.bridge import command
from harness.recognisers import is_alive, recogniser
from harness.speech_services import says, speech_server

HERE = Path(sys.executable).parent


async def doctor(data: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    code, out, err = await command("doctor", "--provider", *arguments, data=data, **environment)
    assert "Traceback" not in err, err
    return code, out, err


@pytest.mark.peer
async def test_the_whole_chain_through_a_wrapper_and_its_server_is_good(tmp_path: Path) -> None:
    async with speech_server() as server:
        code, out, _ = await doctor(
            tmp_path, WHISPER_BINARY_PATH=str(HERE / "whisper-http"),
            WHISPER_HTTP_URL=f"{server.url}/asr", WHISPER_LANGUAGE="en",
        )  # fmt: skip

    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", name] for name in ("options", "program", "run", "output", "words")
    ]
    assert {one.query["language"] for one in server.asked} == {"en"}
    assert len(server.asked) == 2


@pytest.mark.peer
async def test_a_script_reads_what_was_heard_as_json(tmp_path: Path) -> None:
    code, out, _ = await doctor(
        tmp_path, "--json", WHISPER_BINARY_PATH=str(HERE / "whisper-standin")
    )
    report = json.loads(out)

    assert code == 0
    assert (report["ok"], report["broken"], report["exit_code"]) == (True, None, 0)
    assert report["wrong_words"] <= 0.2
    assert "tuesday" in report["heard"]["alice"]
    assert "problem" in report["heard"]["bob"]


WRITES = """#!{python}
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
for audio in sys.argv[1 : sys.argv.index("--model")][:{files}]:
    (out / (pathlib.Path(audio).stem + ".json")).write_text({text!r})
"""


def writes(folder: Path, text: str, files: int = 9) -> Path:
    path = folder / "writes"
    path.write_text(WRITES.format(python=sys.executable, text=text, files=files))
    path.chmod(0o755)
    return path


async def broken(
    data: Path, binary: Path | str, **environment: str
) -> tuple[str, str, str, str, int | None]:
    code, out, _ = await doctor(
        data, "--json", WHISPER_BINARY_PATH=str(binary), **environment
    )  # fmt: skip
    report = json.loads(out)
    last = report["steps"][-1]
    assert code == 1
    assert report["ok"] is last["ok"] is False
    assert [one["ok"] for one in report["steps"][:-1]] == [True] * (len(report["steps"]) - 1)
    return report["broken"], report["reason"], last["text"], report["stderr"], report["exit_code"]


async def test_a_program_that_is_missing_no_program_or_not_executable(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    stale = tmp_path / "stale"  # such as a venv's script whose Python has gone
    stale.write_text("#!/nowhere/python\n")
    stale.chmod(0o755)

    missing = await broken(tmp_path, "/nowhere/whisper")
    unfit = await broken(tmp_path, plain)
    gone = await broken(tmp_path, stale)

    assert missing[:2] == unfit[:2] == gone[:2] == ("program", "unavailable")
    assert "/nowhere/whisper does not exist" in missing[2]
    assert "plain is not executable" in unfit[2]
    assert "stale" in gone[2]
    assert "No such file or directory" in gone[2]


async def test_a_run_that_fails_with_the_end_of_its_stderr(tmp_path: Path) -> None:
    step, reason, text, stderr, code = await broken(tmp_path, recogniser(tmp_path, "exits_1"))

    assert (step, reason, code) == ("run", "exit_code", 1)
    assert "exit code 1" in text
    assert stderr == "out of memory on GPU 3"


async def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "hangs_in_a_child")

    step, reason, text, _, _ = await broken(tmp_path, binary, WHISPER_TIMEOUT="1s")

    assert (step, reason) == ("run", "timeout")
    assert "no result within 1 s; a smaller model, or a longer WHISPER_TIMEOUT" in text
    child = binary.with_suffix(".child")  # not there where a busy machine took so long to start
    assert not child.exists() or not is_alive(int(child.read_text()))


async def test_a_wrapper_whose_server_is_away(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/asr"
        step, reason, text, stderr, code = await broken(
            tmp_path, HERE / "whisper-http", WHISPER_HTTP_URL=url, WHISPER_HTTP_RETRIES="0"
        )

    assert (step, reason, code) == ("run", "unavailable", 127)
    assert "what it needs is away" in text
    assert "Connection refused" in stderr


async def test_a_wrapper_whose_server_refuses(tmp_path: Path) -> None:
    refusal = says(401, {"error": "no token"})
    async with speech_server(*[refusal] * 4) as server:
        step, reason, _, stderr, code = await broken(
            tmp_path, HERE / "whisper-http", WHISPER_HTTP_URL=f"{server.url}/v1"
        )

    assert (step, reason, code) == ("run", "unavailable", 127)
    assert "401 Unauthorized: no token" in stderr


async def test_outputs_that_are_missing_or_unreadable(tmp_path: Path) -> None:
    nothing = await broken(tmp_path, recogniser(tmp_path, "writes_nothing"))
    first_only = await broken(tmp_path, writes(tmp_path, '{"text": "hello"}', files=1))
    garbage = await broken(tmp_path, recogniser(tmp_path, "writes_bad_json"))

    assert nothing[:2] == first_only[:2] == ("output", "no_output")
    assert "several files in one run" in first_only[2]
    assert garbage[:2] == ("output", "bad_output")
    assert "WHISPER_OUTPUT_FORMAT" in garbage[2]


async def test_words_that_are_wrong_or_none(tmp_path: Path) -> None:
    wrong = await broken(tmp_path, writes(tmp_path, '{"text": "guten morgen"}'))
    none = await broken(tmp_path, writes(tmp_path, '{"text": "", "segments": []}'))

    assert wrong[0] == none[0] == "words"
    assert "is the model right for English?" in wrong[2]
    assert none[2] == "nothing was heard of alice and bob"


async def test_options_that_are_wrong_and_vendors_that_are_none(tmp_path: Path) -> None:
    step, _, text, _, _ = await broken(tmp_path, "whisper", WHISPER_TIMEOUT="soon")
    code, out, _ = await doctor(tmp_path, "--vendor", "acme")

    assert step == "options"
    assert "WHISPER_TIMEOUT=soon" in text
    assert code == 1
    assert "BAD   options     STT_DEFAULT_VENDOR=acme: no such provider is installed" in out


async def test_for_a_person_it_prints_the_end_of_stderr_below_the_broken_step(
    tmp_path: Path,
) -> None:
    code, out, _ = await doctor(
        tmp_path, WHISPER_BINARY_PATH=str(recogniser(tmp_path, "exits_1"))
    )  # fmt: skip

    assert code == 1
    assert out.splitlines()[-2].startswith("BAD   run ")
    assert out.splitlines()[-1] == "      stderr      out of memory on GPU 3"
