"""What an SDP may hand to a worker that no honest one does: it costs the stream at most, and no call."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.hosts import has_ipv6
from harness.media import engine, opened, received, spec, spooled
from harness.ports import rtp_ports
from harness.rtp import packets, send, tone
from siprec_bridge.media import finish_session
from siprec_bridge.receiver.spool import SpoolEvent, SpoolReader
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.sdp import Codec, StreamKeys, parse, plan
from siprec_bridge.sdp.answer import MediaPolicy

VOICE = packets(tone(440, 0.4))


def offered(address: str, port: int = 5000, *more: str) -> tuple[str, int]:
    """Where the SRC of such an offer has its RTCP."""
    lines = ["v=0", f"c=IN IP6 {address}", f"m=audio {port} RTP/AVP 0", *more]
    (one,) = plan(parse("\r\n".join(lines).encode("utf-8", "surrogateescape")), MediaPolicy())
    assert one.accepted
    return one.rtcp


@pytest.mark.parametrize(
    ("host", "rtcp"),
    [
        ("127.0.0.1", offered("127.0.0.1", 65535)),
        ("127.0.0.1", offered("127.0.0.1", 5000, "a=rtcp:0")),
        ("::1", offered("fe80::1%é..")),
        ("::1", offered("fe80::1%\0")),
        ("::1", offered("fe80::1%\udc80")),
        ("::1", offered("::ffff:224.0.0.1")),
        ("::1", offered("::ffff:0.0.0.0")),
    ],
)
def test_nothing_is_sent_where_no_socket_can_send(
    tmp_path: Path, worker: Worker, host: str, rtcp: tuple[str, int]
) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    port = opened(worker, replace(spec(tmp_path, host=host), rtcp=rtcp))
    send(VOICE, port, host)

    worker.sweep(worker._feedback._due[0][0])

    (stream,) = worker._streams.values()
    assert stream.target in (None, ("fe80::1", 5001))  # of which no link is known
    assert worker._close(["s1-0"])[0].packets == len(VOICE)


def test_codecs_that_no_record_has_room_for_become_several(tmp_path: Path, worker: Worker) -> None:
    port = opened(worker, spec(tmp_path))
    send(VOICE[:10], port)
    many = tuple(Codec(number, "OPUS", 48000, 2, "é" * 200) for number in range(64, 128))
    codecs = (*many, Codec(8, "PCMA", 8000, 1, "é" * 30_000))

    worker._update(replace(spec(tmp_path), codecs=codecs))
    send(VOICE[10:], port)
    worker._close(["s1-0"])

    told = [one for one in SpoolReader(spec(tmp_path).spool) if isinstance(one, SpoolEvent)]
    known = [codec for one in told for codec in one.codecs]
    assert known == [*many, Codec(8, "PCMA", 8000)]
    assert spooled(spec(tmp_path).spool) == VOICE
    assert finish_session(tmp_path, "s1", 8000).legs[0].packets == len(VOICE)


async def test_what_a_worker_stumbles_over_costs_one_stream_and_not_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unknown = StreamKeys("AES_256_CM_HMAC_SHA1_80", bytes(46), bytes(46))
    good, bad = spec(tmp_path, home="127.0.0.1"), spec(tmp_path, 1, keys=unknown)
    async with engine(ports=rtp_ports(4)) as (media, events, metrics):
        pids, port = media.pids, await media.open(good)

        for _ in range(3):  # and holds no port
            with pytest.raises(OSError, match="KeyError: 'AES_256_CM_HMAC_SHA1_80'"):
                await media.open(bad)
        await media.open(spec(tmp_path, 1))
        send(VOICE, port.rtp_port)
        await received(metrics, len(VOICE))
        await media.close([good.stream_id, bad.stream_id])

        assert media.pids == pids
    assert [one.name for one in events] == ["started"]
    assert spooled(good.spool) == VOICE
    assert capfd.readouterr().err.count("Traceback") == 3  # for whoever is to mend it
