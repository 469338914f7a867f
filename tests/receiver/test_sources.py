"""Whose packets are recorded: the SRC's, wherever a NAT has put it, and no stranger's."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.media import SESSION, engine, opened, received, spec, spooled
from harness.ports import rtp_ports
from harness.rtp import packets, tone
from siprec_bridge.media import finish_session
from siprec_bridge.receiver import sources
from siprec_bridge.receiver.control import Configuration, SourcePolicy
from siprec_bridge.receiver.sweep import address_of, shield, source_of
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.rtp import SrtpSender
from siprec_bridge.sdp import StreamKeys

HOME, PEER, STRANGER, OTHER = "127.0.0.1", "127.0.0.5", "127.0.0.2", "127.0.0.3"
VOICE = packets(tone(440, 2.0))
NOISE = packets(tone(900, 2.0), ssrc=0x666)


@contextmanager
def worker(policy: SourcePolicy, *, fast: bool = True, timeout: float = 30.0) -> Iterator[Worker]:
    """A worker in this process, swept when the test says so."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one = Worker(theirs)
        one._configure(Configuration(*rtp_ports(), fast, timeout, policy))
        yield one
        one.stop()


def send(datagrams: list[bytes], port: int, host: str) -> None:
    """Send from an address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((host, 0))
        for datagram in datagrams:
            one.sendto(datagram, ("127.0.0.1", port))


def sweep(worker: Worker) -> None:
    worker.sweep(time.monotonic())


@pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])
@pytest.mark.parametrize(
    ("policy", "home", "peer", "sent", "kept"),
    [
        pytest.param("any", HOME, None, [STRANGER, HOME, OTHER], [STRANGER, HOME, OTHER], id="any"),
        pytest.param("signalled", HOME, None, [STRANGER, HOME, OTHER], [HOME], id="signalled"),
        pytest.param("signalled", HOME, PEER, [PEER, HOME], [HOME], id="signalled-not-sip"),
        pytest.param("signalled", "src.example", None, [STRANGER, OTHER], [STRANGER], id="name"),
        pytest.param("signalled", None, None, [STRANGER, OTHER], [STRANGER], id="nothing-yet"),
        pytest.param("learned", "10.0.0.9", None, [OTHER, STRANGER, OTHER], [OTHER, OTHER], id="nat"),
        pytest.param("learned", "10.0.0.9", PEER, [STRANGER, PEER, STRANGER], [STRANGER, PEER],
                     id="home-comes-after-a-stranger"),
        pytest.param("learned", HOME, PEER, [HOME, PEER, HOME], [HOME, PEER, HOME],
                     id="sdp-and-sip"),
        pytest.param("learned", HOME, None, [HOME, STRANGER, HOME], [HOME, HOME], id="learned"),
    ],
)  # fmt: skip
def test_who_is_recorded(
    tmp_path: Path,
    policy: SourcePolicy,
    home: str | None,
    peer: str | None,
    sent: list[str],
    kept: list[str],
    fast: bool,
) -> None:
    stream = spec(tmp_path, home=home, peer=peer)
    parts = [VOICE[10 * n : 10 * n + 10] for n in range(len(sent))]
    with worker(policy, fast=fast) as one:
        port = opened(one, stream)
        for part, host in zip(parts, sent, strict=True):
            send(part, port, host)
            sweep(one)
        (report,) = one._close([stream.stream_id])

    remaining = list(kept)
    expected = []
    for part, host in zip(parts, sent, strict=True):
        if remaining and host == remaining[0]:
            expected += part
            remaining.pop(0)
    assert spooled(stream.spool) == expected
    assert (report.packets, report.malformed) == (len(expected), 0)


def test_in_one_sweep_home_is_told_from_a_stranger_who_was_faster(tmp_path: Path) -> None:
    stream = spec(tmp_path, home=HOME)
    with worker("learned") as one:
        port = opened(one, stream)
        send(NOISE[:20], port, STRANGER)
        send(VOICE[:20], port, HOME)
        sweep(one)

        assert one._uplink.counters.strangers == 20
        one._close([stream.stream_id])
    assert spooled(stream.spool) == VOICE[:20]


def test_each_stream_of_a_sweep_has_its_own_strangers(tmp_path: Path) -> None:
    streams = [spec(tmp_path, index, home=HOME) for index in range(4)]
    with worker("learned") as one:
        ports = [opened(one, stream) for stream in streams]
        for number, port in enumerate(ports):
            if number != 1:
                send(NOISE[: 10 + number], port, STRANGER)
            send(VOICE[: 20 + number], port, HOME)
        sweep(one)

        strangers = [stream.strangers for stream in one._streams.values()]
        one._close([stream.stream_id for stream in streams])
    assert strangers == [10, 0, 12, 13]
    assert [spooled(stream.spool) for stream in streams] == [VOICE[: 20 + n] for n in range(4)]


def test_where_the_kernel_filters_nothing_strangers_are_kept_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "shield", lambda one, guests: False)
    stream = spec(tmp_path, home=HOME)
    with worker("signalled") as one:
        port = opened(one, stream)
        for datagrams, host in (
            (NOISE[:20], STRANGER), (VOICE[:20], HOME), (NOISE[20:40], STRANGER), (VOICE[20:], HOME),
        ):  # fmt: skip
            send(datagrams, port, host)
            sweep(one)

        counted = one._uplink.counters.strangers
        one._close([stream.stream_id])
    assert counted == 40
    assert spooled(stream.spool) == VOICE


def test_a_stray_packet_does_not_take_a_stream_from_its_source(tmp_path: Path) -> None:
    stream = spec(tmp_path, home="10.0.0.9")
    with worker("learned") as one:
        port = opened(one, stream)
        send(NOISE[:1], port, STRANGER)
        sweep(one)
        send(VOICE, port, OTHER)
        sweep(one)
        one._close([stream.stream_id])

    assert spooled(stream.spool) == [*NOISE[:1], *VOICE]


def test_a_source_may_change_its_port(tmp_path: Path) -> None:
    stream = spec(tmp_path, home="10.0.0.9")
    with worker("learned") as one:
        port = opened(one, stream)
        for start in range(0, 100, 20):
            send(VOICE[start : start + 20], port, OTHER)  # each time from another one
            sweep(one)
        one._close([stream.stream_id])

    assert spooled(stream.spool) == VOICE


def test_a_change_of_address_by_the_src_is_followed_and_the_old_one_is_a_stranger(
    tmp_path: Path,
) -> None:
    stream = spec(tmp_path, home=HOME)
    with worker("learned") as one:
        port = opened(one, stream)
        send(VOICE[:20], port, HOME)
        one._update(replace(stream, rtcp=(OTHER, 9)))
        send(VOICE[20:40], port, OTHER)
        sweep(one)
        send(NOISE[:20], port, HOME)
        sweep(one)
        one._close([stream.stream_id])

    assert spooled(stream.spool) == VOICE[:40]


def test_who_was_learned_and_is_silent_for_long_is_forgotten(tmp_path: Path) -> None:
    stream = spec(tmp_path, home="10.0.0.9")
    with worker("learned", timeout=5.0) as one:
        port = opened(one, stream)
        send(VOICE[:20], port, OTHER)
        sweep(one)
        send(NOISE[:20], port, STRANGER)
        sweep(one)
        one._look_for_silence(time.monotonic() + 6.0)
        send(VOICE[20:40], port, HOME)
        sweep(one)
        one._close([stream.stream_id])

    assert spooled(stream.spool) == VOICE[:40]


def test_only_who_has_the_key_is_learned(tmp_path: Path) -> None:
    suite, key = "AES_CM_128_HMAC_SHA1_80", bytes(range(30))
    stream = spec(tmp_path, home="10.0.0.9", keys=StreamKeys(suite, key, key))
    source = SrtpSender(suite, key)
    with worker("learned") as one:
        port = opened(one, stream)
        send(NOISE[:20], port, STRANGER)
        send([source.protect(packet) for packet in VOICE[:20]], port, OTHER)
        sweep(one)
        send(NOISE[20:40], port, STRANGER)
        sweep(one)
        send([source.protect(packet) for packet in VOICE[20:40]], port, OTHER)
        sweep(one)
        (report,) = one._close([stream.stream_id])

    assert spooled(stream.spool) == VOICE[:40]
    assert report.unauthenticated == 20


def test_rtcp_of_a_stranger_is_not_listened_to(tmp_path: Path) -> None:
    bye = b"\x81\xcb\0\x01\0\0\x12\x34"
    report = b"\x80\xc9\0\x01\0\0\x12\x34"
    stream = spec(tmp_path, home=HOME)
    with worker("learned") as one:
        port = opened(one, stream)
        send(VOICE[:20], port, HOME)
        sweep(one)
        send([report + bye], port + 1, STRANGER)
        send([report + bye], port, STRANGER)
        sweep(one)
        stranger_heard = one._streams[stream.stream_id].said_bye
        send([report + bye], port + 1, HOME)
        sweep(one)
        (told,) = one._close([stream.stream_id])

    assert not stranger_heard
    assert told.said_bye


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_a_source_is_an_address_without_a_port(host: str) -> None:
    source = source_of(host)

    assert source is not None
    assert address_of(source) == host
    assert source_of(f"::ffff:{host}" if "." in host else f"{host}%eth0") == source


@pytest.mark.parametrize("host", ["", "src.example.com", "0.0.0.0", "::", "224.0.0.1", "1.2.3"])
def test_what_is_no_host_is_no_source(host: str) -> None:
    assert source_of(host) is None


@pytest.mark.parametrize(
    ("host", "allowed", "comes"),
    [
        ("127.0.0.1", ["127.0.0.1"], True),
        ("127.0.0.1", ["10.0.0.1", "::1", "127.0.0.1"], True),
        ("127.0.0.1", ["127.0.0.2", "::1"], False),
        ("127.0.0.1", [], True),
        ("::1", ["::1"], True),
        ("::1", ["127.0.0.1", "2001:db8::1", "::1"], True),
        ("::1", ["127.0.0.1", "::2", "2001:db8::1"], False),
    ],
)
def test_the_kernel_keeps_out_all_but_the_allowed(
    host: str, allowed: list[str], comes: bool
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.bind((host, 0))
        one.setblocking(False)
        sources = [source_of(name) for name in ("10.9.9.9", *allowed)]
        known = [source for source in sources if source is not None]
        shield(one, known[:1])
        assert shield(one, known[1:]) == bool(allowed)

        one.sendto(b"x", one.getsockname())
        with contextlib.suppress(BlockingIOError):
            assert one.recv(10) == b"x"
            assert comes
            return
    assert not comes


@pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])
async def test_a_flood_from_a_stranger_takes_nothing_from_a_live_stream(
    tmp_path: Path, fast: bool
) -> None:
    over = threading.Event()
    sent = 0

    def flood(port: int) -> None:
        nonlocal sent
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((STRANGER, 0))
            while not over.is_set():
                for packet in NOISE:
                    one.sendto(packet, ("127.0.0.1", port))
                sent += len(NOISE)
                time.sleep(0.005)  # leaves the bridge a core

    async with engine(fast=fast) as (media, events, metrics):
        stream = spec(tmp_path, home=HOME)
        port = await media.open(stream)
        send(VOICE[:20], port.rtp_port, HOME)
        await received(metrics, 20)
        stranger = threading.Thread(target=flood, args=(port.rtp_port,))
        stranger.start()
        try:
            for start in range(20, 100, 5):
                send(VOICE[start : start + 5], port.rtp_port, HOME)
                await received(metrics, start + 5)
        finally:
            over.set()
            stranger.join()
        (report,) = await media.close([f"{SESSION}-0"])

        counted = metrics.registry.get_sample_value("siprec_rtp_packets_stranger_total") or 0
    assert spooled(stream.spool) == VOICE
    assert (report.packets, report.lost, report.kernel_drops, report.malformed) == (100, 0, 0, 0)
    assert sent > 5000
    assert 0.5 * sent < counted <= sent
    assert [one.name for one in events] == ["started"]


async def test_random_and_cut_datagrams_do_no_harm(tmp_path: Path) -> None:
    chance = random.Random(7)
    rubbish = [chance.randbytes(chance.randrange(1600)) for _ in range(300)]
    rubbish += [VOICE[0][:length] for length in range(len(VOICE[0]))]
    rubbish += [
        bytes([0x80 | chance.randrange(64), chance.randrange(256)]) + chance.randbytes(size)
        for size in range(0, 300, 2)
    ]
    stream = spec(tmp_path, home=HOME)
    async with engine() as (media, _, metrics):
        port = await media.open(stream)
        pids = media.pids
        for start in range(0, len(rubbish), 60):
            send(rubbish[start : start + 60], port.rtp_port, HOME)
            send(rubbish[start : start + 60], port.rtcp_port, HOME)
            send(VOICE[start // 60 : start // 60 + 1], port.rtp_port, HOME)
            await received(metrics, start // 60 + 1)
        (report,) = await media.close([f"{SESSION}-0"])

        assert media.pids == pids
        assert metrics.registry.get_sample_value("siprec_media_worker_restarts_total") == 0
    kept = spooled(stream.spool)
    rounds = -(-len(rubbish) // 60)
    assert [one for one in kept if one in VOICE] == VOICE[:rounds]
    assert report.malformed > 300
    assert finish_session(tmp_path, SESSION, 8000).legs[0].packets >= rounds
