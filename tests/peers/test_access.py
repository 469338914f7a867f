"""A bridge that asks for tokens, over TLS, as a browser, programs and a stranger meet it."""

import asyncio
import json
import re
import ssl
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from harness.bridge import Bridge, command, eventually, running_bridge
from harness.browser import browser
from harness.calls import call, tones
from harness.certificates import Authority
from harness.recognisers import recogniser
from harness.tokens import Given, given

ALL = given("desk", "read,listen,operate,metrics")
NOBODY = given("nobody", "read,listen", "participant=sip:*@nowhere.example.com")


@pytest.mark.peer
async def test_the_page_asks_for_a_token_and_keeps_a_login(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    lines = "\n".join(one.line for one in (ALL, NOBODY))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks, HTTP_TOKENS=lines) as bridge,
        browser(tmp_path / "profile") as page,
    ):
        await call(bridge, legs=tones(0.2))
        await page.open(bridge.http + "/")
        await page.until(
            "document.getElementById('login') && !document.getElementById('login').hidden"
        )
        log_in = (
            "document.getElementById('token').value = {token!r};"
            "document.querySelector('#login button').click()"
        )
        await page.run(log_in.format(token="wrong"))
        await page.until("document.getElementById('refusal').textContent === 'the token is wrong'")

        await page.run(log_in.format(token=ALL.secret))
        await page.until("document.body.innerText.includes('Alice, Bob')")
        await page.until("socket && socket.readyState === 1")
        await call(bridge, legs=tones(0.2))  # the page hears of it by its socket
        await page.until("document.querySelectorAll('#sessions tr').length === 2")
        await page.until("[...document.querySelectorAll('#sessions td')].filter("
                         "one => one.textContent === 'finished').length === 2")  # fmt: skip
        await page.run("document.querySelector('#sessions tr').click()")
        await page.until("document.getElementById('talk').innerText.includes('hello there')")
        await page.run("document.getElementById('audio').preload = 'auto'")
        await page.until("document.getElementById('audio').duration > 0")
        readable = await page.run("document.cookie")
        await page.open(bridge.http + "/")  # and still, after it is loaded anew
        await page.until("document.body.innerText.includes('Alice, Bob')")

        await page.run("document.getElementById('logout').click()")
        await page.until("!document.getElementById('login').hidden")
        asked = await page.run("fetch('/api/sessions').then(answer => answer.status)")
        await page.run(log_in.format(token=NOBODY.secret))
        await page.until("document.body.innerText.includes('No calls yet.')")

    assert readable == ""
    assert asked == 401
    assert secrets_in(bridge, ALL, NOBODY) == []


def secrets_in(bridge: Bridge, *tokens: Given) -> list[str]:
    """What of these tokens, or of anything else that the bridge gave out, stands in the log."""
    text = bridge.log_file.read_text()
    found = [
        one for one in tokens for part in (one.secret, one.line.split()[1][7:]) if part in text
    ]
    return [one.line for one in found] + re.findall(r"siprec_[A-Za-z0-9_-]{43}", text)


@pytest.mark.peer
async def test_over_tls_programs_and_our_own_listener_come_with_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("localhost")
    speaks = str(recogniser(tmp_path, "speaks"))
    trusting = ssl.create_default_context(cafile=authority.ca)
    async with (
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=speaks, HTTP_TOKENS=ALL.line,
            HTTP_TLS_CERT_PATH=str(certificate), HTTP_TLS_KEY_PATH=str(key), LOG_LEVEL="debug",
        ) as bridge,
        aiohttp.ClientSession(headers=ALL.headers) as http,
    ):  # fmt: skip
        address = str(bridge.ready["http"])
        hears = asyncio.create_task(
            command(
                "listen", f"wss://{address}/ws/transcripts", "--once", "--ca", str(authority.ca),
                data=tmp_path, SIPREC_TOKEN=ALL.secret,
            )
        )  # fmt: skip
        await bridge.wait_for_log("websocket.listener")
        await call(bridge, legs=tones(0.2))
        code, heard, _ = await hears
        async with http.get(f"https://{address}/api/sessions", ssl=trusting) as answer:
            (session,) = (await answer.json())["sessions"]
        path = f"https://{address}/api/sessions/{session['id']}"
        async with http.get(path, ssl=trusting) as answer:
            stereo = (await answer.json())["audio"]["stereo"]
        async with http.get(f"{path}/audio/{stereo}", ssl=trusting) as answer:
            audio = await answer.read()
        async with http.post(
            f"https://{address}/api/login", json={"token": ALL.secret}, ssl=trusting
        ) as answer:
            cookie = answer.headers["Set-Cookie"]
        async with http.post(f"https://{address}/api/tickets", json={}, ssl=trusting) as answer:
            ticket = (await answer.json())["ticket"]
        url = f"wss://{address}/ws/transcripts?since=0&ticket={ticket}"
        async with connect(url, ssl=trusting, proxy=None) as socket:
            ready = json.loads(await socket.recv())
        refused = await command(
            "listen", f"wss://{address}/ws/transcripts", "--ca", str(authority.ca), data=tmp_path
        )
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"http://{address}/health/live")

    assert (code, "transcript complete: 2 utterances" in heard) == (0, True)
    assert audio[:4] == b"RIFF"
    assert "Secure" in cookie
    assert ready["type"] == "listener.ready"
    assert (refused[0], "401 a token is needed" in refused[2]) == (1, True)
    text = bridge.log_file.read_text()
    assert "Authorization: ***" in text or "Bearer ***" in text  # it is debug, and masked
    assert secrets_in(bridge, ALL) == []
    assert ticket not in text
    assert cookie.partition("=")[2].partition(";")[0] not in text


async def test_tokens_are_added_and_taken_away_while_the_bridge_runs(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# ours\n{ALL.line}\n")
    other = given("other", "read")
    async with running_bridge(tmp_path / "data", HTTP_TOKENS_FILE=str(file)) as bridge:
        socket = await connect(bridge.websocket, additional_headers=ALL.headers, proxy=None)
        await socket.recv()
        file.write_text("other sha256:oops read")
        broken = await bridge.wait_for_log("access.not_reloaded")
        file.write_text(other.line)
        await bridge.wait_for_log("access.reloaded")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        async with aiohttp.ClientSession() as http:
            statuses = []
            for one in (ALL, other):
                async with http.get(bridge.http + "/api/jobs", headers=one.headers) as answer:
                    statuses.append(answer.status)
            await eventually(lambda: bool(bridge.logged("access.wrong_token")), "a line", bridge)

    assert "other: sha256: and 64 hexadecimal digits" in str(broken["cause"])
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert statuses == [401, 200]
    assert secrets_in(bridge, ALL, other) == []


async def test_an_empty_file_of_tokens_does_not_open_the_bridge(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("\n")

    code, _, err = await command(
        "serve", data=tmp_path, HTTP_TOKENS_FILE=str(file), PORTS="0", HTTP_PORT="0"
    )

    assert code == 2
    assert f"HTTP_TOKENS_FILE={file}: is empty" in err


async def test_a_bridge_that_is_open_to_a_network_says_so(tmp_path: Path) -> None:
    async with running_bridge(tmp_path / "data", HTTP_HOST="0.0.0.0") as bridge:
        (warning,) = bridge.logged("http.open")
    _, examined, _ = await command(
        "doctor", data=tmp_path, HTTP_HOST="0.0.0.0", HTTP_PORT="0", PORTS="0",
        SIP_HOST="127.0.0.1", WHISPER_ENABLED="false",
    )  # fmt: skip

    assert warning["level"] == "warning"
    assert "0.0.0.0:0 takes no token: whoever reaches it hears" in examined


async def test_a_new_token_works_with_the_line_that_is_printed_for_it(tmp_path: Path) -> None:
    code, out, _ = await command(
        "token", "new", "sales", "--scope", "read", "--scope", "listen",
        "--participant", "sip:*@sales.example.com", data=tmp_path,
    )  # fmt: skip
    _, secret, _, line = (one.strip() for one in out.splitlines())
    wrong = await command("token", "new", "sales", "--scope", "write", data=tmp_path)

    async with (
        running_bridge(tmp_path / "data", HTTP_TOKENS=line) as bridge,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {secret}"}) as http,
        http.get(bridge.http + "/api/login") as answer,
    ):
        who = await answer.json()

    assert (code, wrong[0]) == (0, 2)
    assert "write is no scope; there are: read, listen, operate, erase, metrics" in wrong[2]
    assert who == {
        "client": "sales", "scopes": ["listen", "read"], "restricted": True, "open": False,
    }  # fmt: skip
