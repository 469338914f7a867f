"""`whisper-http` as a program, against servers that behave as the three APIs do."""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import time
import wave
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from harness.bridge import eventually
from harness.calls import SAMPLE
from harness.certificates import Authority
from harness.speech_services import (
    Fault,
    cuts_its_answer,
    drips,
    hangs,
    never_ends,
    says,
    speech_server,
    waits_for_company,
)
from siprec_bridge.trial import word_error_rate
from siprec_wrappers.http.options import resolve

PROGRAM = str(Path(sys.executable).with_name("whisper-http"))
ALICE, BOB = SAMPLE / "alice.wav", SAMPLE / "bob.wav"
FAST = {"WHISPER_HTTP_TIMEOUT": "50s"}


async def start(*arguments: object, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        PROGRAM, *map(str, arguments),
        env={"PATH": os.environ["PATH"]} | FAST | environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def run(*arguments: object, **environment: str) -> tuple[int, str]:
    process = await start(*arguments, **environment)
    async with asyncio.timeout(55):
        out, err = await process.communicate()
    assert out == b""
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, err.decode()


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A fifth of a second of silence: the server has nothing to do with it."""
    path = tmp_path / "in" / "quiet.wav"
    path.parent.mkdir()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(6400))
    return path


def said(name: str) -> str:
    lines = json.loads((SAMPLE / "transcript.json").read_text())
    return " ".join(line["text"] for line in lines if line["speaker"] == name)


def read(folder: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return document


@pytest.mark.parametrize("path", ["/asr", "/v1/audio/transcriptions", "/inference"])
async def test_two_files_come_back_as_words_with_times_from_each_api(
    tmp_path: Path, path: str
) -> None:
    async with speech_server() as server:
        code, err = await run(
            ALICE, BOB, "--model", "large-v3", "--output_dir", tmp_path, "--output_format", "json",
            "--language", "en", WHISPER_HTTP_URL=server.url + path,
        )  # fmt: skip

    assert (code, err) == (0, "")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["alice.json", "bob.json"]
    for name in ("alice", "bob"):
        document = read(tmp_path, name)
        assert word_error_rate(said(name), document["text"]) <= 0.2
        assert document["language"] == "en"
        assert len(document["segments"]) == 2
        for segment in document["segments"]:
            assert [word["word"] for word in segment["words"]] == segment["text"].split()
            assert segment["start"] <= segment["words"][0]["start"]
            assert segment["avg_logprob"] < 0 < segment["no_speech_prob"]


async def test_files_go_side_by_side_but_no_more_than_asked(tmp_path: Path, quiet: Path) -> None:
    files = [shutil.copy(quiet, tmp_path / "in" / f"{number}.wav") for number in range(4)]
    async with speech_server(*[waits_for_company(2)] * 4) as server:
        code, err = await run(
            *files, "--parallel", "2", "--output_dir", tmp_path / "out", "-f", "json",
            WHISPER_HTTP_URL=f"{server.url}/asr",
        )  # fmt: skip

    assert (code, err) == (0, "")
    assert server.most_at_once == 2
    assert len(list((tmp_path / "out").iterdir())) == 4


async def test_each_api_is_asked_in_its_own_words(tmp_path: Path, quiet: Path) -> None:
    common = ("--output_dir", tmp_path, "--output_format", "json")
    async with speech_server() as server:
        for path in ("/asr", "/v1", "/inference"):
            await run(
                quiet, *common, "--model", "m1", "--initial_prompt", "Acme & Söhne",
                WHISPER_HTTP_URL=server.url + path, WHISPER_HTTP_VAD_FILTER="true",
                WHISPER_HTTP_TEMPERATURE="0.2",
            )  # fmt: skip
            await run(
                quiet, *common, "--task", "translate", "--language", "German", "--word_timestamps", "False",
                WHISPER_HTTP_URL=server.url + path,
            )  # fmt: skip
    asr, asr_de, openai, openai_de, cpp, cpp_de = server.asked

    assert asr.query == {
        "output": "json", "encode": "true", "task": "transcribe", "word_timestamps": "true",
        "vad_filter": "true", "initial_prompt": "Acme & Söhne",
    }  # fmt: skip
    assert asr_de.query == {
        "output": "json", "encode": "true", "task": "translate", "word_timestamps": "false",
        "language": "de",
    }  # fmt: skip
    assert openai.fields == [
        ("response_format", "verbose_json"), ("prompt", "Acme & Söhne"), ("temperature", "0.2"),
        ("model", "m1"), ("timestamp_granularities[]", "segment"), ("timestamp_granularities[]", "word"),
    ]  # fmt: skip
    assert openai_de.path == "/v1/audio/translations"
    assert openai_de.fields == [("response_format", "verbose_json"), ("model", "base")]
    assert cpp.values("language") == ["auto"]  # its server takes English for granted
    assert cpp.values("temperature") == ["0.2"]
    assert (cpp_de.values("language"), cpp_de.values("translate")) == (["de"], ["true"])
    assert {one.octets for one in server.asked} == {quiet.stat().st_size}
    assert {one.filename for one in server.asked} == {"audio.wav"}


async def test_text_without_times_is_one_segment_over_the_audio(tmp_path: Path) -> None:
    async with speech_server() as server:
        code, _ = await run(
            ALICE, "--model", "gpt-4o-transcribe", "--output_dir", tmp_path, "--output_format", "json",
            "--response_format", "json", WHISPER_HTTP_URL=f"{server.url}/v1",
        )  # fmt: skip

    (segment,) = read(tmp_path, "alice")["segments"]
    assert code == 0
    assert segment["start"] == 0.0
    assert segment["end"] == pytest.approx(13.96, abs=0.1)
    assert read(tmp_path, "alice")["model"] == "gpt-4o-transcribe"


async def test_a_servers_tuples_are_read_too_and_silence_is_an_empty_output(tmp_path: Path) -> None:
    # whisper-asr-webservice over a faster-whisper whose segments are named tuples
    words = [[0.1, 0.4, " hello", 0.9]]
    tuples = {"language": "en", "text": " hello",
              "segments": [[1, 0, 0.0, 0.5, " hello", [50364], 0.0, -0.2, 0.9, 0.01, words]]}  # fmt: skip
    silence = {"language": "en", "text": "", "segments": []}
    async with speech_server(says(200, tuples), says(200, silence)) as server:
        codes = [
            await run(
                ALICE, "--output_dir", tmp_path / name, "-f", "json", WHISPER_HTTP_URL=f"{server.url}/asr"
            )
            for name in ("tuples", "silence")
        ]  # fmt: skip

    assert [code for code, _ in codes] == [0, 0]
    (segment,) = read(tmp_path / "tuples", "alice")["segments"]
    assert segment["words"] == [{"word": "hello", "start": 0.1, "end": 0.4, "probability": 0.9}]
    assert read(tmp_path / "silence", "alice")["segments"] == []


async def test_numbers_beyond_reason_and_half_characters_are_no_reason_to_fail(
    tmp_path: Path,
) -> None:
    segments = [
        {"start": 10**400, "end": 1e300, "text": "good\ud83d morning", "avg_logprob": 10**400},
        {"start": 1, "end": 2, "text": "sir"},
    ]
    async with speech_server(says(200, {"text": "x", "segments": segments})) as server:
        code, err = await run(
            ALICE, "--output_dir", tmp_path, WHISPER_HTTP_URL=f"{server.url}/inference"
        )

    assert (code, err) == (0, "")
    first, _ = read(tmp_path, "alice")["segments"]
    assert (first["start"], first["end"], first["text"]) == (0.0, 0.0, "good? morning")
    assert (tmp_path / "alice.srt").read_text().count("-->") == 2


async def test_two_files_that_would_have_one_output_are_told_and_none_is_sent(
    tmp_path: Path, quiet: Path
) -> None:
    other = Path(shutil.copy(quiet, tmp_path / "quiet.wav"))
    async with speech_server() as server:
        code, err = await run(
            quiet, other, "--output_dir", tmp_path / "out", WHISPER_HTTP_URL=f"{server.url}/asr"
        )

    assert code == 1
    assert "another file of this run has the name quiet, too" in err
    assert server.requests == 0


PAGE = "<html><head><title>x</title></head><body><h1>Bad Gateway</h1><p>nginx</p></body></html>"


@pytest.mark.parametrize(
    ("fault", "code", "expected"),
    [
        (says(400, {"error": "failed to read audio data"}), 1, "400 Bad Request: failed to read"),
        (says(401, {"error": {"message": "Incorrect API key"}}), 127, "401 Unauthorized: Incorrect API"),
        (says(403, PAGE), 127, "403 Forbidden: Bad Gateway nginx"),
        (says(404, {"detail": "Not Found"}), 127, "404 Not Found: Not Found"),
        (says(413, PAGE), 1, "413 "),
        (says(422, {"detail": [{"loc": ["query", "task"], "msg": "bad"}]}), 1, '"msg": "bad"'),
        (says(500, PAGE), 1, "500 Internal Server Error: Bad Gateway nginx"),
        (says(200, PAGE), 1, "200, but no JSON: Bad Gateway nginx"),
        (says(200, {"error": "no 'file' field in the request"}), 1, "no result: no 'file' field"),
        (says(200, {"text": "", "error": {"message": "out of memory"}}), 1, "no result: out of memory"),
        (says(200, {"status": "ok"}), 1, "neither text nor segments"),
        (says(200, ""), 1, "no JSON: nothing at all"),
        (says(302, "", Location="/login"), 127, "302 Found"),
        (says(307, "", Location="ftp://elsewhere/"), 127, "sends us to a place that is none"),
        (cuts_its_answer, 1, "cut off after 17 of 1000 octets"),
        (never_ends, 1, "beyond any reason"),
    ],
)  # fmt: skip
async def test_what_is_no_result_is_told_once_and_never_written(
    tmp_path: Path, fault: Fault, code: int, expected: str
) -> None:
    async with speech_server(fault) as server:
        got, err = await run(
            ALICE, "--output_dir", tmp_path, "-f", "json", WHISPER_HTTP_URL=f"{server.url}/asr"
        )

    assert got == code
    assert expected in err
    assert "alice.wav: " in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert server.requests == 1  # what another try cannot change is not tried again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_what_passes_is_asked_for_again(tmp_path: Path, quiet: Path, status: int) -> None:
    faults = [
        says(status, PAGE, Retry_After="0"),
        says(status, PAGE, Retry_After=formatdate(usegmt=True)),
    ]
    async with speech_server(*faults) as server:
        code, err = await run(
            quiet, "--output_dir", tmp_path, "-f", "json", WHISPER_HTTP_URL=f"{server.url}/asr"
        )

    assert (code, err) == (0, "")
    assert server.requests == 3
    assert read(tmp_path, "quiet")["text"] == ""


@pytest.mark.parametrize(("status", "code"), [(429, 127), (503, 127), (502, 127), (504, 1)])
async def test_what_does_not_pass_is_given_up(tmp_path: Path, status: int, code: int) -> None:
    fault = says(status, {"error": "busy"}, Retry_After="0")
    async with speech_server(*[fault] * 9) as server:
        got, err = await run(
            ALICE, "--output_dir", tmp_path, "--retries", "2", WHISPER_HTTP_URL=f"{server.url}/asr"
        )

    assert got == code
    assert f"{status} " in err
    assert "busy" in err
    assert server.requests == 3


async def test_a_server_that_asks_for_an_hour_is_away_at_once(tmp_path: Path) -> None:
    async with speech_server(says(429, {"error": "quota"}, Retry_After="3600")) as server:
        code, err = await run(ALICE, "--output_dir", tmp_path, WHISPER_HTTP_URL=f"{server.url}/asr")

    assert code == 127
    assert "quota" in err
    assert server.requests == 1


async def test_a_server_that_is_not_there_makes_the_job_wait(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, but nobody listens

        refused = await run(
            ALICE, "--output_dir", tmp_path, "--retries", "1",
            WHISPER_HTTP_URL=f"http://127.0.0.1:{port}/asr",
        )  # fmt: skip
        unknown = await run(
            ALICE, "--output_dir", tmp_path, "--retries", "0",
            WHISPER_HTTP_URL="http://nowhere.invalid/asr",
        )  # fmt: skip

    assert (refused[0], unknown[0]) == (127, 127)
    assert f"http://127.0.0.1:{port}/asr: Connection refused" in refused[1]
    assert "http://nowhere.invalid:80/asr: " in unknown[1]


@pytest.mark.parametrize("fault", [hangs, drips])
async def test_its_own_deadline_ends_a_server_that_never_does(tmp_path: Path, fault: Fault) -> None:
    begun = time.monotonic()
    async with speech_server(fault) as server:
        code, err = await run(
            ALICE, "--output_dir", tmp_path, "--timeout", "1s", WHISPER_HTTP_URL=f"{server.url}/asr"
        )
        async with asyncio.timeout(30):
            await server.gone.wait()

    assert code == 1
    assert "within 1 s" in err
    assert time.monotonic() - begun < 10


async def test_the_bridges_deadline_is_its_own_where_it_has_none(tmp_path: Path) -> None:
    async with speech_server(hangs) as server:
        code, err = await run(
            ALICE, "--output_dir", tmp_path,
            WHISPER_HTTP_URL=f"{server.url}/asr", WHISPER_HTTP_TIMEOUT="", WHISPER_TIMEOUT="1s",
        )  # fmt: skip

    assert code == 1
    assert "within 1 s" in err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_killed_it_leaves_no_file_and_no_request(tmp_path: Path, how: signal.Signals) -> None:
    async with speech_server(hangs) as server:
        process = await start(
            ALICE, "--output_dir", tmp_path, WHISPER_HTTP_URL=f"{server.url}/inference"
        )
        await eventually(lambda: server.requests > 0, "the request")
        process.send_signal(how)
        async with asyncio.timeout(30):
            _, err = await process.communicate()
            await server.gone.wait()  # whisper.cpp's server stops working then

    assert process.returncode == 128 + how
    assert err == b""
    assert list(tmp_path.iterdir()) == []


async def test_the_token_goes_to_its_own_server_only_and_never_into_a_message(
    tmp_path: Path,
    quiet: Path,
) -> None:
    (tmp_path / "token").write_text("s3cret-from-file\n")
    async with speech_server() as elsewhere:
        on = says(307, "", Location=f"{elsewhere.url}/asr?output=json")
        echo = says(401, {"error": "who is s3cret?"})
        async with speech_server(on, echo) as home:
            url = f"{home.url}/asr"
            first = await run(
                quiet, "--output_dir", tmp_path, WHISPER_HTTP_URL=url, WHISPER_HTTP_TOKEN="s3cret"
            )
            second = await run(
                quiet, "--output_dir", tmp_path, WHISPER_HTTP_URL=url, WHISPER_HTTP_TOKEN="s3cret"
            )
            third = await run(
                quiet, "--output_dir", tmp_path, "--token_file", tmp_path / "token",
                WHISPER_HTTP_URL=url,
            )  # fmt: skip

    assert [first[0], second[0], third[0]] == [0, 127, 0]
    assert "Authorization" not in elsewhere.asked[0].headers
    assert home.asked[0].headers["Authorization"] == "Bearer s3cret-from-file"
    assert "s3cret" not in second[1]


async def test_a_redirect_within_the_server_keeps_the_token(tmp_path: Path, quiet: Path) -> None:
    async with speech_server(says(308, "", Location="/asr?output=json")) as server:
        code, _ = await run(
            quiet, "--output_dir", tmp_path, WHISPER_HTTP_URL=f"{server.url}/asr",
            WHISPER_HTTP_TOKEN="Basic dTpw",
        )  # fmt: skip

    assert code == 0
    assert server.asked[0].headers["Authorization"] == "Basic dTpw"


async def test_mutual_tls_and_what_it_says_when_a_side_is_not_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("localhost")
    own, own_key = authority.sign("bridge", serial=2)
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(64 << 20)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    tls.load_cert_chain(certificate, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with speech_server(tls=tls) as server:
        common = {"WHISPER_HTTP_URL": f"{server.url}/asr"}
        out = ("--output_dir", tmp_path / "out", "-f", "json")
        ca = ("--ca", authority.ca)
        good = await run(ALICE, *out, *ca, "--cert", own, "--key", own_key, **common)
        uncertified = await run(large, *out, *ca, **common)
        untrusted = await run(ALICE, *out, **common)
        keyless = await run(ALICE, *out, "--key", own_key, **common)

    assert good == (0, "")
    assert word_error_rate(said("alice"), read(tmp_path / "out", "alice")["text"]) <= 0.2
    assert uncertified[0] == 127
    assert "does it want a certificate of ours?" in uncertified[1]
    assert untrusted[0] == 127
    assert "certificate verify failed" in untrusted[1].lower().replace("_", " ")
    assert keyless[0] == 2


async def test_an_upload_is_streamed_and_an_early_no_is_heard(tmp_path: Path) -> None:
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    async with speech_server(says(413, {"detail": "too large"})) as server:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", 'ulimit -v 500000 && exec "$@"', "sh",  # KiB: less than half of the file
            PROGRAM, str(large), "--output_dir", str(tmp_path), "--url", f"{server.url}/asr",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(50):
            _, err = await process.communicate()

    assert process.returncode == 1
    assert b"413" in err
    assert b"too large" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--url", "http://h/speech"), "its path tells no API"),
        (("--url", "gpu:9000/asr"), "http://… or https://… is needed"),
        (("--url", "http://u:p@h/asr"), "credentials belong into WHISPER_HTTP_TOKEN"),
        (("--url", "http://h:port/asr"), "no port number"),
        (("--url", "http://h/asr", "--timeout", "soon"), "--timeout soon: a duration"),
        (("--url", "http://h/asr", "--parallel", "0"), "--parallel 0: a number of at least 1"),
        (("--url", "http://h/asr", "--token_file", "/nowhere"), "--token_file /nowhere"),
        (("--url", "https://h/asr", "--ca", "/nowhere"), "--ca /nowhere: No such file"),
        (("--url", "https://h/asr", "--ca", "/dev/null"), "--ca, --cert, --key: "),
    ],
)
async def test_a_wrong_option_is_exit_code_2_before_anything_is_sent(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    code, err = await run(ALICE, "--output_dir", tmp_path, *arguments)

    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "no server: say --url or WHISPER_HTTP_URL"),
        ({"URL": "foo"}, "WHISPER_HTTP_URL=foo: http://… or https://… is needed"),
        ({"URL": "http://u:p@h/asr"}, "WHISPER_HTTP_URL: credentials belong into"),
        (
            {"URL": "http://h/asr", "CONNECT_TIMEOUT": "soon"},
            "WHISPER_HTTP_CONNECT_TIMEOUT=soon: a duration",
        ),
        ({"URL": "https://h/asr", "CA": "/nowhere"}, "WHISPER_HTTP_CA=/nowhere: No such file"),
        ({"URL": "https://h/asr", "CA": "/dev/null"}, "WHISPER_HTTP_CA, WHISPER_HTTP_CERT, "),
    ],
)
async def test_a_wrong_variable_is_named_and_the_job_waits(
    tmp_path: Path, variables: dict[str, str], expected: str
) -> None:
    named = {f"WHISPER_HTTP_{name}": value for name, value in variables.items()}

    code, err = await run(ALICE, "--output_dir", tmp_path, **named)

    assert code == 126
    assert err.startswith(f"whisper-http: {expected}")
    assert err.count("\n") == 1


async def test_a_file_that_is_not_there_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    async with speech_server() as server:
        code, err = await run(
            ALICE,
            tmp_path / "none.wav",
            "--output_dir",
            tmp_path,
            WHISPER_HTTP_URL=f"{server.url}/asr",
        )

    assert code == 1
    assert "none.wav: No such file or directory" in err
    assert server.requests == 0


@pytest.mark.parametrize(
    ("url", "api", "task", "expected"),
    [
        ("http://h:9000/asr", None, "transcribe", ("http://h:9000/asr", "asr")),
        ("http://h:9000", "asr", "transcribe", ("http://h:9000/asr", "asr")),
        ("https://h/v1", None, "transcribe", ("https://h:443/v1/audio/transcriptions", "openai")),
        ("https://h/v1/", None, "translate", ("https://h:443/v1/audio/translations", "openai")),
        ("http://h/x/v1/audio/transcriptions", None, "translate",
         ("http://h:80/x/v1/audio/translations", "openai")),
        ("http://h", "openai", "transcribe", ("http://h:80/v1/audio/transcriptions", "openai")),
        ("http://[::1]:8080/inference", None, "transcribe", ("http://[::1]:8080/inference", "cpp")),
        ("http://h:8080", "cpp", "transcribe", ("http://h:8080/inference", "cpp")),
        ("http://h:8080/gate/hear", "cpp", "transcribe", ("http://h:8080/gate/hear", "cpp")),
    ],
)  # fmt: skip
def test_an_address_tells_its_api(
    url: str, api: str | None, task: str, expected: tuple[str, str]
) -> None:
    target, spoken = resolve(url, api, task)

    assert (str(target), spoken) == expected
