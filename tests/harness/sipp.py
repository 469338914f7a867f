"""SIPp as the SRC: scenarios written in blocks, and voices that talk while a scenario runs."""

import asyncio
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from harness.rtp import tone
from siprec_bridge.rtp import build_packet, encode_g711

SCENARIOS = Path(__file__).parents[1] / "peers" / "sipp"
NOTHING: Mapping[str, str] = MappingProxyType({})
_FRAME = 160  # samples: 20 ms
_BLOCK = re.compile(r"\[([a-z-]+)((?: [\w-]+)*)\]")


def spelled_out(text: str) -> str:
    """A scenario as SIPp reads it: `[name a b]` is the file blocks/name.txt, with a for $1."""

    def block(found: re.Match[str]) -> str:
        file = SCENARIOS / "blocks" / f"{found[1]}.txt"
        if not file.exists():
            return found[0]  # a keyword of SIPp
        content = file.read_text().removesuffix("\n")
        for number, word in enumerate(found[2].split(), 1):
            content = content.replace(f"${number}", word)
        return spelled_out(content)

    return _BLOCK.sub(block, text)


async def run_sipp(
    address: tuple[str, int],
    scenario: str,
    transport: str,
    folder: Path,
    *options: str,
    words: Mapping[str, str] = NOTHING,
    timeout_s: int = 30,
) -> tuple[int, str]:
    """Run a scenario, once unless told otherwise; SIPp's exit code and what it says of errors.

    `words` stand for `[name]` in the scenario.
    """
    host, port = address
    text = spelled_out((SCENARIOS / scenario).read_text())
    for name, value in words.items():
        text = text.replace(f"[{name}]", value)
    path = folder / scenario
    path.write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        shutil.which("sipp") or "sipp", f"{host}:{port}", "-sf", str(path),
        *(() if "-m" in options else ("-m", "1")), *options,
        "-t", "u1" if transport == "udp" else "t1", "-i", "127.0.0.1", "-p", str(own),
        "-nostdin", "-watchdog_interval", "0",  # which complains of a busy machine
        "-timeout", str(timeout_s), "-timeout_error", "-trace_err",
        "-error_file", str(folder / "errors.txt"),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s + 10):
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    errors = folder / "errors.txt"
    return code, errors.read_text() if errors.exists() else ""


class Speaker:
    """Sends tones in real time to where the lines say: `name port` each.

    `voices` are frequencies by name. The last line of a port counts, so that a scenario can give
    a port to somebody else, or to nobody; each voice is a source of its own (SSRC). `late`: the
    most seconds that a frame was, on a busy machine.
    """

    def __init__(self, lines: Path, voices: Mapping[str, float]) -> None:
        self.late = 0.0
        self._lines = lines
        self._second = {
            name: encode_g711("PCMU", tone(pitch, 1.0)) for name, pitch in voices.items()
        }
        self._sources = {name: number for number, name in enumerate(voices, 1)}

    async def speak(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
            begun, number = loop.time(), 0
            while True:
                text = self._lines.read_text() if self._lines.exists() else ""
                speakers = {port: name for name, port in map(str.split, text.splitlines())}
                start = number * _FRAME % 8000
                for port, name in speakers.items():
                    if name not in self._second:
                        continue
                    voice = self._second[name][start : start + _FRAME]
                    packet = build_packet(
                        0, number & 0xFFFF, number * _FRAME, self._sources[name], voice
                    )
                    wire.sendto(packet, ("127.0.0.1", int(port)))
                number += 1
                ahead = begun + number * _FRAME / 8000 - loop.time()
                if speakers:
                    self.late = max(self.late, -ahead)
                await asyncio.sleep(ahead)
