"""The command line and the page, as an operator meets them."""

import asyncio
import json
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from harness.bridge import command, listening, running_bridge
from harness.browser import browser
from harness.calls import SAMPLE, call, finals, tones
from harness.rabbitmq import RabbitMq
from harness.recognisers import recogniser
from harness.src import OFFER, multipart, request
from siprec_bridge.sip import Response, StreamFramer, parse

STANDIN = str(Path(sys.executable).with_name("whisper-standin"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HTTP_PORT", "80800", "HTTP_PORT=80800: "),
        ("PORTS", "sip", "PORTS=sip: "),
        ("WHISPER_TIMEOUT", "soon", "WHISPER_TIMEOUT=soon: a duration such as 90s"),
        ("STT_DEFAULT_VENDOR", "acme", "STT_DEFAULT_VENDOR=acme is not among SUPPORTED_VENDORS"),
        ("DATABASE_URL", "mysql://h/d", "DATABASE_URL=mysql: only sqlite"),
        ("NODE_ID", "a b", "NODE_ID=a b: "),
        ("AMQP_URL", "http://h", "AMQP_URL: must be amqp://"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL=loud: "),
        (
            "SIP_HOST",
            "192.0.2.1",
            "SIP_HOST=192.0.2.1: SIP cannot listen on 192.0.2.1:0: this machine",
        ),
        ("HTTP_HOST", "no.such.invalid", "HTTP_HOST=no.such.invalid: HTTP cannot listen on"),
        ("DATA_DIR", "/proc/nowhere", "DATA_DIR=/proc/nowhere: "),
    ],
)
async def test_a_wrong_setting_is_one_line_and_exit_code_2(
    tmp_path: Path, name: str, value: str, expected: str
) -> None:
    environment = {"PORTS": "0", "HTTP_PORT": "0"} | {name: value}

    code, out, err = await command("serve", data=tmp_path, **({"LOG_LEVEL": "error"} | environment))

    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


async def test_a_port_that_is_taken_stops_the_start_with_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        code, _, err = await command(
            "serve", data=tmp_path, SIP_HOST="127.0.0.1", UDP_PORTS=str(port), TCP_PORTS="none",
            HTTP_PORT="0", LOG_LEVEL="error",
        )  # fmt: skip

    assert code == 2
    assert f"SIP cannot listen on 127.0.0.1:{port}" in err
    assert "Traceback" not in err


@pytest.mark.peer
async def test_the_doctor_finds_a_healthy_house_healthy(tmp_path: Path, rabbitmq: RabbitMq) -> None:
    code, out, _ = await command(
        "doctor", data=tmp_path, SIP_HOST="127.0.0.1", PORTS="0", HTTP_PORT="0",
        WHISPER_BINARY_PATH=STANDIN, AMQP_URL=rabbitmq.url,
    )  # fmt: skip

    lines = out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "ports", "http", "rtp", "codecs", "recordings", "database", "recogniser", "broker", "clock",
    ]  # fmt: skip
    assert all(line.startswith("ok ") for line in lines), out
    assert code == 0


async def test_the_doctor_names_what_is_wrong_and_the_remedy(tmp_path: Path) -> None:
    failing = str(recogniser(tmp_path, "exits_1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        code, out, _ = await command(
            "doctor", data=tmp_path, SIP_HOST="127.0.0.1", PORTS=str(taken.getsockname()[1]),
            HTTP_PORT="0", WHISPER_BINARY_PATH=failing, AMQP_URL="amqp://127.0.0.1:1/",
            MIN_FREE_DISK="900TB", SIP_ALOWED_SOURCES="192.0.2.1",
        )  # fmt: skip

    findings = {line.split()[1]: line for line in out.splitlines()}
    assert code == 1
    assert "below MIN_FREE_DISK" in findings["recordings"]
    assert "is a bridge running already?" in findings["ports"]
    assert "perhaps SIP_ALLOWED_SOURCES is meant" in findings["settings"]
    assert "exit code 1; it wrote: out of memory on GPU 3" in findings["recogniser"]
    assert "check AMQP_URL" in findings["broker"]
    assert findings["database"].startswith("ok ")


@pytest.mark.parametrize("asked", [["sessions", "list"], ["erase", "--participant", "sip:a@b"]])
async def test_a_command_that_does_not_find_the_bridges_database_says_so_and_makes_none(
    tmp_path: Path, asked: list[str]
) -> None:
    code, out, err = await command(*asked, data=tmp_path)

    assert (code, out) == (1, "")
    assert f"there is no database {tmp_path}/siprec-bridge.db" in err
    assert list(tmp_path.iterdir()) == []


async def test_a_listener_whose_bridge_stops_says_so(tmp_path: Path) -> None:
    async with running_bridge(tmp_path) as bridge:
        listener = asyncio.create_task(command("listen", bridge.websocket, data=tmp_path))
        await bridge.wait_for_log("websocket.listener")
        await bridge.stop()
        code, out, err = await listener

    assert (code, out) == (1, f"listening to {bridge.websocket}\n")
    assert f"siprec-bridge: {bridge.websocket}: closed (1001)" in err


async def test_our_caller_reports_what_a_server_answers(tmp_path: Path) -> None:
    async with running_bridge(tmp_path / "data") as bridge:
        host, port = bridge.tcp
        code, out, err = await command(
            "call", "--to", f"sip:{host}:{port}", "--transport", "tcp", "--codec", "pcma",
            "--participants", "Ann <sip:ann@example.com>", "--rate", "50", str(SAMPLE / "alice.wav"),
            data=tmp_path,
        )  # fmt: skip
        await bridge.wait_for_log("session.archived")
        _, listed, _ = await command("sessions", "list", data=tmp_path / "data")
        session = listed.split()[0]
        _, shown, _ = await command("sessions", "show", session, data=tmp_path / "data")
        _, incomplete, _ = await command(
            "sessions", "list", "--assurance", "incomplete", data=tmp_path / "data"
        )
        verified = await command("recordings", "verify", session, data=tmp_path / "data")
        wav = tmp_path / "data" / "recordings" / session / f"{session}-0.wav"
        wav.write_bytes(wav.read_bytes()[:-1] + b"x")
        wav.with_name(f"{session}-stereo.wav").unlink()
        changed = await command("recordings", "verify", data=tmp_path / "data")

    assert (code, err) == (0, "")
    assert f"{session}  finished" in listed
    assert "recorded  complete" in shown
    assert incomplete == "no sessions\n"
    assert (verified[0], verified[1].split(",")[0]) == (0, "1 sessions")
    assert "2 files" in verified[1]
    assert changed[0] == 1
    assert f"{session}-0.wav: its content was changed" in changed[1]
    assert f"{session}-stereo.wav: No such file or directory" in changed[1]
    assert "200 OK from siprec-bridge/" in out
    assert "PCMA recvonly, label 1, 698 packets sent" in out
    assert "BYE 200" in out
    assert "Ann" in listed
    assert "Call-ID" in shown


async def test_the_ladder_shows_what_was_said_on_the_wire_without_its_secrets(
    tmp_path: Path,
) -> None:
    secret = b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:c2VjcmV0c2VjcmV0"
    body = multipart(sdp=OFFER + "a=x:1\r\n" + secret.decode() + "\r\n")
    data = tmp_path / "data"
    async with running_bridge(data) as bridge:
        reader, writer = await asyncio.open_connection(*bridge.tcp)
        writer.write(request("INVITE", body=body, transport="TCP"))
        answer = await read_final(reader)
        for method, number in (("ACK", 1), ("BYE", 2)):
            branch, tag = f"z9hG4bK{method}", answer.to.tag
            writer.write(request(method, number=number, branch=branch, to_tag=tag, transport="TCP"))
        await read_final(reader)
        writer.close()
        await bridge.wait_for_log("session.archived")
        (session,) = [str(one["session_id"]) for one in bridge.logged("session.archived")]
    _, lines, _ = await command("sessions", "show", session, "--ladder", data=data)
    _, whole, _ = await command("sessions", "show", session, "--ladder", "--verbose", data=data)

    shown = [line.split(maxsplit=2)[2] for line in lines.splitlines()]
    assert shown == [
        "--> INVITE sip:srs@192.0.2.1",
        "<-- SIP/2.0 100 Trying",
        "<-- SIP/2.0 200 OK",
        "--> ACK sip:srs@192.0.2.1",
        "--> BYE sip:srs@192.0.2.1",
        "<-- SIP/2.0 200 OK",
    ]
    assert "inline:***" in whole
    assert "c2VjcmV0" not in whole


async def read_final(reader: asyncio.StreamReader) -> Response:
    """The next final response on a connection."""
    framer = StreamFramer()
    async with asyncio.timeout(10):
        while True:
            for data in framer.feed(await reader.read(1)):
                assert isinstance(data, bytes)
                message = parse(data)
                assert isinstance(message, Response)
                if message.status >= 200:
                    return message


async def test_a_call_that_nobody_answers_says_so(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    code, _, err = await command("call", f"sip:127.0.0.1:{port};transport=tcp", data=tmp_path)

    assert code == 1
    assert (
        err == f"siprec-bridge: tcp 127.0.0.1:{port}: Connect call failed ('127.0.0.1', {port})\n"
    )


async def test_help_names_every_command(tmp_path: Path) -> None:
    _, out, _ = await command("--help", data=tmp_path)

    for name in ("serve", "call", "listen", "doctor", "jobs", "sessions", "recordings"):
        assert name in out


async def test_the_api_pages_and_refuses_in_json(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=speaks, RECORDING_FORMAT="opus"
        ) as bridge,
        listening(bridge) as events,
    ):
        for _ in range(3):
            await call(bridge, legs=tones(0.1))
        await finals(bridge, events, 3)
        _, first = await bridge.get("/api/sessions?limit=2")
        _, second = await bridge.get(f"/api/sessions?limit=2&before={json.loads(first)['next']}")
        session = json.loads(first)["sessions"][0]["id"]
        status, text = await bridge.get(f"/api/sessions/{session}/transcript?format=text")
        _, detail = await bridge.get(f"/api/sessions/{session}")
        name = json.loads(detail)["audio"]["legs"][0]["file"]
        audio = f"{bridge.http}/api/sessions/{session}/audio/{name}"
        audio_status, _ = await get_bytes(audio)
        async with aiohttp.ClientSession() as http:
            seek = await http.get(audio, headers={"Range": "bytes=0-3"})
            part = (seek.status, seek.content_type, await seek.read())
        _, unjudged = await bridge.get("/api/sessions?assurance=nothing")
        _, judged = await bridge.get("/api/sessions?assurance=complete")
        _, found = await bridge.get("/api/search?q=HELLO&participant=alice&from=2026-01-01&limit=2")
        _, missed = await bridge.get("/api/search?q=goodbye")
        searched = await command("search", "hello", "there", data=tmp_path / "data")
        in_vain = await command("search", "--participant", "carol", data=tmp_path / "data")
        refused = [
            await bridge.get(path)
            for path in (
                "/api/sessions/none", "/api/sessions?limit=0", "/api/sessions?before=x",
                "/api/jobs?state=odd", "/api/sessions?assurance=odd", f"/api/sessions/{session}/audio/..%2f..%2fsiprec-bridge.db",
                "/nothing", "/api/search?q=a&from=soon", "/api/sessions?asurance=nothing", "/api/search?who=a",
                "/api/jobs?states=failed", f"/api/sessions/{session}/transcript?format=pdf",
            )
        ]  # fmt: skip

    pages = [one["id"] for page in (first, second) for one in json.loads(page)["sessions"]]
    assert len(set(pages)) == len(pages) == 3
    assert status == 200
    assert sorted(text.splitlines()) == ["Alice: hello there", "Bob: hello there"]
    assert audio_status == 200
    assert part == (206, "audio/ogg", b"OggS")
    assert json.loads(detail)["assurance"]["verdict"] == "complete"
    assert json.loads(detail)["document"]["assurance"] == json.loads(detail)["assurance"]
    assert (len(json.loads(judged)["sessions"]), json.loads(unjudged)["sessions"]) == (3, [])
    hits = [hit for one in json.loads(found)["sessions"] for hit in one["hits"]]
    assert [one["id"] for one in json.loads(found)["sessions"]] == pages[:2]
    assert [(one["text"], one["marks"]) for one in hits] == [("hello there", [[0, 5]])] * 4
    assert json.loads(missed) == {"sessions": [], "next": None}
    assert searched[1].count("Alice: hello there") == 3
    assert in_vain[:2] == (0, "nothing found\n")
    assert [status for status, _ in refused] == [404, 400, 400, 400, 400, 404, 404, *[400] * 5]
    assert all("error" in json.loads(body) for _, body in refused)


async def get_bytes(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return answer.status, await answer.read()


@pytest.mark.peer
async def test_the_page_shows_the_call_and_finds_what_was_said_in_it(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
        browser(tmp_path / "profile") as page,
    ):
        await call(bridge, legs=tones(0.1))
        await finals(bridge, events)
        await page.open(bridge.http + "/")
        await page.until("document.getElementById('ready').className === 'good'")
        await page.until("document.querySelectorAll('#sessions td').length === 5")
        row = await page.run(
            "[...document.querySelectorAll('#sessions td')].slice(1).map(one => one.innerText)"
        )
        ready = await page.run("document.getElementById('ready').innerText")

        async def find(words: str, who: str, condition: str) -> str:
            """Type, press the button, and say what is shown then."""
            await page.run(
                f"[words.value, who.value] = {json.dumps([words, who])}, "
                "document.querySelector('#search button').click()"
            )
            await page.until(condition)
            return str(await page.run("found.innerText"))

        by_word = await find("hel*", "", "found.querySelector('mark')")
        marked = await page.run("[...found.querySelectorAll('mark')].map(one => one.innerText)")
        by_both = await find(
            '"hello there"', "bob", "[...found.querySelectorAll('mark')].some(one => one.innerText.includes('there'))"
        )  # fmt: skip
        await page.run("found.querySelector('button').click()")
        await page.until("talk.innerText.includes('hello there') && audio.src")
        title = await page.run("title.innerText")
        nothing = await find("hello", "dave", "found.innerText.includes('Nothing')")
        cleared = await find("", "", "!found.innerText")

    assert row[0] == "Alice, Bob"
    assert row[2:] == ["finished", "complete"]
    assert ready == "ready"
    assert "Alice, Bob" in by_word
    assert set(marked) == {"hello"}
    assert "Bob: hello there" in by_both
    assert title == "Alice and Bob"
    assert (nothing, cleared) == ("Nothing found.", "")
