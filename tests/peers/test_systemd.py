"""The bridge as a service of systemd: what it tells, and the units that we ship."""

import asyncio
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from harness.bridge import eventually, running_bridge

CONFIG = Path(__file__).parents[2] / "config"
UNITS = [*CONFIG.glob("systemd/*.service"), *CONFIG.glob("farm/*.service")]


async def test_systemd_hears_when_it_is_ready_that_it_lives_and_for_how_long_it_stops(
    tmp_path: Path,
) -> None:
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)

        async def listen() -> None:
            while True:
                told = await asyncio.get_running_loop().sock_recv(manager, 4096)
                heard.extend(told.decode().splitlines())

        listening = asyncio.create_task(listen())
        async with running_bridge(
            tmp_path / "data",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="100000",
            SHUTDOWN_TIMEOUT="3s",
        ) as bridge:
            await eventually(lambda: "READY=1" in heard, "READY", bridge)
            heard.clear()
            await eventually(lambda: "WATCHDOG=1" in heard, "a sign of life", bridge)
            await eventually(lambda: "STATUS=calls: 0" in heard, "a status", bridge)
            await bridge.stop()
            await eventually(lambda: "STOPPING=1" in heard, "STOPPING")
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    assert "EXTEND_TIMEOUT_USEC=123000000" in heard  # its own time, and what is left to do then


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda one: one.name)
def test_systemd_understands_the_units(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)

    complaints = [one for one in done.stderr.splitlines() if "is not executable" not in one]
    assert complaints == []


def test_the_bridge_alone_is_told_to_stop() -> None:
    unit = (CONFIG / "systemd" / "siprec-bridge.service").read_text()

    # By default its recognisers would be told as well, in mid-run.
    assert re.search(r"^KillMode=mixed$", unit, re.M)
