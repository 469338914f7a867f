"""A real bridge in a process of its own, on free loopback ports, with a data folder of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from websockets.asyncio.client import connect

from harness.ports import rtp_ports

PATIENCE_S = 30.0

Event = dict[str, Any]
Events = list[Event]


@dataclass
class Bridge:
    """The running process, where it listens, and what it logged."""

    process: asyncio.subprocess.Process
    log_file: Path
    data: Path
    ready: Mapping[str, object] = field(default_factory=dict)

    @property
    def udp(self) -> tuple[str, int]:
        """Address of the first SIP/UDP listener."""
        return _address(self._listed("sip_udp"))

    @property
    def tcp(self) -> tuple[str, int]:
        """Address of the first SIP/TCP listener."""
        return _address(self._listed("sip_tcp"))

    @property
    def http(self) -> str:
        """`http://host:port` of the API."""
        return f"http://{self.ready['http']}"

    @property
    def websocket(self) -> str:
        """URL of the transcript socket."""
        return f"ws://{self.ready['http']}/ws/transcripts"

    def _listed(self, name: str) -> str:
        addresses = self.ready[name]
        assert isinstance(addresses, list)
        return str(addresses[0])

    def log(self) -> list[dict[str, object]]:
        """Every JSON line logged so far; the last one may be on its way."""
        lines = self.log_file.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, event: str) -> list[dict[str, object]]:
        """The lines whose event is (or holds) this text."""
        return [line for line in self.log() if event in str(line.get("event"))]

    async def wait_for_log(self, event: str, count: int = 1) -> dict[str, object]:
        """The `count`-th line with this event, as soon as it is there."""
        await eventually(lambda: len(self.logged(event)) >= count, f"log line {event!r}", self)
        return self.logged(event)[count - 1]

    async def wait_for_metric(self, line: str) -> str:
        """The metrics as soon as this line is among them: some are noted after what they tell of."""
        async with asyncio.timeout(PATIENCE_S):
            while line not in (text := (await self.get("/metrics"))[1]).splitlines():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return text

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        async with aiohttp.ClientSession() as http, http.get(self.http + path) as answer:
            return answer.status, await answer.text()

    async def post(self, path: str, body: object) -> tuple[int, str]:
        """Status and body of the answer to a POST of this as JSON."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.http + path, json=body) as answer,
        ):
            return answer.status, await answer.text()

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


_started: list[asyncio.subprocess.Process] = []


@contextmanager
def none_left() -> Iterator[None]:
    """End the bridges that were started within, whatever has gone wrong there."""
    before = len(_started)
    try:
        yield
    finally:
        for process in _started[before:]:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        del _started[before:]


async def start_bridge(data: Path, **environment: str) -> Bridge:
    """Start `siprec-bridge serve` on a data folder and wait until it says that it is ready."""
    data.mkdir(parents=True, exist_ok=True)
    log_file = data / f"bridge-{len(list(data.glob('bridge-*.log')))}.log"
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WHISPER_", "AMQP_", "HTTP_PORT", "SIP_", "PORTS", "DATA_DIR"))
    }
    settings = {
        "DATA_DIR": str(data),
        "SIP_HOST": "127.0.0.1",
        "PORTS": "0",
        "HTTP_PORT": "0",
        "RTP_PORT_MIN": str(rtp_ports()[0]),
        "RTP_PORT_MAX": str(rtp_ports()[1]),
        "LOG_FORMAT": "json",
        "TMPDIR": str(data / "tmp"),
        "MIN_FREE_DISK": "0",
        "MEDIA_WORKERS": "1",  # each more costs half a second of CPU
        "VAD": "false",  # most tests speak in tones
    }
    (data / "tmp").mkdir(exist_ok=True)
    with log_file.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "siprec_bridge", "serve",
            env=clean | settings | environment, stdout=sink, stderr=sink, cwd=data,
        )  # fmt: skip
    _started.append(process)
    bridge = Bridge(process, log_file, data)
    ready = await bridge.wait_for_log("bridge.ready")
    bridge.ready = ready
    return bridge


@asynccontextmanager
async def running_bridge(data: Path, **environment: str) -> AsyncIterator[Bridge]:
    """A bridge for one test; killed at the end when the test has not stopped it."""
    bridge = await start_bridge(data, **environment)
    try:
        yield bridge
    finally:
        if bridge.process.returncode is None:
            await bridge.stop()
        # Whatever a test is about: our own mistakes show as tracebacks in the log.
        assert "Traceback" not in bridge.log_file.read_text(), bridge.log_file.read_text()


@asynccontextmanager
async def listening(bridge: Bridge, query: str = "") -> AsyncIterator[Events]:
    """A real WebSocket listener; the list grows as events arrive."""
    received: Events = []
    async with connect(bridge.websocket + query) as socket:
        hello = json.loads(await socket.recv())
        assert hello["type"] == "listener.ready", hello

        async def read() -> None:
            async for frame in socket:
                received.append(json.loads(frame))

        reader = asyncio.create_task(read())
        try:
            yield received
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def command(*arguments: str, data: Path, **environment: str) -> tuple[int, str, str]:
    """Run a `siprec-bridge` command on a data folder; returns exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("siprec-bridge")), *arguments,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(data), "MIN_FREE_DISK": "0"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=data,
    )  # fmt: skip
    async with asyncio.timeout(2 * PATIENCE_S):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def eventually(
    condition: Callable[[], bool],
    what: str,
    bridge: Bridge | None = None,
    patience: float = PATIENCE_S,
) -> None:
    """Wait until the condition holds; fail with the end of the bridge's log when it does not."""
    try:
        async with asyncio.timeout(patience):
            while not condition():
                dead = bridge is not None and bridge.process.returncode is not None
                assert not dead, f"the bridge ended while waiting for {what}{_tail(bridge)}"
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"no {what} within {patience} s{_tail(bridge)}") from None


def of_type(events: Events, kind: str) -> Events:
    """The events of one type."""
    return [event for event in events if event.get("type") == kind]


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _tail(bridge: Bridge | None) -> str:
    return (
        "" if bridge is None else "\n" + "\n".join(bridge.log_file.read_text().splitlines()[-25:])
    )
