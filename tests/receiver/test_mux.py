"""RTCP on the port of the RTP: such a stream holds no socket for it, until that is taken back."""

import gc
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.bridge import eventually
from harness.media import engine, opened, received, spec, spooled
from harness.ports import rtp_ports
from harness.rtp import packets, send, tone
from siprec_bridge.dtls import Certificate
from siprec_bridge.media import DtlsTask, StreamSpec
from siprec_bridge.receiver import descriptors
from siprec_bridge.receiver.control import Configuration, decode
from siprec_bridge.receiver.worker import Worker

VOICE = packets(tone(440, 2.0))
SR = struct.pack("!BBHIQIII", 0x80, 200, 6, 0x1234, 0xE1B4_2C80_4000_0000, 1000, 50, 8000)


@pytest.fixture
def worker() -> Iterator[tuple[Worker, socket.socket]]:
    """A worker and the bridge's end of its socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        one = Worker(theirs)
        ports = Configuration(*rtp_ports(), True, 30.0, "any")
        one._do({"do": "configure", "configuration": ports.to_json()})
        yield one, ours
        one.stop()


def update(worker: Worker, one: StreamSpec) -> None:
    worker._do({"do": "update", "spec": one.to_json()})


def files() -> int:
    gc.collect()  # what other tests left is not to go in the middle of this one
    return len(os.listdir("/proc/self/fd"))


def told(bridge: socket.socket) -> list[dict[str, Any]]:
    try:
        return [decode(line) for line in bridge.recv(1 << 16).splitlines()]
    except BlockingIOError:
        return []


def free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.mark.parametrize(
    ("mux", "each"), [(True, descriptors.OF_A_MUXED), (False, descriptors.OF_A_STREAM)]
)
def test_a_stream_holds_as_many_files_as_the_advice_counts_on(
    tmp_path: Path, worker: tuple[Worker, socket.socket], mux: bool, each: int
) -> None:
    media, _ = worker
    opened(media, spec(tmp_path, 9))  # ports for a few more are bound with it
    before = files()

    ports = [opened(media, replace(spec(tmp_path, n), rtcp_mux=mux)) for n in range(4)]

    assert files() - before == 4 * each
    assert [one % 2 for one in ports] == [0, 0, 0, 0]  # the upper ports are nobody else's
    assert {free(one + 1) for one in ports} == {mux}
    media._close([f"s1-{n}" for n in range(4)])
    media._durable.stop()
    assert files() == before


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "before its handshake"])
def test_a_port_for_rtcp_is_opened_when_mux_is_dropped_and_closed_when_it_is_agreed(
    tmp_path: Path, worker: tuple[Worker, socket.socket], secure: bool
) -> None:
    media, _ = worker
    ours = Certificate.make()
    task = DtlsTask((ours.fingerprint,), ours.pem) if secure else None
    apart = replace(spec(tmp_path), dtls=task)
    port = opened(media, replace(apart, rtcp_mux=True))
    before = files()

    for _ in range(2):
        update(media, apart)
        send([SR], port + 1)
        assert files() == before + 1
        update(media, replace(apart, rtcp_mux=True))
        assert files() == before
        assert free(port + 1)
    (report,) = media._close(["s1-0"])

    assert report.sender_reports == (0 if secure else 2)
    assert report.unauthenticated == (2 if secure else 0)


def test_what_waits_for_rtcp_when_the_keys_begin_to_come_by_dtls_is_no_handshake(
    tmp_path: Path, worker: tuple[Worker, socket.socket]
) -> None:
    media, _ = worker
    ours = Certificate.make()
    port = opened(media, spec(tmp_path))
    send([b"\x16\xfe\xfd" + bytes(10) + b"\x01", SR], port + 1)

    task = DtlsTask((ours.fingerprint,), ours.pem)
    update(media, replace(spec(tmp_path), dtls=task, rtcp_mux=True))
    (report,) = media._close(["s1-0"])

    assert (report.sender_reports, report.unauthenticated) == (1, 0)


def test_where_the_port_for_rtcp_is_another_s_by_then_the_voice_goes_on(
    tmp_path: Path, worker: tuple[Worker, socket.socket]
) -> None:
    media, bridge = worker
    port = opened(media, replace(spec(tmp_path), rtcp_mux=True, rtcp=("127.0.0.1", 9)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port + 1))
        update(media, replace(spec(tmp_path), rtcp=("127.0.0.1", 9)))
        send(VOICE, port)
        media.sweep(1e9)  # also sends a report, if it can
        media._close(["s1-0"])

    assert [(one["event"], one["cause"]) for one in told(bridge) if "cause" in one] == [
        ("rtcp_lost", f"port {port + 1} is taken")
    ]
    assert spooled(spec(tmp_path).spool) == VOICE


def test_a_worker_without_a_file_left_says_so_as_one_without_a_port(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        media = Worker(theirs)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        command = b'{"id":1,"do":"open","spec":%s,"port":null,"rollovers":[]}\n'
        ours.send(command % json.dumps(spec(tmp_path).to_json()).encode())
        os.close(lowest := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            media._take_commands()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (reply,) = told(ours)
        media.stop()

    assert (reply["error"], reply["cause"]) == ("no_port_left", "Too many open files: ")


async def test_a_worker_that_is_started_again_opens_no_more_than_it_held(tmp_path: Path) -> None:
    stream = replace(spec(tmp_path), rtcp_mux=True)
    async with engine() as (media, events, metrics):
        port = (await media.open(stream)).rtp_port
        send(VOICE[:50], port)
        await received(metrics, 50)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", port + 1))  # which is no reason to give the stream up
            os.kill(media.pids[0], signal.SIGKILL)
            await eventually(lambda: events[-1].name in ("interrupted", "lost"), "a new worker")
        send([*VOICE[50:], SR], port)
        (report,) = await media.close(["s1-0"])

    assert spooled(stream.spool) == VOICE
    assert report.sender_reports == 1
