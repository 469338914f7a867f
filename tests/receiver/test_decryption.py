"""Secure streams in a worker's sweep, beside plain ones, with whatever else comes to their ports."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.media import opened, spec, spooled
from harness.rtp import send
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.rtp import SrtpSender, build_packet
from siprec_bridge.sdp import StreamKeys

SUITE, KEY = "AES_CM_128_HMAC_SHA1_80", bytes(range(30))


def voice(ssrc: int, numbers: range, size: int = 160) -> list[bytes]:
    return [build_packet(0, one, 160 * one, ssrc, bytes([one & 0xFF]) * size) for one in numbers]


def test_sources_that_take_turns_are_opened_as_one_is(tmp_path: Path, worker: Worker) -> None:
    secure, plain = spec(tmp_path, keys=StreamKeys(SUITE, KEY, KEY)), spec(tmp_path, 1)
    ports = opened(worker, secure), opened(worker, plain)
    sender = SrtpSender(SUITE, KEY)
    one, other, open_ones = voice(1, range(30)), voice(2, range(30), 40), voice(3, range(30))
    in_turns = [packet for both in zip(one, other, strict=True) for packet in both]
    changed = sender.protect(voice(1, range(30, 31))[0])[:-1] + b"\0"

    for start in range(0, 60, 20):
        sealed = [sender.protect(packet) for packet in in_turns[start : start + 20]]
        send([*sealed[:5], b"", b"\x80short", changed, *sealed[5:]], ports[0])
        send(open_ones[start // 2 : start // 2 + 10], ports[1])
        worker.sweep(time.monotonic())
    alone = voice(1, range(31, 51))
    send([sender.protect(packet) for packet in alone], ports[0])
    worker.sweep(time.monotonic())

    assert spooled(secure.spool) == [*in_turns, *alone]
    assert spooled(plain.spool) == open_ones
    (report,) = worker._close([secure.stream_id])
    assert (report.packets, report.unauthenticated, report.malformed) == (80, 3, 6)


@pytest.mark.parametrize(("suite", "mki"), [("AES_CM_128_HMAC_SHA1_32", 0), (SUITE, 4)])
def test_one_key_may_go_from_suite_to_suite_and_get_a_name(
    tmp_path: Path, worker: Worker, suite: str, mki: int
) -> None:
    one = spec(tmp_path, keys=StreamKeys(SUITE, KEY, KEY))
    port = opened(worker, one)
    before, after = voice(1, range(10)), voice(1, range(10, 20))
    first, then = SrtpSender(SUITE, KEY), SrtpSender(suite, KEY)
    send([first.protect(packet) for packet in before], port)
    worker.sweep(time.monotonic())

    worker._update(replace(one, keys=StreamKeys(suite, KEY, KEY, mki)))
    sealed = [then.protect(packet) for packet in after]
    named = [packet[:-10] + bytes(mki) + packet[-10:] for packet in sealed] if mki else sealed
    send(named, port)
    (report,) = worker._close([one.stream_id])

    assert spooled(one.spool) == [*before, *after]
    assert report.unauthenticated == 0
