"""RTP of real products, from the shared captures, through spool and finish."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from harness.codecs import context, hear, spool
from harness.rtp import read_wav
from siprec_bridge.media import FinishedAudio, finish_session
from siprec_bridge.receiver.packets import Datagram
from siprec_bridge.replay.traffic import Traffic
from siprec_bridge.sdp import Codec

PCAP = Path(os.environ.get("SIPREC_SHARED", Path(__file__).parents[3] / "shared")) / "corpus/pcap"
pytestmark = pytest.mark.skipif(not PCAP.is_dir(), reason="the corpus is not here")
KEYS = Codec(101, "TELEPHONE-EVENT", 8000)


def finished(folder: Path, name: str, rate: int) -> tuple[FinishedAudio, list[list[bytes]]]:
    """Each way of the capture's RTP as a stream; and its datagrams."""
    ways: dict[object, list[tuple[float, bytes]]] = defaultdict(list)
    first = None
    for one in Traffic(PCAP / f"{name}.pcap"):
        if isinstance(one, Datagram) and len(one.payload) > 12 and one.payload[0] >> 6 == 2:
            first = first or one.at_ns
            ways[one.source, one.destination].append(((one.at_ns - first) / 1e9, one.payload))
    streams = [sent for sent in ways.values() if len(sent) > 100]
    for index, sent in enumerate(streams):
        spool(folder, sent, (KEYS,), index)
    audio = finish_session(folder, "s", rate, "keep")
    return audio, [[data for _, data in sent] for sent in streams]


def test_g722_sounds_as_ffmpeg_plays_it(tmp_path: Path) -> None:
    audio, streams = finished(tmp_path, "miarec_10a_g722", 16000)

    assert audio.legs
    for leg, packets in zip(audio.legs, streams, strict=True):
        assert (leg.codecs, leg.native_rate, leg.undecoded) == (("G722",), 16000, 0)
        _, heard = read_wav(tmp_path / leg.file)
        expected = hear(context("g722", 16000), [one[12:] for one in packets])
        error = np.abs(heard[: len(expected)].astype(int) - expected[: len(heard)])
        assert error.max() <= 1
        assert leg.duration == pytest.approx(len(expected) / 16000, abs=0.1)


def test_keys_of_a_real_call_are_found(tmp_path: Path) -> None:
    audio, _ = finished(tmp_path, "miarec_09a_2833_dtmf", 8000)

    (leg,) = audio.legs
    assert "".join(one.key for one in leg.keys) == "123456789**0#"
    assert all(0.09 < one.duration < 0.13 for one in leg.keys)
    assert leg.keys[0].start == pytest.approx(15.69, abs=0.02)
    assert (leg.codecs, leg.foreign, leg.undecoded) == (("PCMU",), 0, 0)


def test_g711a_is_all_voice(tmp_path: Path) -> None:
    audio, streams = finished(tmp_path, "drachtio_g711a", 8000)

    assert sum(leg.packets for leg in audio.legs) == sum(map(len, streams))
    assert all(leg.codecs == ("PCMA",) and leg.undecoded == 0 for leg in audio.legs)
