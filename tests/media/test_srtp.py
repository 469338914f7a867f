"""SRTP through a real worker process: plain on disk, closed to whoever has no key."""

import base64
import os
import signal
from pathlib import Path

import pytest

from harness.bridge import eventually
from harness.media import SESSION, engine, received, spec, spooled
from harness.rtp import packets, send, tone
from siprec_bridge.media import OfflineMedia, StreamSpec, finish_session
from siprec_bridge.receiver.control import decode, encode
from siprec_bridge.rtp import SrtpSender
from siprec_bridge.sdp import StreamKeys

SUITE = "AES_CM_128_HMAC_SHA1_80"
REMOTE, OTHER, LOCAL = bytes(range(30)), bytes(range(60, 90)), bytes(range(100, 130))


def secure(folder: Path, key: bytes = REMOTE) -> StreamSpec:
    return spec(folder, keys=StreamKeys(SUITE, key, LOCAL))


@pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])
async def test_the_spool_holds_what_was_sent_before_it_was_encrypted(
    tmp_path: Path, fast: bool
) -> None:
    plain = packets(tone(440, 2.0), first_sequence=65500)
    source = SrtpSender(SUITE, REMOTE)
    async with engine(fast=fast) as (media, _, metrics):
        port = await media.open(secure(tmp_path))
        locked = [source.protect(one) for one in plain]
        send([*locked, locked[50]], port.rtp_port)

        (report,) = await media.close([f"{SESSION}-0"])

    assert spooled(secure(tmp_path).spool) == plain
    assert (report.packets, report.duplicates, report.unauthenticated) == (100, 1, 0)
    assert report.malformed == 0
    assert metrics.registry.get_sample_value("siprec_rtp_packets_duplicate_total") == 1
    assert finish_session(tmp_path, SESSION, 8000).legs[0].duration == pytest.approx(2.0)


async def test_packets_under_another_key_are_counted_told_once_and_left_out(
    tmp_path: Path,
) -> None:
    plain = packets(tone(440, 1.0))
    wrong = SrtpSender(SUITE, OTHER)
    async with engine() as (media, events, metrics):
        port = await media.open(secure(tmp_path))
        send([wrong.protect(one) for one in plain[:30]], port.rtp_port)
        await eventually(lambda: bool(events), "an event")
        send([*plain[30:40], b"GET / HTTP/1.0\r\n\r\n"], port.rtp_port)

        (report,) = await media.close([f"{SESSION}-0"])

    assert (report.packets, report.unauthenticated, report.malformed) == (0, 40, 1)
    assert [one.name for one in events] == ["not_authentic"]
    assert metrics.registry.get_sample_value("siprec_srtp_packets_unauthenticated_total") == 40
    assert spooled(secure(tmp_path).spool) == []
    assert finish_session(tmp_path, SESSION, 8000).legs == ()


async def test_a_new_key_is_taken_over_and_the_same_one_changes_nothing(tmp_path: Path) -> None:
    plain = packets(tone(440, 3.0))
    first, second = SrtpSender(SUITE, REMOTE), SrtpSender(SUITE, OTHER)
    async with engine() as (media, _, _):
        port = await media.open(secure(tmp_path))
        send([first.protect(one) for one in plain[:50]], port.rtp_port)
        await media.update(secure(tmp_path))
        send([first.protect(one) for one in plain[50:100]], port.rtp_port)
        await media.update(secure(tmp_path, OTHER))
        send([second.protect(one) for one in plain[100:]], port.rtp_port)

        (report,) = await media.close([f"{SESSION}-0"])

    assert spooled(secure(tmp_path).spool) == plain
    assert report.unauthenticated == 0


async def test_a_worker_that_is_killed_has_the_key_and_the_counter_again(tmp_path: Path) -> None:
    plain = packets(tone(440, 4.0), first_sequence=65500)
    source = SrtpSender(SUITE, REMOTE)
    locked = [source.protect(one) for one in plain]
    async with engine() as (media, _, metrics):
        port = await media.open(secure(tmp_path))
        send(locked[:100], port.rtp_port)
        await received(metrics, 100)
        (first_pid,) = media.pids

        os.kill(first_pid, signal.SIGKILL)
        await eventually(lambda: media.alive == 1 and media.pids != (first_pid,), "a new worker")
        send(locked[100:], port.rtp_port)
        await received(metrics, 200)
        (report,) = await media.close([f"{SESSION}-0"])

    assert spooled(secure(tmp_path).spool) == plain
    assert report.unauthenticated == 0


async def test_a_stream_can_become_secure_and_plain_again(tmp_path: Path) -> None:
    plain = packets(tone(440, 3.0))
    source = SrtpSender(SUITE, REMOTE)
    async with engine() as (media, _, _):
        port = await media.open(spec(tmp_path))
        send(plain[:50], port.rtp_port)
        await media.update(secure(tmp_path))
        send([source.protect(one) for one in plain[50:100]], port.rtp_port)
        await media.update(spec(tmp_path))
        send(plain[100:], port.rtp_port)

        await media.close([f"{SESSION}-0"])

    assert spooled(secure(tmp_path).spool) == plain


async def test_keys_are_on_the_wire_to_the_worker_and_nowhere_else(tmp_path: Path) -> None:
    one = secure(tmp_path)
    async with engine() as (media, _, _):
        await media.open(one)
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    wire = encode({"spec": one.to_json()})
    assert StreamSpec.from_json(decode(wire)["spec"]) == one
    for key in (REMOTE, LOCAL):
        text = base64.b64encode(key)
        assert text in wire
        assert text not in files
        assert key not in files
        assert text.decode() not in repr(one)
        assert repr(key)[2:-1] not in repr(one)


async def test_what_is_replayed_is_decrypted_as_it_would_be_live(tmp_path: Path) -> None:
    plain = packets(tone(440, 1.0))
    first, second = SrtpSender(SUITE, REMOTE), SrtpSender(SUITE, OTHER)
    locked = [first.protect(one) for one in plain[:25]]
    locked += [second.protect(one) for one in plain[25:]]
    media = OfflineMedia(lambda: 1)
    await media.open(secure(tmp_path))
    for at, one in enumerate([*locked[:25], locked[3], locked[-1]], 1):
        media.receive(f"{SESSION}-0", one, at)
    await media.update(secure(tmp_path, OTHER))
    for at, one in enumerate(locked[25:], 100):
        media.receive(f"{SESSION}-0", one, at)

    (report,) = await media.close([f"{SESSION}-0"])

    assert spooled(secure(tmp_path).spool) == plain
    assert (report.packets, report.duplicates, report.unauthenticated) == (50, 1, 1)
