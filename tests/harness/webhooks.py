"""Endpoints of webhooks: one in the test's hand, and the example receiver as its own process."""

import asyncio
import contextlib
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

RECEIVER = Path(__file__).parents[2] / "config" / "webhooks" / "receiver.py"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_bm90IGEgc2VjcmV0IGJ1dCBhbiBleGFtcGxlIDEyMw=="


@dataclass
class Posted:
    """A request that came in, and when (the loop's clock)."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        """The idempotency key."""
        return self.headers["webhook-id"]


async def taken(_: Posted) -> web.Response:
    """204."""
    return web.Response(status=204)


@dataclass
class Endpoint:
    """A server that answers as the test says, and keeps what came."""

    answer: Callable[[Posted], Awaitable[web.Response]] = taken
    posted: list[Posted] = field(default_factory=list)
    took: list[str] = field(default_factory=list)  # ids, as they were answered 2xx
    url: str = ""

    async def _handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        now = asyncio.get_running_loop().time()
        one = Posted(headers, await request.read(), now)
        self.posted.append(one)
        response = await self.answer(one)
        if response.status < 300:
            self.took.append(one.id)
        return response

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Endpoint"]:
        """On a free port, until left."""
        app = web.Application()
        app.router.add_post("/hook", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http{'s' if tls else ''}://{host}:{port}/hook"
        try:
            yield self
        finally:
            await runner.cleanup()


def hooks_file(folder: Path, url: str, name: str = "crm") -> str:
    """A file for WEBHOOKS with one URL that gets everything."""
    file = folder / "webhooks.toml"
    file.write_text(f"[{name}]\nurl = '{url}'\nsecrets = '{SECRET}'\n")
    return str(file)


class Receiver:
    """config/webhooks/receiver.py, which can be killed and started again at the same port."""

    def __init__(self, folder: Path, *secrets: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.secret_file = folder / "secret"
        self.secret_file.write_text("\n".join(secrets or (SECRET,)) + "\n")
        self._database = folder / "received.db"
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it was started."""
        return f"http://127.0.0.1:{self._port}/"

    async def start(self) -> None:
        """Return once it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(RECEIVER), "--secret-file", str(self.secret_file),
            "--database", str(self._database), "--port", str(self._port),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            said = (await self._process.stdout.readline()).decode()
        self._port = int(said.rstrip("/\n").rpartition(":")[2])

    async def kill(self) -> None:
        """kill -9."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def received(self) -> list[tuple[str, str, int, int]]:
        """Id, session, sequence and how often it came, in order of first arrival."""
        with contextlib.closing(sqlite3.connect(self._database)) as database:
            query = "SELECT id, session_id, sequence, times FROM events ORDER BY place"
            return database.execute(query).fetchall()

    def bodies(self) -> list[str]:
        """What came, in order of first arrival."""
        with contextlib.closing(sqlite3.connect(self._database)) as database:
            return [body for (body,) in database.execute("SELECT body FROM events ORDER BY place")]


@asynccontextmanager
async def receiving(folder: Path, *secrets: str) -> AsyncIterator[Receiver]:
    """The example receiver, running until left."""
    receiver = Receiver(folder, *secrets)
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.kill()
