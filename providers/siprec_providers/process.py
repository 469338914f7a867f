"""A child process that cannot outlive its deadline, nor can anything that it started."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TERM_GRACE_S = 3.0
_PIPE_GRACE_S = 0.5  # for output that is still in the pipe once the group is gone
_TAIL = 4096
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended, with the last 4 KiB of each of its outputs.

    The two are kept apart: recognisers print what was said to stdout, which no log may show.
    """

    exit_code: int  # minus the signal's number when a signal ended it
    timed_out: bool
    stderr: str
    stdout: str
    duration: float  # seconds


async def run_process(
    command: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path,
    environment: Mapping[str, str],
    on_start: Callable[[int], None] = lambda _: None,
) -> Finished:
    """Run a command to its end, or to the end of `timeout_s` seconds (0: no limit).

    It leads a process group of its own. When it is over, however it is over, the whole group is:
    TERM, then KILL; a wrapper script's child that hangs on the pipe goes the same way. Raises
    OSError when it cannot be started. Cancelling ends the group too. `on_start` gets the group.
    """
    begun = time.monotonic()
    transport, child = await asyncio.get_running_loop().subprocess_exec(
        _Child,
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        cwd=cwd,
        env=dict(environment),
        start_new_session=True,
    )
    group = transport.get_pid()
    timed_out = False
    try:
        on_start(group)
        async with asyncio.timeout(timeout_s or None):
            await child.exited.wait()
    except TimeoutError:
        timed_out = True
    finally:
        try:
            await _end_group(group)
            await _within(_PIPE_GRACE_S, child.drained)
        finally:
            # Closes the pipes, also when something that left the group still holds them.
            transport.close()
    await _within(_TERM_GRACE_S, child.exited)  # after a KILL: only its code is still on the way
    code = transport.get_returncode()
    return Finished(
        exit_code=code if code is not None else -signal.SIGKILL,
        timed_out=timed_out,
        stderr=child.tail(_STDERR),
        stdout=child.tail(_STDOUT),
        duration=time.monotonic() - begun,
    )


class _Child(asyncio.SubprocessProtocol):
    """Hears of the leader's exit apart from the end of its pipes, which others may hold.

    `asyncio.subprocess.Process.wait` waits for both. Reading never pauses, so that a chatty
    child never blocks; only the last of what it wrote is kept.
    """

    def __init__(self) -> None:
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self._tails = {_STDOUT: b"", _STDERR: b""}
        self._open = set(self._tails)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._tails[fd] = (self._tails[fd] + data)[-_TAIL:]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()

    def tail(self, fd: int) -> str:
        return self._tails[fd].decode("utf-8", "replace").strip()


async def _within(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def _end_group(group: int) -> None:
    """End what is left of the group: ask first, then insist. Cancelled, it insists at once."""
    try:
        if not _signal(group, signal.SIGTERM) or await _gone(group, _TERM_GRACE_S):
            return
    except asyncio.CancelledError:
        _signal(group, signal.SIGKILL)
        raise
    _signal(group, signal.SIGKILL)
    await _gone(group, _TERM_GRACE_S)


async def _gone(group: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    pause = 0.002
    while _signal(group, 0):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.1)
    return True


def _signal(group: int, what: int) -> bool:
    """Send it; False: nobody is left to get it. Signal 0 only asks."""
    try:
        os.killpg(group, what)
    except (ProcessLookupError, PermissionError):
        return False
    return True
