"""A child process that cannot outlive its deadline, nor can anything that it started."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TERM_GRACE_S = 3.0
_PIPE_GRACE_S = 0.5  # for output that is still in the pipe once the leader is gone
_TAIL = 4096


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended. `tail` is the end of its stderr, or of its stdout if that is empty."""

    exit_code: int
    timed_out: bool
    tail: str
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
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=dict(environment),
        start_new_session=True,
    )
    on_start(child.pid)
    assert child.stdout is not None
    assert child.stderr is not None
    tails = [
        asyncio.create_task(_tail(stream), name="recogniser output")
        for stream in (child.stderr, child.stdout)
    ]
    timed_out = False
    try:
        try:
            async with asyncio.timeout(timeout_s or None):
                await _exited(child)
        except TimeoutError:
            timed_out = True
    finally:
        await asyncio.shield(_end_group(child))
        for reader in tails:
            if not reader.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PIPE_GRACE_S):
                        await asyncio.wait({reader})
            if not reader.done():
                reader.cancel()
        await asyncio.gather(*tails, return_exceptions=True)
        # Closes the pipes, also when something that left the group still holds them.
        child._transport.close()  # type: ignore[attr-defined]
    errors, output = (
        "" if reader.cancelled() or reader.exception() else reader.result() for reader in tails
    )
    code = child.returncode if child.returncode is not None else -signal.SIGKILL
    return Finished(code, timed_out, errors or output, time.monotonic() - begun)


async def _exited(child: asyncio.subprocess.Process) -> None:
    """Wait for the leader alone: `Process.wait` would also wait for whoever holds its pipes."""
    descriptor = os.pidfd_open(child.pid)
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    while child.returncode is None:  # noqa: ASYNC110  the loop is about to collect it
        await asyncio.sleep(0.001)


async def _end_group(child: asyncio.subprocess.Process) -> None:
    """End what is left of the group: ask first, then insist."""
    for what, patience in ((signal.SIGTERM, _TERM_GRACE_S), (signal.SIGKILL, _TERM_GRACE_S)):
        try:
            os.killpg(child.pid, what)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + patience
        pause = 0.002
        while time.monotonic() < deadline and _group_lives(child.pid):
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        if not _group_lives(child.pid):
            return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


async def _tail(stream: asyncio.StreamReader) -> str:
    """Read to the end and keep the last of it, so that a chatty child never blocks."""
    kept = b""
    try:
        while chunk := await stream.read(1 << 16):
            kept = (kept + chunk)[-_TAIL:]
    except asyncio.CancelledError:
        pass  # somebody outside of the group holds the pipe: what came is enough
    return kept.decode("utf-8", "replace").strip()
