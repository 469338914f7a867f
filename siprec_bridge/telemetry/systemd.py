"""What systemd is told of the service that it runs: sd_notify(3), sd_watchdog_enabled(3)."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

_EVERY_S = 10.0
_PATIENCE_S = 1.0  # with a manager that has much to read


class ServiceManager:
    """The one that started this process, if it listens; else nothing happens.

    `environment`: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract address. unix(7)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watched_s = int(microseconds) / 1e6 if ours and microseconds.isdecimal() else 0.0

    def tell(self, **facts: str) -> None:
        """Tell facts, such as READY="1"."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in facts.items())
        with (
            contextlib.suppress(OSError),  # it goes on without us
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one,
        ):
            one.settimeout(_PATIENCE_S)
            one.sendto(text.encode(), self._address)

    @asynccontextmanager
    async def kept_told(self, status: Callable[[], str]) -> AsyncIterator[None]:
        """Meanwhile, say that the event loop goes round, and how things are."""
        telling = asyncio.create_task(self._keep_telling(status), name="systemd")
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _keep_telling(self, status: Callable[[], str]) -> None:
        while self._address:
            alive = {"WATCHDOG": "1"} if self._watched_s else {}
            self.tell(**alive, STATUS=status())
            await asyncio.sleep(min(_EVERY_S, self._watched_s / 2 or _EVERY_S))
