"""DTLS-SRTP through a real worker process, with a client that handshakes as an SRC does."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.bridge import eventually
from harness.media import engine, received, spec, spooled
from harness.rtp import packets, send, tone
from siprec_bridge.dtls import Certificate, Client
from siprec_bridge.media import DtlsTask, OfflineMedia, StreamSpec
from siprec_bridge.receiver.control import SWEEP_S, decode, encode
from siprec_bridge.rtp import SrtpSender
from siprec_bridge.sdp import Fingerprint, StreamKeys

OURS, THEIRS, OTHER = Certificate.make(), Certificate.make(), Certificate.make()
VOICE = packets(tone(440, 2.0))
BYE = bytes.fromhex("80c9000100000005") + bytes.fromhex("81cb000100001234")


def secure(
    folder: Path, *named: Fingerprint, mux: bool = True, home: str | None = "127.0.0.1"
) -> StreamSpec:
    task = DtlsTask(named or (THEIRS.fingerprint,), OURS.pem)
    return replace(spec(folder, home=home), dtls=task, rtcp_mux=mux)


def handshake(port: int, certificate: Certificate = THEIRS) -> StreamKeys | str:
    """What a client agrees on with a port, or why it does not."""
    association = Client(certificate.pem).greet([OURS.fingerprint])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.1)
        one.connect(("127.0.0.1", port))
        out, until = association.advance(), time.monotonic() + 10
        while time.monotonic() < until:
            for datagram in out:
                one.send(datagram)
            if association.failure is not None:
                return association.failure
            if association.keys is not None:
                return association.keys
            try:
                out = association.receive(one.recv(2048))
            except TimeoutError:
                out = association.advance()
    return "nobody answers"


def keys_of(port: int, certificate: Certificate = THEIRS) -> StreamKeys:
    found = handshake(port, certificate)
    assert isinstance(found, StreamKeys), found
    return found


def locked(voice: Sequence[bytes], keys: StreamKeys) -> list[bytes]:
    sender = SrtpSender(keys.suite, keys.local)
    return [sender.protect(one) for one in voice]


@pytest.mark.parametrize("fast", [True, False], ids=["recvmmsg", "plain"])
async def test_what_comes_after_the_handshake_is_recorded_and_what_comes_before_is_counted(
    tmp_path: Path, fast: bool
) -> None:
    stream = secure(tmp_path)
    async with engine(fast=fast) as (media, events, metrics):
        port = (await media.open(stream)).rtp_port
        send(VOICE[:10], port)  # also in the clear: nobody may say that it is the call

        keys = keys_of(port)
        send(locked(VOICE, keys), port)
        await received(metrics, 100)
        (report,) = await media.close([stream.stream_id])

        sample = metrics.registry.get_sample_value
        assert sample("siprec_dtls_handshakes_total", {"outcome": "done"}) == 1
        assert sample("siprec_srtp_packets_unauthenticated_total") == 10
    assert spooled(stream.spool) == VOICE
    assert (report.packets, report.unauthenticated, report.malformed) == (100, 10, 0)
    assert [one.name for one in events] == ["keyed", "started"]


async def test_a_handshake_does_not_wait_for_sweeps(tmp_path: Path) -> None:
    took: list[float] = []
    async with engine() as (media, _, _):
        # Of three answers the later two would come a whole sweep after the one before.
        while len(took) < 10 and min(took, default=9.0) > 1.9 * SWEEP_S:
            one = replace(secure(tmp_path), stream_id=f"s1-{len(took)}")
            port = (await media.open(one)).rtp_port
            begun = time.monotonic()
            keys_of(port)
            took.append(time.monotonic() - begun)
            await media.close([one.stream_id])

    assert min(took) <= 1.9 * SWEEP_S


async def test_another_certificate_gets_nothing_recorded_and_is_told_once(tmp_path: Path) -> None:
    stream = secure(tmp_path)
    async with engine() as (media, events, metrics):
        port = (await media.open(stream)).rtp_port
        for _ in range(2):
            handshake(port, OTHER)
        send(VOICE, port)
        (report,) = await media.close([stream.stream_id])

        sample = metrics.registry.get_sample_value
        assert sample("siprec_dtls_handshakes_total", {"outcome": "failed"}) == 2
    assert [(one.name, one.cause) for one in events] == [
        ("handshake_failed", "its certificate is not the one of the SDP")
    ]
    assert (report.packets, report.unauthenticated) == (0, 100)
    assert spooled(stream.spool) == []


async def test_a_stranger_s_handshakes_take_nothing_from_the_one_that_is_meant(
    tmp_path: Path,
) -> None:
    stream = secure(tmp_path)
    async with engine() as (media, _, _):
        port = (await media.open(stream)).rtp_port
        handshake(port, OTHER)
        keys = keys_of(port)
        send(locked(VOICE[:50], keys), port)
        handshake(port, OTHER)
        send(locked(VOICE, keys)[50:], port)
        (report,) = await media.close([stream.stream_id])

    assert spooled(stream.spool) == VOICE
    assert report.unauthenticated == 0


async def test_rtcp_on_a_port_of_its_own_has_an_association_of_its_own(tmp_path: Path) -> None:
    stream = secure(tmp_path, mux=False)
    async with engine() as (media, _, _):
        port = await media.open(stream)
        of_rtp, of_rtcp = keys_of(port.rtp_port), keys_of(port.rtcp_port)
        assert of_rtp.local != of_rtcp.local
        send(locked(VOICE, of_rtp), port.rtp_port)
        wrong = SrtpSender(of_rtp.suite, of_rtp.local).protect_rtcp(BYE)
        right = SrtpSender(of_rtcp.suite, of_rtcp.local).protect_rtcp(BYE)
        send([wrong, right], port.rtcp_port)
        (report,) = await media.close([stream.stream_id])

    assert report.said_bye
    assert (report.packets, report.unauthenticated) == (100, 1)


async def test_the_same_fingerprint_keeps_the_association_and_another_makes_a_new_one(
    tmp_path: Path,
) -> None:
    stream, changed = secure(tmp_path), secure(tmp_path, OTHER.fingerprint)
    async with engine() as (media, _, metrics):
        port = (await media.open(stream)).rtp_port
        first = keys_of(port)
        before = locked(VOICE[:60], first)
        send(before[:30], port)
        await media.update(stream)
        send(before[30:50], port)
        await media.update(changed)
        send(before[50:], port)  # on its way while the new keys are made
        await received(metrics, 60)
        assert handshake(port, THEIRS) != first
        second = keys_of(port, OTHER)
        send(locked(VOICE[60:], second), port)
        (report,) = await media.close([stream.stream_id])

    assert spooled(stream.spool) == VOICE
    assert report.unauthenticated == 0


async def test_a_stream_goes_from_keys_in_sdp_to_dtls_and_to_none(tmp_path: Path) -> None:
    told = StreamKeys("AES_CM_128_HMAC_SHA1_80", bytes(range(30)), bytes(30))
    stream = secure(tmp_path)
    async with engine() as (media, _, metrics):
        port = (await media.open(replace(stream, dtls=None, keys=told))).rtp_port
        sender = SrtpSender(told.suite, told.remote)
        send([sender.protect(one) for one in VOICE[:30]], port)
        await received(metrics, 30)
        await media.update(stream)
        send(locked(VOICE[30:60], keys_of(port)), port)
        await received(metrics, 60)
        await media.update(replace(stream, dtls=None))
        send(VOICE[60:], port)
        (report,) = await media.close([stream.stream_id])

    assert spooled(stream.spool) == VOICE
    assert report.unauthenticated == 0


async def test_a_worker_that_is_killed_goes_on_with_the_keys(tmp_path: Path) -> None:
    stream = secure(tmp_path, mux=False)
    async with engine() as (media, _, metrics):
        port = await media.open(stream)
        keys, of_rtcp = keys_of(port.rtp_port), keys_of(port.rtcp_port)
        voice = locked(VOICE, keys)
        send(voice[:50], port.rtp_port)
        await received(metrics, 50)
        (pid,) = media.pids

        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: media.alive == 1 and media.pids != (pid,), "a new worker")
        send(voice[50:], port.rtp_port)
        send([SrtpSender(of_rtcp.suite, of_rtcp.local).protect_rtcp(BYE)], port.rtcp_port)
        await received(metrics, 100)
        (report,) = await media.close([stream.stream_id])

    assert spooled(stream.spool) == VOICE
    assert (report.unauthenticated, report.said_bye) == (0, True)


async def test_floods_of_greetings_and_rubbish_harm_nobody(tmp_path: Path) -> None:
    (hello,) = Client(OTHER.pem).greet([OURS.fingerprint]).advance()
    rubbish = [hello[:length] for length in range(0, len(hello), 3)]
    rubbish += [bytes([kind]) + os.urandom(60) for kind in range(20, 64)] * 5
    stream = secure(tmp_path, mux=False)
    async with engine() as (media, _, metrics):
        port = await media.open(stream)
        pids = media.pids
        send([hello] * 300 + rubbish, port.rtp_port)
        send(rubbish, port.rtcp_port)
        keys = keys_of(port.rtp_port)
        send([*rubbish, hello], port.rtp_port)
        send(locked(VOICE, keys), port.rtp_port)
        await received(metrics, 100)
        (report,) = await media.close([stream.stream_id])
        assert media.pids == pids

    assert spooled(stream.spool) == VOICE
    assert report.kernel_drops == 0


async def test_keys_and_certificate_are_on_the_wire_to_the_worker_and_nowhere_else(
    tmp_path: Path,
) -> None:
    stream = secure(tmp_path)
    async with engine() as (media, events, _):
        port = (await media.open(stream)).rtp_port
        keys = keys_of(port)
        send(locked(VOICE, keys), port)
        await media.close([stream.stream_id])
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert StreamSpec.from_json(decode(encode({"spec": stream.to_json()}))["spec"]) == stream
    told = repr((replace(stream, keys=keys, rtcp_keys=keys), events)).encode()
    for secret in (keys.local, keys.remote, OURS.pem.splitlines()[1]):
        assert secret not in files
        assert repr(secret)[2:-1].encode() not in told


async def test_of_a_capture_nothing_is_taken_for_audio(tmp_path: Path) -> None:
    stream = secure(tmp_path)
    media = OfflineMedia(lambda: 1)
    await media.open(stream)
    for at, one in enumerate(VOICE, 1):
        media.receive(stream.stream_id, one, at)

    (report,) = await media.close([stream.stream_id])

    assert (report.packets, report.unauthenticated) == (0, 100)
