"""A disk that is slow, or fails, when what calls leave behind is made durable."""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from harness.disk import fill, small_disk
from harness.media import engine, spec, spooled
from harness.rtp import packets, send, tone
from siprec_bridge.media import supervisor
from siprec_bridge.receiver import spool
from siprec_bridge.receiver.control import Configuration, decode, encode
from siprec_bridge.receiver.spool import RECORD
from siprec_bridge.receiver.worker import Worker

VOICE = packets(tone(440, 1.0))


class Bridge:
    """The bridge's end of a worker that runs in a thread here, where its disk can be made slow."""

    def __init__(self, one: socket.socket) -> None:
        self._socket = one
        self._lines = one.makefile("rb")
        self._id = 0

    def say(self, **command: object) -> int:
        self._id += 1
        self._socket.sendall(encode({"id": self._id, **command}))
        return self._id

    def hear(self, until: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        heard: list[dict[str, Any]] = []
        while not heard or not until(heard[-1]):
            heard.append(decode(self._lines.readline()))
        return heard

    def ask(self, **command: object) -> dict[str, Any]:
        number = self.say(**command)
        return self.hear(lambda one: one.get("id") == number)[-1]


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    ours, theirs = socket.socketpair()
    with theirs:
        worker = Worker(theirs)
        running = threading.Thread(target=worker.run)
        running.start()
        with ours:
            ours.settimeout(20)
            one = Bridge(ours)
            ports = Configuration(16384, 32767, True, 30.0, "any")
            one.ask(do="configure", configuration=ports.to_json())
            yield one
            one._lines.close()
        running.join()


def test_while_closed_spools_wait_for_the_disk_the_other_streams_are_swept(
    tmp_path: Path, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda file: disk.wait(3))
    specs = [spec(tmp_path, index) for index in range(40)]
    opening: dict[str, Any] = {"do": "open", "port": None, "rollovers": []}
    ports = [bridge.ask(spec=one.to_json(), **opening)["port"][1] for one in specs]
    for port in ports:
        send(VOICE[:10], port)
    closing = bridge.say(do="close", streams=[one.stream_id for one in specs[1:]])

    send(VOICE[10:], ports[0])
    packets = [0]

    def all_swept(one: dict[str, Any]) -> bool:
        packets[0] += one.get("counters", {}).get("packets", 0)
        return packets[0] == 40 * 10 + 40

    swept = bridge.hear(all_swept)
    again = bridge.ask(spec=spec(tmp_path, 50).to_json(), **opening)
    disk.set()
    (*_, closed) = bridge.hear(lambda one: one.get("id") == closing)

    assert closing not in [one.get("id") for one in swept]
    assert again["port"]
    assert [one["packets"] for one in closed["reports"]] == 39 * [10]


def test_where_no_thread_may_be_started_spools_are_closed_without(
    tmp_path: Path, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for number in range(2):
        stream = spec(tmp_path, number)
        _, port, _ = bridge.ask(do="open", spec=stream.to_json(), port=None, rollovers=[])["port"]
        send(VOICE, port)
        (report,) = bridge.ask(do="close", streams=[stream.stream_id])["reports"]

        assert report["packets"] == len(VOICE)
        assert spooled(stream.spool) == VOICE


def test_what_a_full_disk_cost_is_told_when_there_is_room_again(
    tmp_path: Path, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_PENDING_LIMIT", 4000)
    events: list[tuple[str, str | None]] = []

    def say(voice: list[bytes]) -> None:
        """Send it, and wait until it is swept."""
        send(voice, port)
        packets = 0

        def swept(one: dict[str, Any]) -> bool:
            nonlocal packets
            packets += int(one.get("counters", {}).get("packets", 0))
            if str(one.get("event")).startswith("writ"):
                events.append((one["event"], one["cause"]))
            return packets == len(voice)

        bridge.hear(swept)

    with small_disk(tmp_path / "disk", "1m") as disk:
        one = spec(disk)
        opening = bridge.ask(do="open", spec=one.to_json(), port=None, rollovers=[])
        port = opening["port"][1]
        say(VOICE[:10])
        others = fill(disk)
        say(VOICE[10:25])  # more than is left of the file's last page
        say(VOICE[25:49])  # more than is kept in memory
        others.unlink()
        say(VOICE[49:])
        bridge.ask(do="close", streams=[one.stream_id])
        kept = spooled(one.spool)

    lost = len(VOICE) - len(kept)
    octets = lost * (len(VOICE[0]) + RECORD.itemsize)
    assert events == [
        ("write_failed", "no space left"),
        ("written_again", f"{octets:,} octets found no room for too long"),
    ]
    assert 0 < lost <= 24
    assert [one for one in VOICE if one in kept] == kept


def test_what_cannot_be_made_durable_is_told_ahead_of_the_report(
    tmp_path: Path, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    bridge.ask(do="open", spec=spec(tmp_path).to_json(), port=None, rollovers=[])
    monkeypatch.setattr(os, "fsync", fail)
    closing = bridge.say(do="close", streams=["s1-0", "unknown"])

    *_, told, reply = bridge.hear(lambda one: one.get("id") == closing)

    assert (told["event"], told["stream_id"], told["cause"]) == (
        "write_failed", "s1-0", "Input/output error",
    )  # fmt: skip
    assert len(reply["reports"]) == 1


SLOW = """#!{python}
import json, socket, sys, time
one = socket.socket(fileno=int(sys.argv[3]))
def tell(**message):
    one.sendall(json.dumps(message).encode() + b"\\n")
for line in one.makefile("rb"):
    command = json.loads(line)
    if command["do"] == "close":
        for _ in range({talks}):
            time.sleep(0.1)
            tell(event="counters", counters={{"late": 0.0}})
        time.sleep({silence})
    port = ["127.0.0.1", 20000, 20001]
    tell(id=command["id"], receiver="", no_ring=None, room=9, room_muxed=9, port=port, reports=[])
"""


@pytest.mark.parametrize(
    ("talks", "silence", "causes"),
    [(17, 0.0, []), (0, 1.8, ["the media worker does not answer"])],
    ids=["talks", "silent"],
)
async def test_a_worker_that_takes_long_is_waited_for_as_long_as_it_talks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talks: int, silence: float, causes: list[str]
) -> None:
    monkeypatch.setattr(supervisor, "REPLY_TIMEOUT_S", 1.5)
    slow = tmp_path / "slow"
    slow.write_text(SLOW.format(python=sys.executable, talks=talks, silence=silence))
    slow.chmod(0o755)
    with capture_logs() as lines, monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(slow))
        async with engine() as (media, events, _):
            await media.open(spec(tmp_path))

            await media.close(["s1-0"])

    assert [one["cause"] for one in lines if one["event"] == "media.not_closed"] == causes
    assert len(events) == len(causes)
