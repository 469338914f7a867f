"""A worker's RTCP with an SRC: what it reports, what it hears, in the clear and encrypted."""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.hosts import link_local
from harness.media import opened, spec
from harness.rtp import packets, send, tone
from siprec_bridge.dtls import Certificate
from siprec_bridge.media import DtlsTask, StreamSpec, finish_session
from siprec_bridge.receiver.spool import ControlPacket, SpoolReader
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.rtp import SrtpReceiver, SrtpSender
from siprec_bridge.sdp import StreamKeys

SUITE, REMOTE, LOCAL = "AES_CM_128_HMAC_SHA1_80", bytes(range(30)), bytes(range(100, 130))
NTP = 0xE1B4_2C80_4000_0000
SR = struct.pack("!BBHIQIII", 0x80, 200, 6, 0x1234, NTP, 1000, 50, 8000)
BYE = struct.pack("!BBHIBBHI", 0x80, 201, 1, 0x1234, 0x81, 203, 1, 0x1234)
VOICE = packets(tone(440, 2.0))


@pytest.fixture
def src() -> Iterator[socket.socket]:
    """Where the SRC receives its RTCP; all is sent before it is read, so nothing waits long."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.settimeout(10)
        yield one


def stream(folder: Path, src: socket.socket, **options: Any) -> StreamSpec:
    return replace(spec(folder), rtcp=src.getsockname(), **options)


def sweep(worker: Worker, later: float = 0.0) -> None:
    """What the worker does when a sweep is due, so many seconds from now."""
    worker.sweep(time.monotonic() + later)


def block(packet: bytes) -> tuple[int, ...]:
    """Packet type, SSRC of the source, fraction lost, lost, highest, jitter, LSR, DLSR."""
    kind = packet[1]
    ssrc, lost, *rest = struct.unpack_from("!IIIIII", packet, 8)
    return (kind, ssrc, lost >> 24, lost & 0xFFFFFF, *rest)


def kinds(packet: bytes) -> list[int]:
    found, at = [], 0
    while at < len(packet):
        found.append(packet[at + 1])
        at += 4 + 4 * struct.unpack_from("!H", packet, at + 2)[0]
    return found


def test_a_source_that_is_heard_gets_reports_and_a_bye(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    port = opened(worker, stream(tmp_path, src))
    send([SR], port + 1)
    send([*VOICE[:20], *VOICE[25:50]], port)

    sweep(worker, later=8.0)
    first, sender = src.recvfrom(2000)
    send(VOICE[50:100], port)
    sweep(worker, later=16.0)
    second = src.recv(2000)
    (report,) = worker._close([spec(tmp_path).stream_id])
    last = src.recv(2000)

    assert sender == ("127.0.0.1", port + 1)
    assert block(first)[:5] == (201, 0x1234, 256 * 5 // 50, 5, 149)
    assert block(first)[6] == 0x2C804000  # the middle of the SR's NTP time
    assert block(first)[7] < 10 * 65536
    assert block(second)[:5] == (201, 0x1234, 0, 5, 199)
    assert [kinds(one) for one in (first, second, last)] == [[201, 202]] * 2 + [[201, 202, 203]]
    assert len({one[4:8] for one in (first, second, last)}) == 1
    assert (report.packets, report.lost, report.sender_reports) == (95, 5, 1)
    assert (report.malformed, report.said_bye) == (0, False)
    assert report.mos == 2.17
    assert report.jitter_ms is not None


@pytest.mark.skipif(link_local() is None, reason="no link-local address here")
def test_on_its_link_a_source_is_heard_and_reported_to(tmp_path: Path, worker: Worker) -> None:
    address, link = link_local() or ("", 0)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as src:
        src.bind((address, 0, 0, link))
        src.settimeout(10)
        # Some SRCs say in their SDP what their link is to them.
        target = (f"{address}%their1", src.getsockname()[1])
        there = replace(spec(tmp_path, host=f"{address}%{link}"), rtcp=target, peer=address)
        port = opened(worker, there)
        for packet in VOICE[:50]:
            src.sendto(packet, (address, port, 0, link))
        sweep(worker, later=8.0)
        report = src.recv(2000)

    (one,) = worker._streams.values()
    assert block(report)[:5] == (201, 0x1234, 0, 0, 149)
    assert (one.sequence.packets, one.strangers) == (50, 0)


def test_only_streams_that_were_heard_since_are_reported_on(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    port = opened(worker, stream(tmp_path, src))
    sweep(worker, later=8.0)
    send(VOICE[:10], port)
    sweep(worker, later=16.0)
    sweep(worker, later=24.0)
    send(VOICE[10:20], port)
    sweep(worker, later=32.0)

    assert [block(src.recv(2000))[4] for _ in range(2)] == [109, 119]
    src.setblocking(False)
    with pytest.raises(BlockingIOError):
        src.recv(2000)


def test_not_every_stream_is_due_at_once(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    begun = time.monotonic()
    ports = [opened(worker, replace(stream(tmp_path, src), stream_id=f"s-{n}")) for n in range(40)]
    open_at = time.monotonic()
    for port in ports:
        send(VOICE[:2], port)

    dues = sorted(due for due, _, _ in worker._feedback._due)
    worker.sweep(dues[20])

    reported = [one for one in worker._streams.values() if one.has_reported]
    assert begun + 2.4 < dues[0]
    assert dues[-1] < open_at + 7.6
    assert len(reported) == 21


def test_on_one_port_with_the_rtp_both_ways(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    port = opened(worker, stream(tmp_path, src, rtcp_mux=True))
    send([VOICE[0], SR, *VOICE[1:50], BYE], port)

    sweep(worker, later=8.0)
    packet, sender = src.recvfrom(2000)
    (report,) = worker._close([spec(tmp_path).stream_id])

    assert sender == ("127.0.0.1", port)
    assert block(packet)[:4] == (201, 0x1234, 0, 0)
    assert (report.packets, report.malformed) == (50, 0)
    assert (report.sender_reports, report.said_bye) == (1, True)
    assert finish_session(tmp_path, "s1", 8000).legs[0].packets == 50
    assert SR in spec(tmp_path).spool.read_bytes()


@pytest.mark.parametrize("mux", [True, False])
def test_a_secure_stream_has_secure_rtcp_both_ways(
    tmp_path: Path, src: socket.socket, worker: Worker, mux: bool
) -> None:
    keys = StreamKeys(SUITE, REMOTE, LOCAL)
    port = opened(worker, stream(tmp_path, src, keys=keys, rtcp_mux=mux))
    there, here = SrtpSender(SUITE, REMOTE), SrtpReceiver(SUITE, LOCAL)
    where = port if mux else port + 1
    send([there.protect_rtcp(SR), SR], where)
    send([there.protect(one) for one in VOICE[:50]], port)

    sweep(worker, later=8.0)
    locked = src.recv(2000)
    (report,) = worker._close([spec(tmp_path).stream_id])

    assert b"\x00\x00\x12\x34" not in locked
    assert block(here.unprotect_rtcp(locked))[:5] == (201, 0x1234, 0, 0, 149)
    assert kinds(here.unprotect_rtcp(src.recv(2000))) == [201, 202, 203]
    assert (report.packets, report.sender_reports, report.unauthenticated) == (50, 1, 1)


@pytest.mark.parametrize(
    "target",
    [
        ("sbc.example.com", 5001),
        ("0.0.0.0", 5001),
        ("224.0.0.1", 5001),
        ("::1", 5001),
        ("127.0.0.1", 0),
        ("127.0.0.1", 65536),
    ],
)
def test_nothing_is_sent_to_what_is_no_address_of_a_host(
    tmp_path: Path, worker: Worker, target: tuple[str, int]
) -> None:
    port = opened(worker, replace(spec(tmp_path), rtcp=target))
    send(VOICE[:10], port)

    sweep(worker, later=8.0)

    (one,) = worker._streams.values()
    assert one.sequence.packets == 10
    assert (one.target, one.has_reported) == (None, False)


def test_rubbish_on_the_rtcp_port_does_no_harm(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    port = opened(worker, stream(tmp_path, src))
    hello = b"\x16\xfe\xff" + bytes(10) + b"\x01"  # of DTLS, to a stream that has none
    rubbish = [b"", b"x", SR[:-1], b"GET / HTTP/1.0\r\n\r\n", b"\x9f\xcb\x00\x00", hello]
    send([*rubbish, SR], port + 1)

    sweep(worker)

    (report,) = worker._close([spec(tmp_path).stream_id])
    assert (report.sender_reports, report.said_bye, report.malformed) == (1, False, 0)


@pytest.mark.parametrize("mux", [True, False])
def test_reports_of_keys_by_dtls_wait_for_them_and_are_encrypted_with_those_of_their_port(
    tmp_path: Path, src: socket.socket, worker: Worker, mux: bool
) -> None:
    ours = Certificate.make()
    dtls = DtlsTask((ours.fingerprint,), ours.pem)
    of_rtp, of_rtcp = StreamKeys(SUITE, REMOTE, LOCAL), StreamKeys(SUITE, LOCAL, REMOTE)
    early = stream(tmp_path / "early", src, dtls=dtls, rtcp_mux=mux)
    late = stream(tmp_path, src, dtls=dtls, rtcp_mux=mux, keys=of_rtp, rtcp_keys=of_rtcp)
    source = SrtpSender(SUITE, REMOTE)
    locked = [source.protect(packet) for packet in VOICE[:20]]
    for number, one in enumerate((replace(early, stream_id="early"), late)):
        port = opened(worker, one)
        send(locked, port)
        sweep(worker, later=8.0 * (number + 1))
    report = src.recv(2000)

    local = LOCAL if mux else REMOTE
    assert block(SrtpReceiver(SUITE, local).unprotect_rtcp(report))[:5] == (201, 0x1234, 0, 0, 119)
    src.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing in the clear
        src.recv(2000)


def test_no_number_of_a_key_is_used_twice_when_reports_change_their_port_and_come_back(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    ours = Certificate.make()
    of_rtp, of_rtcp = StreamKeys(SUITE, REMOTE, LOCAL), StreamKeys(SUITE, LOCAL, REMOTE)
    task = DtlsTask((ours.fingerprint,), ours.pem)
    apart = stream(tmp_path, src, dtls=task, keys=of_rtp, rtcp_keys=of_rtcp)
    port = opened(worker, apart)
    source = SrtpSender(SUITE, REMOTE)
    own, muxed = SrtpReceiver(SUITE, REMOTE), SrtpReceiver(SUITE, LOCAL)

    for number, here in enumerate([own, own, muxed, muxed, own]):
        worker._update(replace(apart, rtcp_mux=here is muxed))
        send([source.protect(packet) for packet in VOICE[10 * number : 10 * number + 10]], port)
        sweep(worker, later=8.0 * (number + 1))
        # Raises where it has come before.
        assert kinds(here.unprotect_rtcp(src.recv(2000))) == [201, 202]


def test_a_stream_that_waits_for_its_keys_says_nothing_in_the_clear_any_more(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    ours = Certificate.make()
    plain = stream(tmp_path, src)
    port = opened(worker, plain)
    send(VOICE[:10], port)
    sweep(worker, later=8.0)
    assert kinds(src.recv(2000)) == [201, 202]

    worker._update(replace(plain, dtls=DtlsTask((ours.fingerprint,), ours.pem)))
    sweep(worker, later=16.0)
    worker._close([plain.stream_id])

    src.setblocking(False)
    with pytest.raises(BlockingIOError):
        src.recv(2000)


def test_a_report_says_how_long_ago_the_sender_s_came(
    tmp_path: Path, src: socket.socket, worker: Worker
) -> None:
    port = opened(worker, stream(tmp_path, src))
    send(VOICE[:10], port)
    before = time.monotonic()
    send([SR], port + 1)
    sent = time.monotonic()
    time.sleep(0.03)  # that long
    sweep(worker)
    waited = time.monotonic() - sent
    sweep(worker, later=8.0)

    delay = block(src.recv(2000))[7] / 65536
    assert waited - 0.001 <= delay <= time.monotonic() - before + 0.001


@pytest.mark.parametrize("mux", [True, False])
def test_reports_keep_their_times_when_the_wall_clock_is_set(
    tmp_path: Path, src: socket.socket, worker: Worker, mux: bool
) -> None:
    hour = 3600 * 1_000_000_000
    port = opened(worker, stream(tmp_path, src, rtcp_mux=mux))
    worker._clock._offset_ns -= hour  # the wall clock is an hour ahead of when the call began
    send(VOICE[:10], port)
    send([SR], port if mux else port + 1)

    sweep(worker, later=8.0)
    worker._close([spec(tmp_path).stream_id])

    (told,) = [one for one in SpoolReader(spec(tmp_path).spool) if isinstance(one, ControlPacket)]
    assert abs(told.at_ns - (time.time_ns() - hour)) < 10 * 1_000_000_000
    assert block(src.recv(2000))[7] < 10 * 65536
