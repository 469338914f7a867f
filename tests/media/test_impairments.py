"""Calls over bad networks: what came is in its place to the sample, and what did not is known."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from harness.codecs import paced, spool, streams
from harness.rtp import packets, read_wav
from siprec_bridge.media import finish_session
from siprec_bridge.sdp import Codec

STREAMS = streams()
PCMU = Codec(0, "PCMU", 8000)
PACKETS = 1000  # of 20 ms
SIZE = 160  # samples of each


@dataclass(frozen=True)
class Network:
    """What it does to packets; shares of them, and seconds."""

    loss: float = 0.0
    burst: int = 1  # packets that are lost together
    late: float = 0.0  # so many come 70 ms after their turn
    twice: float = 0.0
    jitter: float = 0.0  # each is late by up to this

    def carry(self, sent: list[tuple[float, bytes]]) -> tuple[list[tuple[float, bytes]], set[int]]:
        """What arrives and when, and the places of what was lost; the first and the last arrive."""
        chance = random.Random(7)
        lost: set[int] = set()
        while len(lost) < round(self.loss * len(sent)):
            start = chance.randrange(1, len(sent) - self.burst)
            lost |= set(range(start, start + self.burst))
        arriving = []
        for number, (at, data) in enumerate(sent):
            if number not in lost:
                delay = chance.uniform(0, self.jitter) + 0.07 * (chance.random() < self.late)
                arriving.append((at + delay, data))
                if chance.random() < self.twice:
                    arriving.append((at + delay + chance.uniform(0, 0.1), data))
        return sorted(arriving, key=lambda one: one[0]), lost


networks = pytest.mark.parametrize(
    "network",
    [
        Network(),
        Network(loss=0.01),
        Network(loss=0.05),
        Network(loss=0.2),
        Network(loss=0.05, burst=15),
        Network(late=0.1),
        Network(twice=0.1),
        Network(jitter=0.3),
        Network(loss=0.05, burst=3, late=0.05, twice=0.05, jitter=0.3),
    ],
    ids=["good", "1 %", "5 %", "20 %", "bursts", "reordered", "twice", "jitter", "all of it"],
)


@networks
def test_what_came_is_in_its_place_and_what_did_not_is_silence_and_on_the_map(
    tmp_path: Path, network: Network
) -> None:
    noise = np.random.default_rng(3).normal(0, 3000, PACKETS * SIZE).astype(np.int16)
    sent = [(0.02 * n, one) for n, one in enumerate(packets(noise))]
    (tmp_path / "as sent").mkdir()
    spool(tmp_path / "as sent", sent, (PCMU,))
    (whole,) = finish_session(tmp_path / "as sent", "s", 8000).legs
    _, wanted = read_wav(tmp_path / "as sent" / whole.file)
    arriving, lost = network.carry(sent)
    spool(tmp_path, arriving, (PCMU,))

    (leg,) = finish_session(tmp_path, "s", 8000).legs

    blocks = read_wav(tmp_path / leg.file)[1].reshape(PACKETS, SIZE)
    expected = wanted.reshape(PACKETS, SIZE).copy()
    expected[sorted(lost)] = 0
    assert np.flatnonzero((blocks != expected).any(axis=1)).tolist() == []
    assert (leg.packets, leg.discontinuities) == (len(arriving), 0)
    assert leg.covered is not None
    assert leg.covered.captured == pytest.approx(0.02 * (PACKETS - len(lost)))
    missing = json.loads((tmp_path / "s-0.loss.json").read_text())["missing"]
    assert missing_packets(missing) == lost


def missing_packets(missing: list[tuple[float, float]]) -> set[int]:
    """Their places, by start and length of the gaps."""
    return {
        number
        for start, length in missing
        for number in range(round(start / 0.02), round((start + length) / 0.02))
    }


@networks
@pytest.mark.parametrize("name", ["G722", "G729", "Opus"])
def test_a_codec_with_a_memory_keeps_the_call_s_length_and_goes_on_speaking(
    tmp_path: Path, network: Network, name: str
) -> None:
    stream = STREAMS[name]
    arriving, lost = network.carry(paced(stream))
    spool(tmp_path, arriving, (stream.codec,))

    (leg,) = finish_session(tmp_path, "s", stream.rate).legs

    _, heard = read_wav(tmp_path / leg.file)
    assert len(heard) == len(stream.pcm)
    assert (leg.undecoded, leg.discontinuities) == (0, 0)
    size = len(heard) // len(stream.payloads)
    there = [n for n in range(len(stream.payloads)) if n not in lost]
    loud = [n for n in there if np.abs(stream.pcm[n * size : (n + 1) * size]).max() > 1000]
    still = [n for n in loud if not heard[n * size : (n + 1) * size].any()]
    assert (len(loud) > 10, still) == (True, [])
