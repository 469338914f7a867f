"""A real Chromium, driven over the DevTools protocol: one page, asked in JavaScript."""

import asyncio
import itertools
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

_PATIENCE_S = 30.0


class Page:
    """A tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None

    async def open(self, url: str) -> None:
        """Go to an address."""
        if self._session is None:
            made = await self.command("Target.createTarget", url="about:blank")
            attached = await self.command(
                "Target.attachToTarget", targetId=made["targetId"], flatten=True
            )
            self._session = attached["sessionId"]
        await self.command("Page.navigate", url=url)

    async def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.send(json.dumps(message))
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                answer = json.loads(await self._socket.recv())
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    result = answer["result"]
                    assert isinstance(result, dict)
                    return result

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        result = await self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression holds, also over a change of page."""
        script = f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    if await self.run(script):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.run("document.documentElement.innerText")
            raise AssertionError(f"never: {condition}; the page shows:\n{shown}") from None


@asynccontextmanager
async def browser(profile: Path, *arguments: str) -> AsyncIterator[Page]:
    """A browser of its own, ended with all its processes."""
    process = await asyncio.create_subprocess_exec(
        shutil.which("chromium") or "chromium", "--headless", "--no-sandbox", "--disable-gpu",
        "--remote-debugging-port=0", f"--user-data-dir={profile}", *arguments, "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                line = (await process.stderr.readline()).decode()
                assert line, "the browser ended"
                if found := re.search(r"DevTools listening on (ws://\S+)", line):
                    break
        draining = asyncio.create_task(process.stderr.read())
        async with connect(found[1], max_size=None, proxy=None) as socket:
            yield Page(socket)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_PATIENCE_S):
            await process.wait()
            await draining
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
