"""The ring: what comes out of it is what would come out of sockets."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from harness.bridge import eventually
from harness.capture import Sent, ip, udp
from harness.media import engine, received, spec, spooled
from harness.ports import rtp_ports
from harness.rtp import packets, send, tone
from siprec_bridge.dtls import Certificate
from siprec_bridge.media import DtlsTask, MediaUnavailable
from siprec_bridge.receiver import ring as ring_module
from siprec_bridge.receiver.arena import LARGEST, SLOTS, Arena
from siprec_bridge.receiver.packets import Address
from siprec_bridge.receiver.ring import Ring

SIZE = 1 << 25
VOICE = packets(tone(440, 2.0))
FIRST, LAST = rtp_ports()
_UDP_SEGMENT = 103


def _refusal() -> str | None:
    try:
        Ring(20000, 20001, ("lo",), SIZE).stop()
    except OSError as error:
        return str(error)
    return None


REFUSAL = _refusal()
with_ring = pytest.mark.skipif(REFUSAL is not None, reason=f"no packet sockets here: {REFUSAL}")


def taken(ring: Ring, arena: Arena) -> list[tuple[int, bytes]]:
    """What waits in a ring: rows and their datagrams."""
    ring.settle()
    found = []
    for rows, counts in ring.take(arena):
        of = np.repeat(rows, counts).tolist()
        for row, at, length in zip(of, arena.offsets, arena.lengths, strict=True):
            found.append((row, bytes(arena.data[at : at + length])))
    return found


@with_ring
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_came_is_in_the_spools_octet_by_octet(tmp_path: Path, host: str) -> None:
    longer = [one + bytes(index) for index, one in enumerate(VOICE)]
    async with engine(ring=SIZE) as (media, events, metrics):
        assert media.receiver == "a ring"
        specs = [spec(tmp_path, index, host) for index in range(3)]
        ports = [(await media.open(one)).rtp_port for one in specs]
        for plain, long in zip(VOICE, longer, strict=True):
            send([plain], ports[0], host)
            send([long], ports[1], host)
        await received(metrics, 2 * len(VOICE))
        send(VOICE[:1], ports[2], host)  # has to be waited for: its block is not full

        reports = await media.close([one.stream_id for one in specs])

    assert [spooled(one.spool) for one in specs] == [VOICE, longer, VOICE[:1]]
    assert [(one.packets, one.lost, one.malformed) for one in reports] == [
        (100, 0, 0), (100, 0, 0), (1, 0, 0),
    ]  # fmt: skip
    assert {one.name for one in events} == {"started", "learned"}


@with_ring
async def test_a_stream_at_every_address_takes_both_families_as_its_socket_does(
    tmp_path: Path,
) -> None:
    async with engine(ring=SIZE, rtp_source="any") as (media, _, metrics):
        one = spec(tmp_path, host="::")
        port = (await media.open(one)).rtp_port
        send(VOICE[:30], port, "127.0.0.1")
        send(VOICE[30:60], port, "::1")
        whole = udp(Sent(0, Address("127.0.0.1", 4000), Address("127.0.0.1", port), VOICE[60]))
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for at, more in ((0, 0x2000), (80, 0)):
                piece = whole[at : at + 80] if more else whole[at:]
                flags = more | at // 8
                raw.sendto(
                    ip("127.0.0.1", "127.0.0.1", 17, piece, fragment=flags), ("127.0.0.1", 0)
                )
        await received(metrics, 61)
        await media.close([one.stream_id])

    assert spooled(one.spool) == VOICE[:61]


@with_ring
async def test_what_the_ring_took_does_not_count_as_dropped_at_the_socket(tmp_path: Path) -> None:
    """The stream goes on by DTLS, and so by its socket, which was shut until then."""
    ours, theirs = Certificate.make(), Certificate.make()
    async with engine(ring=SIZE, rtp_source="any") as (media, _, metrics):
        plain = spec(tmp_path)
        port = (await media.open(plain)).rtp_port
        send(VOICE[:50], port)
        await received(metrics, 50)
        await media.update(replace(plain, dtls=DtlsTask((theirs.fingerprint,), ours.pem)))
        send(VOICE[50:], port)  # without keys nobody knows whose they are

        (report,) = await media.close([plain.stream_id])

    assert (report.packets, report.unauthenticated, report.kernel_drops) == (50, 50, 0)


@with_ring
async def test_what_came_before_a_stream_was_there_is_not_its_own(tmp_path: Path) -> None:
    port = FIRST + FIRST % 2
    watch = Ring(port, port + 1, ("lo",), 1 << 20)
    async with engine(ring=1 << 20, ports=(port, port + 1), rtp_source="any") as (
        media,
        _,
        metrics,
    ):
        before, after = spec(tmp_path), spec(tmp_path, session="s2")
        await media.open(before)
        await media.close([before.stream_id])
        for _ in range(100):  # goes on after its end, for more than the ring holds
            send(VOICE, port)
        watch.settle()
        await media.open(after)
        send(VOICE[:3], port)
        (report,) = await media.close([after.stream_id])
        drops = metrics.registry.get_sample_value("siprec_rtp_kernel_drops_total")
    watch.stop()

    assert spooled(after.spool) == VOICE[:3]
    assert (report.packets, drops) == (3, 0)


@with_ring
async def test_a_stranger_is_dropped_and_counted(tmp_path: Path) -> None:
    stream = spec(tmp_path, home="127.0.0.1")
    async with engine(ring=SIZE) as (media, events, metrics):
        port = (await media.open(stream)).rtp_port
        send(VOICE[:50], port)
        await received(metrics, 50)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.9", 0))
            for packet in packets(tone(880, 0.2), ssrc=0x6666):
                stranger.sendto(packet, ("127.0.0.1", port))
        send(VOICE[50:], port)
        await media.close([stream.stream_id])

        strangers = metrics.registry.get_sample_value("siprec_rtp_packets_stranger_total")
    assert spooled(stream.spool) == VOICE
    assert strangers == 10
    assert [one.name for one in events] == ["started", "stranger"]


@with_ring
async def test_a_pause_is_exact(tmp_path: Path) -> None:
    stream = spec(tmp_path)
    async with engine(ring=SIZE) as (media, _, _):
        port = (await media.open(stream)).rtp_port
        send(VOICE[:30], port)
        await media.pause(stream.stream_id, True, datetime.now(UTC))
        send(VOICE[30:60], port)
        await media.pause(stream.stream_id, False, datetime.now(UTC))
        send(VOICE[60:], port)
        await media.close([stream.stream_id])

    assert spooled(stream.spool) == VOICE[:30] + VOICE[60:]


@with_ring
def test_fragments_and_merged_datagrams_come_whole_and_in_their_place() -> None:
    ring, arena = Ring(FIRST, LAST, ("lo",), SIZE), Arena()
    port = FIRST + FIRST % 2
    ring.open("127.0.0.1", port, 7)
    large = VOICE[1] + bytes(1400)
    whole = udp(Sent(0, Address("127.0.0.1", 4000), Address("127.0.0.1", port), large))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as merging,
    ):
        send(VOICE[:1], port)
        for at, more in ((0, 0x2000), (800, 0)):
            piece = whole[at : at + 800] if more else whole[at:]
            raw.sendto(
                ip("127.0.0.1", "127.0.0.1", 17, piece, fragment=more | at // 8), ("127.0.0.1", 0)
            )
        merging.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, len(VOICE[2]))
        merging.sendto(b"".join(VOICE[2:10]) + VOICE[10][:100], ("127.0.0.1", port))
        send(VOICE[11:12], port)
    found = taken(ring, arena)
    ring.stop()

    sent = [VOICE[0], large, *VOICE[2:10], VOICE[10][:100], VOICE[11]]
    assert found == [(7, one) for one in sent]


@with_ring
def test_only_what_is_meant_for_an_open_port_of_the_host_is_taken() -> None:
    ring, arena = Ring(FIRST, FIRST + 3, (), SIZE), Arena()
    port = FIRST + FIRST % 2
    ring.open("127.0.0.1", port, 1)
    ring.open("127.0.0.2", port, 2)
    ring.open("::1", port, 3)
    ring.open("127.0.0.1", port + 2, 4)
    ring.close("127.0.0.1", port + 2)
    for host, number in (
        ("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.3", port), ("::1", port),
        ("127.0.0.1", port + 1), ("127.0.0.1", port + 2), ("127.0.0.1", port + 4),
    ):  # fmt: skip
        send([f"{host} {number}".encode()], number, host)
    send([bytes(LARGEST + 1)], port)
    found = taken(ring, arena)
    ring.open("0.0.0.0", port, 5)  # as its socket is bound
    send([b"anywhere"], port, "127.0.0.3")
    anywhere = taken(ring, arena)
    ring.stop()

    assert found == [
        (1, b"127.0.0.1 %d" % port), (1, b""), (2, b"127.0.0.2 %d" % port), (3, b"::1 %d" % port),
    ]  # fmt: skip
    assert anywhere == [(5, b"anywhere")]


@with_ring
def test_what_it_had_no_room_for_is_counted() -> None:
    ring, arena = Ring(FIRST, LAST, ("lo",), 1), Arena()  # as small as they are
    port = FIRST + FIRST % 2
    ring.open("127.0.0.1", port, 0)
    send(VOICE * 60, port)
    came = len(taken(ring, arena))
    drops = ring.drops()
    send(VOICE[:10], port)
    after = taken(ring, arena)
    ring.stop()

    assert drops > 0
    assert came + drops == 60 * len(VOICE)
    assert after == [(0, one) for one in VOICE[:10]]


@with_ring
@pytest.mark.parametrize("timer_ms", [4, 30])
def test_what_has_come_can_be_taken_however_late_the_kernel_hands_it_over(
    timer_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "_RETIRE_MS", timer_ms)  # as where a tick is so long
    ring, arena = Ring(FIRST, LAST, ("lo",), 1 << 20), Arena()
    port = FIRST + FIRST % 2
    ring.open("127.0.0.1", port, 0)
    found = []
    for number in range(10):
        sent = [os.urandom(8) + bytes(size) for size in range(200 if number == 5 else 1)]
        send(sent, port)
        found.append([one for _, one in taken(ring, arena) if one in sent] == sent)
    took = []
    for _ in range(10):
        begun = time.monotonic()
        ring.settle()
        took.append(time.monotonic() - begun)
    ring.stop()

    assert all(found)
    assert min(took) < 0.001  # nothing waits


@with_ring
def test_more_of_a_stream_than_is_looked_at_at_once_comes_in_turns() -> None:
    ring, arena = Ring(FIRST, LAST, ("lo",), SIZE), Arena()
    port = FIRST + FIRST % 2
    ring.open("127.0.0.1", port, 0)
    sent = [number.to_bytes(4, "big") for number in range(2 * SLOTS + 10)]
    send(sent, port)
    found = taken(ring, arena)
    ring.stop()

    assert [data for _, data in found] == sent


@pytest.mark.parametrize("interfaces", [("no-such-one",)])
async def test_a_ring_that_cannot_be_had_stops_the_start(interfaces: Sequence[str]) -> None:
    with pytest.raises(MediaUnavailable, match="MEDIA_CAPTURE=ring: "):
        async with engine(ring=SIZE, interfaces=interfaces):
            pass


@with_ring
async def test_what_the_ring_dropped_is_in_the_metrics(tmp_path: Path) -> None:
    async with engine(ring=1) as (media, _, metrics):
        port = (await media.open(spec(tmp_path))).rtp_port
        send(VOICE * 60, port)

        await eventually(
            lambda: (metrics.registry.get_sample_value("siprec_rtp_kernel_drops_total") or 0) > 0,
            "drops in the metrics",
        )


@with_ring
async def test_a_worker_that_is_started_again_goes_on_with_its_ring(tmp_path: Path) -> None:
    stream = spec(tmp_path)
    async with engine(ring=SIZE) as (media, events, metrics):
        port = (await media.open(stream)).rtp_port
        send(VOICE[:50], port)
        await received(metrics, 50)
        os.kill(media.pids[0], signal.SIGKILL)
        await eventually(lambda: "interrupted" in [one.name for one in events], "interrupted")
        send(VOICE[50:], port)
        (report,) = await media.close([stream.stream_id])

        assert media.receiver == "a ring"
    assert spooled(stream.spool) == VOICE
    assert report.packets == 50
