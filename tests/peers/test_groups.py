"""A telephone's built-in bridge: two INVITEs for one call, one with each party's voice."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from harness.bridge import Bridge, command, eventually, listening, of_type, running_bridge
from harness.browser import browser
from harness.calls import finals
from harness.recognisers import recogniser
from harness.rtp import packets, send, tone
from harness.src import OFFER, request

ONE_LINE = OFFER[: OFFER.index("m=audio 30002")].replace("192.0.2.10", "127.0.0.1")
GROUP = "cisco-berlin-4711"


class Phone:
    """A phone that forks one party's voice."""

    def __init__(self, bridge: Bridge, leg: str, wire: socket.socket) -> None:
        self._bridge, self._leg, self._wire = bridge, leg, wire
        self._tag = ""

    def _say(self, method: str, number: int, body: str = "") -> None:
        params = f"x-{self._leg};x-refci=4711;x-nearendclusterid=berlin;x-nearendaddr=200"
        data = request(
            method, number=number, call_id=self._leg, branch=f"z9hG4bK{method}{self._leg}",
            to_tag=self._tag, body=body.encode(), content_type="application/sdp",
        )  # fmt: skip
        name = f'From: "Ada" <sip:200@192.0.2.10;{params};x-farendaddr=0301234>'.encode()
        data = data.replace(b"From: <sip:src@192.0.2.10>", name).replace(b";+sip.src", b"")
        self._wire.sendto(data, self._bridge.udp)

    async def _answer(self) -> str:
        async with asyncio.timeout(10):
            while True:
                data = await asyncio.get_running_loop().sock_recv(self._wire, 65536)
                if data.startswith(b"SIP/2.0 2"):
                    return data.decode()

    async def call(self) -> int:
        """Be answered; returns the port for the voice."""
        self._say("INVITE", 1, ONE_LINE)
        answer = await self._answer()
        self._tag = re.findall(r"^To:.*;tag=(\S+)", answer, re.M)[0]
        self._say("ACK", 1)
        return int(re.findall(r"^m=audio (\d+)", answer, re.M)[0])

    async def hang_up(self) -> None:
        self._say("BYE", 2)
        await self._answer()


@asynccontextmanager
async def phone(bridge: Bridge, leg: str) -> AsyncIterator[Phone]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", 0))
        wire.setblocking(False)
        yield Phone(bridge, leg, wire)


@pytest.mark.peer
async def test_both_ends_of_a_call_are_one_conversation_once_both_are_written_down(
    tmp_path: Path,
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    data = tmp_path / "data"
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
        phone(bridge, "nearend") as near,
        phone(bridge, "farend") as far,
        browser(tmp_path / "profile") as page,
    ):
        ports = [await near.call(), await far.call()]
        for port in ports:
            send(packets(tone(440, 1.0)), port)
        await near.hang_up()
        (first,) = await finals(bridge, events)
        early = of_type(events, "group.transcribed")
        await far.hang_up()
        _, second = await finals(bridge, events, 2)
        await eventually(lambda: bool(of_type(events, "group.transcribed")), "the group", bridge)
        status, text = await bridge.get(f"/api/groups/{quote(GROUP)}/transcript?format=text")
        code, shown, _ = await command("sessions", "group", GROUP, data=data)
        await page.open(bridge.http + "/")
        await page.until("document.querySelectorAll('#sessions tr[tabindex]').length === 2")
        await page.run("document.querySelector('#sessions tr').click()")
        await page.until("document.querySelectorAll('#talk p').length === 1")
        await page.until("document.querySelectorAll('#group button').length === 3")
        await page.run("document.querySelector('#group button:last-child').click()")
        await page.until("document.querySelectorAll('#talk p').length === 2")
        linked = await page.run("location.hash.slice(1)")
        await page.run("rows = 1; sessions()")
        await page.until("document.querySelectorAll('#sessions tr').length === 1 && !older.hidden")
        await page.run("older.click()")
        await page.until("document.querySelectorAll('#sessions tr').length === 2 && older.hidden")
        await page.open(f"{bridge.http}/?again#{first['subject']}")
        await page.until("document.querySelectorAll('#talk p').length === 1")
        opened = await page.run("facts.innerText")
        await page.run("document.getElementById('close').click()")
        closed = await page.run("one.hidden && !location.hash")

    assert linked == second["subject"]
    assert f"session {first['subject']}" in opened
    assert closed
    assert early == []
    (told,) = of_type(events, "group.transcribed")
    assert told["subject"] == second["subject"]
    assert told["data"]["group_id"] == GROUP
    assert [one["session_id"] for one in told["data"]["sessions"]] == [
        first["subject"], second["subject"],
    ]  # fmt: skip
    assert (status, text) == (200, "Ada: hello there\nsip:0301234@192.0.2.10: hello there\n")
    assert code == 0
    said = [line.split(maxsplit=1)[1] for line in shown.splitlines() if line.startswith("  ")]
    assert said == ["Ada: hello there", "sip:0301234@192.0.2.10: hello there"]
