"""Messages made to break parsers, sent to a bridge that is recording a call at that time."""

import asyncio
import os
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bridge import Bridge, eventually, running_bridge
from harness.calls import call
from harness.recognisers import recogniser
from harness.rtp import loudest_frequency, read_wav, tone
from siprec_bridge.caller import CallReport, Leg
from siprec_bridge.sip import Headers, MalformedMessage, Request, Response, parse, serialize

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("SIPREC_SHARED", ROOT.parent / "shared"))
FOLDERS = (
    ROOT / "fuzz" / "seeds" / "sip",
    ROOT / "fuzz" / "seeds" / "sdp",
    SHARED / "torture" / "rfc4475",
    SHARED / "torture" / "rfc5118",
)
MUTATED = 2400
SECONDS = 12.0
TOKENS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"\xff\xfe", b'"', b"\\", b"<", b">", b";", b",",
    b"%00", b"1" * 5000, b" " * 2000, b";maddr=" + b"a" * 70, b";maddr=localhost:x",
    b"\r\nVia: ,", b"\r\nl: 99999", b"\r\nX-UCID: \xfc", b"<a>" * 2000, b"a=label:\xfc\r\n",
)  # fmt: skip


def originals() -> list[bytes]:
    files = [one for folder in FOLDERS if folder.is_dir() for one in sorted(folder.iterdir())]
    return [one.read_bytes() for one in files if one.suffix in (".sip", ".dat", ".sdp")]


def mutated(messages: list[bytes], count: int) -> Iterator[bytes]:
    """The same ones every time, each with one to four changes."""
    luck = random.Random(4475)
    for _ in range(count):
        data = bytearray(luck.choice(messages))
        for _ in range(luck.randint(1, 4)):
            start = luck.randrange(len(data) + 1)
            end = min(len(data), start + luck.choice((0, 1, 8, 100)))
            other = luck.choice(messages)
            cut = luck.randrange(len(other) + 1)
            data[start:end] = luck.choice(
                (
                    b"",
                    bytes(data[start:end]) * 3,
                    luck.randbytes(4),
                    luck.choice(TOKENS),
                    other[cut : cut + luck.choice((20, 400))],
                )
            )
        yield bytes(data[:60_000])


def made_unique(data: bytes, number: int) -> bytes:
    """As a message of its own: otherwise it is a repetition of the last one like it."""
    data = data.replace(b"z9hG4bK", b"z9hG4bK%d" % number)
    return re.sub(rb"(?im)^((?:call-id|i)[ \t]*:[ \t]*)", rb"\g<1>n%d" % number, data)


def hang_up(answer: bytes) -> list[bytes]:
    """ACK and BYE for a 2xx to an INVITE."""
    try:
        response = parse(answer)
    except MalformedMessage:
        return []
    if not isinstance(response, Response) or not 200 <= response.status < 300:
        return []
    if response.cseq.method != "INVITE":
        return []
    messages = []
    for method, number in (("ACK", response.cseq.number), ("BYE", response.cseq.number + 1)):
        via = f"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK{method}{response.call_id};rport"
        headers = Headers([("Via", via)])
        for name in ("From", "To", "Call-ID"):
            headers.add(name, response.headers.get(name) or "")
        headers.add("CSeq", f"{number} {method}")
        messages.append(serialize(Request(method, "sip:srs@127.0.0.1", headers)))
    return messages


class Tormentor(asyncio.DatagramProtocol):
    """Sends over UDP, and hangs up the calls that come of it."""

    def __init__(self) -> None:
        self.answers = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.answers += 1
        for message in hang_up(data):
            self.transport.sendto(message)

    def send(self, data: bytes, number: int) -> None:
        start, end, rest = data.partition(b"\n")
        if data.lstrip().upper().startswith(b"INVITE"):
            # As if through a proxy: our Via brings the answer here, so that the call can be ended.
            via = b"Via: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKp%d;rport\r\n" % number
            data = start + end + via + rest
        self.transport.sendto(data[:65_000])


async def send_over_tcp(address: tuple[str, int], data: bytes) -> int:
    """On a connection of its own, for what comes back; returns the number of answers."""
    reader, writer = await asyncio.open_connection(*address)
    answers = 0
    try:
        writer.write(data)
        async with asyncio.timeout(0.5):
            while head := await reader.readuntil(b"\r\n\r\n"):
                answers += 1
                found = re.search(rb"Content-Length: (\d+)", head)
                body = await reader.readexactly(int(found[1]) if found else 0)
                writer.writelines(hang_up(head + body))
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        pass
    finally:
        writer.close()
    return answers


async def torment(
    bridge: Bridge, messages: list[bytes], talking: asyncio.Task[CallReport]
) -> tuple[int, int, int]:
    """Two of three over UDP; returns how many answers came over UDP and TCP.

    And how many messages were sent during the call: all of them, unless the machine is busy.
    """
    meanwhile = 0
    loop = asyncio.get_running_loop()
    _, tormentor = await loop.create_datagram_endpoint(
        Tormentor, remote_addr=bridge.udp, family=socket.AF_INET
    )
    few = asyncio.Semaphore(40)

    async def by_tcp(data: bytes) -> int:
        async with few:
            return await send_over_tcp(bridge.tcp, data)

    async with asyncio.TaskGroup() as connections:
        tasks = []
        for number, data in enumerate(messages):
            meanwhile += not talking.done()
            unique = made_unique(data, number)
            if number % 3:
                tormentor.send(unique, number)
            else:
                tasks.append(connections.create_task(by_tcp(unique)))
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.5)
    tormentor.transport.close()
    return tormentor.answers, sum(one.result() for one in tasks), meanwhile


def descriptors(bridge: Bridge) -> int:
    return len(os.listdir(f"/proc/{bridge.process.pid}/fd"))


def resident_mib(bridge: Bridge) -> float:
    text = Path(f"/proc/{bridge.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.timeout(120)
async def test_torture_does_no_harm_to_a_call_that_is_being_recorded(tmp_path: Path) -> None:
    messages = originals()
    messages += mutated(messages, MUTATED)
    legs = (
        Leg("Alice", "sip:alice@example.com", tone(440, SECONDS)),
        Leg("Bob", "sip:bob@example.com", tone(1000, SECONDS)),
    )
    binary = str(recogniser(tmp_path, "is_silent"))
    async with running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=binary) as bridge:
        await call(bridge, legs=(legs[0],), rate=20.0)  # what grows with the first call has grown
        await bridge.wait_for_log("session.archived")
        files, memory = descriptors(bridge), resident_mib(bridge)

        talking = asyncio.create_task(call(bridge, legs=legs, rate=1.0))
        await bridge.wait_for_log("session.started", 2)
        by_udp, by_tcp, meanwhile = await torment(bridge, messages, talking)
        report = await talking

        def active() -> bool:
            return len(bridge.logged("session.started")) > len(bridge.logged("session.archived"))

        await eventually(lambda: not active(), "the end of all calls", bridge, 60)
        # Some more are the database's readers, opened when they are first wanted.
        await eventually(lambda: descriptors(bridge) <= files + 10, "closed descriptors", bridge)
        _, metrics = await bridge.get("/metrics")
        grown = resident_mib(bridge) - memory
        code = await bridge.stop()

    assert code == 0
    assert meanwhile > len(messages) / 10
    assert by_udp > len(messages) / 10
    assert by_tcp > len(messages) / 20
    assert "siprec_sessions_active 0.0" in metrics
    assert grown < 100  # transactions of the last half minute are still remembered
    assert [line for line in bridge.log() if line["level"] in ("error", "critical")] == []
    (ended,) = [
        line for line in bridge.logged("session.ended") if line["sip_call_id"] == report.call_id
    ]
    assert (ended["packets"], ended["lost"]) == (sum(report.packets), 0)
    assert report.packets == (int(SECONDS * 50),) * 2
    folder = tmp_path / "data" / "recordings" / str(ended["session_id"])
    for index, frequency in ((0, 440), (1, 1000)):
        rate, pcm = read_wav(folder / f"{ended['session_id']}-{index}.wav")
        assert len(pcm) / rate == pytest.approx(SECONDS, abs=0.02)
        assert loudest_frequency(pcm, rate) == pytest.approx(frequency, abs=5)
