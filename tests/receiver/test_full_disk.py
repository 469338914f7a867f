"""A worker whose disk takes nothing for a while: all is written when there is room, in its order."""

import errno
import os
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.media import opened, spec, spooled
from harness.rtp import packets, send, tone
from siprec_bridge.receiver.spool import ControlPacket, SpoolReader
from siprec_bridge.receiver.worker import Worker

SR = struct.pack("!BBHIQIII", 0x80, 200, 6, 0x1234, 0xE1B4_2C80_4000_0000, 1000, 50, 8000)
VOICE = packets(tone(440, 2.0))


@contextmanager
def room_for(octets: int, path: Path) -> Iterator[None]:
    """As a disk that fills up: the kernel takes so much more of a write, and nothing of the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def receive(worker: Worker, port: int, voice: list[bytes]) -> None:
    send(voice, port)
    worker.sweep(time.monotonic())


def reports(spool: Path) -> list[bytes]:
    return [one.data for one in SpoolReader(spool) if isinstance(one, ControlPacket)]


@pytest.mark.parametrize("room", [0, 100, 500])
def test_what_the_disk_takes_no_more_of_is_written_once_it_does(
    tmp_path: Path, worker: Worker, room: int
) -> None:
    one = spec(tmp_path)
    port = opened(worker, one)
    receive(worker, port, VOICE[:10])
    with room_for(room, one.spool):
        receive(worker, port, VOICE[10:20])
        receive(worker, port, VOICE[20:30])
        assert spooled(one.spool) == VOICE[:10]  # and no half record
    receive(worker, port, VOICE[30:40])

    assert spooled(one.spool) == VOICE[:40]
    receive(worker, port, VOICE[40:50])
    assert spooled(one.spool) == VOICE[:50]


@pytest.mark.parametrize("before", [0, 10])
def test_what_a_file_server_that_is_away_does_not_take_is_written_when_it_is_back(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    def away(*_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    one = spec(tmp_path)
    port = opened(worker, one)
    receive(worker, port, VOICE[:before])
    with monkeypatch.context() as patch:
        for call in ("write", "writev", "fstat", "ftruncate"):
            patch.setattr(os, call, away)
        receive(worker, port, VOICE[before:20])
        receive(worker, port, VOICE[20:30])
    receive(worker, port, VOICE[30:40])

    assert spooled(one.spool) == VOICE[:40]


def test_a_sender_report_that_the_disk_did_not_take_comes_with_the_next_packets(
    tmp_path: Path, worker: Worker
) -> None:
    one = spec(tmp_path)
    port = opened(worker, one)
    receive(worker, port, VOICE[:10])
    with room_for(10, one.spool):
        send([SR], port + 1)
        worker.sweep(time.monotonic())
        assert reports(one.spool) == []
    receive(worker, port, VOICE[10:20])

    assert reports(one.spool) == [SR]
    assert spooled(one.spool) == VOICE[:20]
