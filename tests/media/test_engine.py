"""Streams through a real worker process: over real sockets onto the disk and into WAVs."""

import asyncio
import os
import resource
import signal
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.bridge import eventually
from harness.media import SESSION, engine, received, spec
from harness.ports import rtp_ports
from harness.rtp import loudest_frequency, packets, read_wav, send, tone
from siprec_bridge.media import (
    MediaEvent,
    NoPortLeft,
    StreamReport,
    finish_session,
)
from siprec_bridge.receiver import sweep
from siprec_bridge.receiver.arena import Arena


@pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])
async def test_each_tone_ends_on_its_own_wav_with_its_own_length(
    tmp_path: Path, fast: bool
) -> None:
    async with engine(fast=fast) as (media, _, _):
        first = await media.open(spec(tmp_path, 0))
        second = await media.open(spec(tmp_path, 1))
        send(packets(tone(440, 2.0)), first.rtp_port)
        send(packets(tone(1000, 3.0), codec="PCMA"), second.rtp_port)

        reports = await media.close([f"{SESSION}-0", f"{SESSION}-1"])

        assert media.receiver == f"sockets, {'in batches' if fast else 'packet by packet'}"
    assert [one.packets for one in reports] == [100, 150]
    assert [(one.lost, one.kernel_drops) for one in reports] == [(0, 0), (0, 0)]
    audio = finish_session(tmp_path, SESSION, 16000)
    for leg, frequency, seconds in zip(audio.legs, (440, 1000), (2.0, 3.0), strict=True):
        rate, pcm = read_wav(tmp_path / leg.file)
        assert rate == 16000
        assert len(pcm) / rate == pytest.approx(seconds, abs=0.02)
        assert leg.duration == pytest.approx(seconds, abs=0.02)
        assert loudest_frequency(pcm, rate) == pytest.approx(frequency, abs=5)
    assert audio.stereo is not None
    rate, both = read_wav(tmp_path / audio.stereo)
    assert loudest_frequency(both[:8000, 0], rate) == pytest.approx(440, abs=5)
    assert loudest_frequency(both[:8000, 1], rate) == pytest.approx(1000, abs=5)


async def test_loss_reordering_and_duplicates_are_counted_and_leave_the_right_length(
    tmp_path: Path,
) -> None:
    sent = packets(tone(440, 4.0), first_sequence=65500, first_timestamp=2**32 - 8000)
    lossy = [*sent[:50], *sent[60:100], sent[101], sent[100], sent[101], *sent[102:]]
    async with engine() as (media, _, metrics):
        port = await media.open(spec(tmp_path))
        send(lossy, port.rtp_port)

        (report,) = await media.close([f"{SESSION}-0"])

    assert (report.lost, report.duplicates, report.reordered) == (10, 1, 1)
    assert metrics.registry.get_sample_value("siprec_rtp_packets_lost_total") == 10
    assert metrics.registry.get_sample_value("siprec_streams_with_loss_total") == 1
    (leg,) = finish_session(tmp_path, SESSION, 8000).legs
    rate, pcm = read_wav(tmp_path / leg.file)
    assert len(pcm) == 4 * rate
    assert not pcm[50 * 160 : 60 * 160].any()
    assert pcm[60 * 160 :].any()


async def test_a_killed_worker_is_replaced_and_the_stream_goes_on_at_its_port(
    tmp_path: Path,
) -> None:
    sent = packets(tone(440, 4.0))
    async with engine() as (media, _, metrics):
        port = await media.open(spec(tmp_path))
        send(sent[:100], port.rtp_port)
        await received(metrics, 100)
        (first_pid,) = media.pids

        os.kill(first_pid, signal.SIGKILL)
        await eventually(lambda: media.alive == 1 and media.pids != (first_pid,), "a new worker")
        send(sent[100:], port.rtp_port)
        await received(metrics, 200)

        await media.close([f"{SESSION}-0"])
        restarts = metrics.registry.get_sample_value("siprec_media_worker_restarts_total")
    assert restarts == 1
    (leg,) = finish_session(tmp_path, SESSION, 8000).legs
    assert leg.packets == 200
    assert 4.0 <= leg.duration < 4.0 + 30


async def test_what_is_sent_while_paused_is_not_kept(tmp_path: Path) -> None:
    sent = packets(tone(440, 3.0))
    async with engine() as (media, _, _):
        port = await media.open(spec(tmp_path))
        send(sent[:50], port.rtp_port)
        await media.pause(f"{SESSION}-0", True, datetime.now(UTC))
        send(sent[50:100], port.rtp_port)
        await media.pause(f"{SESSION}-0", False, datetime.now(UTC))
        send(sent[100:], port.rtp_port)

        (report,) = await media.close([f"{SESSION}-0"])

    (leg,) = finish_session(tmp_path, SESSION, 8000).legs
    _, pcm = read_wav(tmp_path / leg.file)
    assert (report.packets, report.lost) == (100, 0)
    assert len(pcm) == 24000
    assert pcm[:8000].any()
    assert not pcm[8000:16000].any()
    assert pcm[16000:].any()


async def test_a_full_range_of_ports_is_said_so_and_a_closed_one_is_free_again(
    tmp_path: Path,
) -> None:
    first, last = rtp_ports(4)
    async with engine(ports=(first, last)) as (media, _, _):
        await media.open(spec(tmp_path, 0))
        await media.open(spec(tmp_path, 1))

        with pytest.raises(NoPortLeft):
            await media.open(spec(tmp_path, 2))

        await media.close([f"{SESSION}-0"])
        assert (await media.open(spec(tmp_path, 2))).rtp_port == first


async def test_a_stream_that_never_speaks_is_reported(tmp_path: Path) -> None:
    async with engine(rtp_timeout=0.3) as (media, events, _):
        await media.open(spec(tmp_path))

        await eventually(lambda: bool(events), "an event")

        reports = await media.close([f"{SESSION}-0"])
    assert [(one.name, one.label) for one in events] == [("silent", "1")]
    assert reports == [StreamReport(f"{SESSION}-0")]
    assert finish_session(tmp_path, SESSION, 16000).legs == ()


async def test_what_is_no_rtp_is_counted_and_left_out(tmp_path: Path) -> None:
    async with engine() as (media, _, metrics):
        port = await media.open(spec(tmp_path))
        send([b"", b"x", b"\x80" * 5, b"GET / HTTP/1.0\r\n\r\n", *packets(tone(440, 0.1))],
             port.rtp_port)  # fmt: skip

        (report,) = await media.close([f"{SESSION}-0"])

    assert (report.packets, report.malformed) == (5, 4)
    assert metrics.registry.get_sample_value("siprec_rtp_packets_malformed_total") == 4


@pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])
async def test_what_the_kernel_had_no_room_for_is_counted(
    tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena()
    receiver = sweep.best_receiver(arena, fast=fast)
    monkeypatch.setattr(sweep, "_RECEIVE_BUFFER", 4096)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        sweep.prepare(one)
        send(packets(tone(440, 4.0)), one.getsockname()[1])
        (first,) = receiver.receive([one], 0, arena)
        before = arena.drops[:first].tolist()
        send(packets(tone(440, 0.02)), one.getsockname()[1])
        (second,) = receiver.receive([one], 0, arena)

    assert 0 < first < 200
    assert set(before) == {-1}  # told with what comes after them
    assert arena.drops[:second].tolist() == [200 - first]


async def test_stopping_the_engine_makes_open_streams_durable(tmp_path: Path) -> None:
    async with engine() as (media, _, _):
        port = await media.open(spec(tmp_path))
        send(packets(tone(440, 1.0)), port.rtp_port)

    assert finish_session(tmp_path, SESSION, 8000).legs[0].packets == 50


async def test_streams_open_side_by_side(tmp_path: Path) -> None:
    async with engine() as (media, _, _):
        opened = await asyncio.gather(*(media.open(spec(tmp_path, n)) for n in range(40)))

        assert len({port.rtp_port for port in opened}) == 40
        assert all(port.rtp_port % 2 == 0 for port in opened)


async def test_an_opening_that_nobody_waits_for_gives_its_port_back(tmp_path: Path) -> None:
    first, last = rtp_ports(2)
    async with engine(ports=(first, last)) as (media, _, _):
        opening = asyncio.create_task(media.open(spec(tmp_path, 0)))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)

        assert opening.cancelled()
        assert (await media.open(spec(tmp_path, 1))).rtp_port == first


async def test_a_listener_that_fails_on_an_event_does_not_end_the_recording(
    tmp_path: Path,
) -> None:
    seen: list[str] = []

    def fail(event: MediaEvent) -> None:
        seen.append(event.name)
        raise RuntimeError("a mistake of ours")

    async with engine(on_event=fail) as (media, _, metrics):
        port = await media.open(spec(tmp_path))
        send(packets(tone(440, 1.0)), port.rtp_port)
        await received(metrics, 50)

        (report,) = await media.close([f"{SESSION}-0"])
    assert seen == ["learned", "started"]
    assert report.packets == 50


async def test_a_low_soft_limit_of_file_descriptors_is_raised(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        async with engine() as (media, _, _):
            await asyncio.gather(*(media.open(spec(tmp_path, n)) for n in range(60)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
