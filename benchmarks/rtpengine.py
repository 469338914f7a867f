"""rtpengine as a recorder, for comparison: Debian's package, in user space, recording to pcap files.

Asked by its ng protocol (bencode over UDP) for calls of two streams, which it forwards to a port that
nobody reads, as it does for parties of a call, and records.
"""

import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PORTS = (30000, 60999)
_SDP = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)
_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Recorder:
    """A running one: its process and the ports that take the streams."""

    pid: int
    ports: list[int]


def recorded(folder: Path, octets: int) -> int:
    """Packets of so many octets of RTP in what was recorded, once it has ended."""
    # Headers of IP and UDP each, and 16 of the file's own.
    size = sum(one.stat().st_size - 24 for one in folder.glob("pcaps/*.pcap"))
    return size // (16 + 28 + octets)


def is_there() -> bool:
    """Whether it is installed."""
    return shutil.which("rtpengine") is not None


@contextmanager
def recorder(streams: int, folder: Path) -> Iterator[Recorder]:
    """Have it record so many streams, two a call, in a folder. Raises OSError, ValueError."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control,
    ):
        nobody.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        nobody.bind(("127.0.0.1", 0))
        port = _free_port()
        command = [
            "rtpengine", "--foreground", "--log-stderr", "--log-level=2", "--table=-1",
            "--interface=127.0.0.1", f"--listen-ng=127.0.0.1:{port}", "--num-threads=2",
            f"--port-min={PORTS[0]}", f"--port-max={PORTS[1]}", f"--recording-dir={folder}",
            "--recording-method=pcap", "--delete-delay=0", "--config-file=none",
        ]  # fmt: skip
        with (folder / "rtpengine.log").open("w") as log:
            # There, too, goes the core dump of one that crashes: it asks for them by itself.
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            control.settimeout(_START_S / 10)
            control.connect(("127.0.0.1", port))
            _wait(control)
            control.settimeout(_START_S)
            ports = _open_calls(control, streams // 2, nobody.getsockname()[1])
            yield Recorder(process.pid, ports)
            for number in range(streams // 2):  # else the ends of its files are not written
                _ask(control, {"command": "delete", "call-id": f"call-{number}"})
        finally:
            process.terminate()
            try:
                process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _open_calls(control: socket.socket, calls: int, to: int) -> list[int]:
    ports = []
    for number in range(calls):
        call = {"call-id": f"call-{number}", "from-tag": f"a{number}"}
        sdp = _SDP.format(port=to)
        offer = {"command": "offer", "sdp": sdp, "ICE": "remove", **call}
        answer = {"command": "answer", "sdp": sdp, "to-tag": f"b{number}", **call}
        for message in (offer, answer):
            answered = _ask(control, {**message, "record call": "yes"})
            sent = str(answered["sdp"])
            ports.append(int(sent.partition("m=audio ")[2].partition(" ")[0]))
    return ports


def _wait(control: socket.socket) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            _ask(control, {"command": "ping"})
        except (ConnectionRefusedError, TimeoutError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def _ask(control: socket.socket, message: dict[str, str]) -> dict[str, object]:
    cookie = secrets.token_hex(8).encode()  # a request with the same one would be a repeated one
    control.send(cookie + b" " + _encode(message))
    while not (data := control.recv(1 << 16)).startswith(cookie):
        pass  # an answer to an earlier one, which was given up
    value, _ = _decode(data.partition(b" ")[2], 0)
    if not isinstance(value, dict) or value.get("result") not in ("ok", "pong"):
        raise ValueError(f"rtpengine says {value}")
    return value


def _encode(message: dict[str, str]) -> bytes:
    words = [word for pair in sorted(message.items()) for word in pair]
    return b"d" + b"".join(b"%d:%s" % (len(word.encode()), word.encode()) for word in words) + b"e"


def _decode(data: bytes, at: int) -> tuple[object, int]:
    """A bencoded value, and where the next one is."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in b"dl":
        at, found = at + 1, []
        while data[at : at + 1] != b"e":
            value, at = _decode(data, at)
            found.append(value)
        return (dict(zip(found[::2], found[1::2], strict=True)) if kind == b"d" else found), at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    return data[colon + 1 : end].decode(errors="replace"), end


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
