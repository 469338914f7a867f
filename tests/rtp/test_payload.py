"""Payloads taken apart; keys; positions where the RTP clock changes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.rtp import Frame, KeyReader, MalformedPayload, Timeline, unpacker
from siprec_bridge.sdp import RECORDABLE

SECOND = 1_000_000_000
FRAMED = sorted(set(RECORDABLE) - {"PCMU", "PCMA", "L16"})


def unpacked(name: str, payload: bytes, **parameters: str) -> list[Frame]:
    unpack = unpacker(name, parameters)
    assert unpack is not None
    return unpack(payload)


@pytest.mark.parametrize(
    ("name", "payload", "parameters", "lengths"),
    [
        ("G722", bytes(160), {}, [320]),
        ("G726-32", bytes(80), {}, [160]),
        ("AAL2-G726-24", bytes(60), {}, [160]),
        ("GSM", bytes(66), {}, [160, 160]),
        ("G729", bytes(22), {}, [80, 80, 80]),
        ("G729", bytes(2), {}, [80]),
        ("G723", b"\0" + bytes(23) + b"\1" + bytes(19) + b"\2\0\0\0", {}, [240, 240, 240]),
        ("ILBC", bytes(50), {}, [240]),
        ("ILBC", bytes(38), {}, [160]),
        ("ILBC", bytes(1900), {"mode": "20"}, [160] * 50),
        ("OPUS", b"\x08", {}, [960]),
        ("OPUS", b"\xfb\x03", {}, [2880]),
        ("AMR", b"\xf7\xc0", {}, [160]),
        ("AMR", b"\xf0\xfc\x7c", {"octet-align": "1"}, [160, 160]),
    ],
)
def test_payloads_have_frames(
    name: str, payload: bytes, parameters: dict[str, str], lengths: list[int]
) -> None:
    assert [one.samples for one in unpacked(name, payload, **parameters)] == lengths


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("GSM", bytes(32)),
        ("G729", bytes(11)),
        ("G723", bytes(23)),
        ("ILBC", bytes(49)),
        ("OPUS", b""),
        ("OPUS", b"\xfb\x3f"),  # 63 frames of 20 ms
        ("AMR", b"\xf0"),
        ("AMR", b"\xff\xff\xff"),
        ("AMR-WB", b"\xf0\x00"),
    ],
)
def test_what_is_no_payload_is_refused(name: str, payload: bytes) -> None:
    with pytest.raises(MalformedPayload):
        unpacked(name, payload)


@given(st.sampled_from(FRAMED), st.binary(max_size=300), st.booleans())
def test_any_payload_is_frames_or_malformed(name: str, payload: bytes, aligned: bool) -> None:
    try:
        frames = unpacked(name, payload, **({"octet-align": "1"} if aligned else {}))
    except MalformedPayload:
        return
    assert all(one.samples >= 0 for one in frames)
    assert sum(len(one.data) for one in frames) <= len(payload) + len(frames)


@given(st.permutations([(0, 160), (0, 320), (0, 480), (800, 160), (800, 400), (1600, 80)]))
def test_keys_are_the_same_in_whatever_order_their_packets_come(
    packets: list[tuple[int, int]],
) -> None:
    keys = KeyReader()

    for start, duration in [*packets, *packets]:
        keys.take(1, start, 0, bytes([5, 0x80]) + duration.to_bytes(2, "big"), 8000)

    assert sorted((one.timestamp, one.duration) for one in keys.events) == [
        (0, 480),
        (800, 400),
        (1600, 80),
    ]


def pressed(
    keys: KeyReader, key: int, start: int, duration: int, ssrc: int = 1, more: bytes = b""
) -> None:
    payload = bytes([key, 0x80]) + duration.to_bytes(2, "big") + more
    keys.take(ssrc, start, 0, payload, 8000)


def test_a_key_is_told_from_another_by_its_source_its_name_and_its_time() -> None:
    keys = KeyReader()

    pressed(keys, 5, 0, 400)
    pressed(keys, 5, 0, 480, ssrc=2)
    pressed(keys, 6, 0, 560)
    pressed(keys, 5, 800, 640)
    # As far on as a long key's next segment, but that one was short.
    pressed(keys, 5, 0xFFFF, 720)
    pressed(keys, 5, 0, 800, more=b"\xff\xff")  # padding, or what a later standard adds

    assert [(one.key, one.ssrc, one.timestamp, one.duration) for one in keys.events] == [
        ("5", 1, 0, 800),
        ("5", 2, 0, 480),
        ("6", 1, 0, 560),
        ("5", 1, 800, 640),
        ("5", 1, 0xFFFF, 720),
    ]


def test_keys_without_end_are_noise_beyond_what_anybody_presses() -> None:
    keys = KeyReader()

    for number in range(10_050):
        pressed(keys, 1, 1000 * number, 80)

    assert len(keys.events) == 10_000


def place(line: Timeline, first: float, clock: int, timestamp: int, number: int) -> list[int]:
    """Ten packets of 20 ms."""
    step, unit = clock // 50, line.clock_rate
    positions = line.place(
        np.array([timestamp + step * one for one in range(10)], np.uint32),
        np.array([number + one for one in range(10)], np.uint16),
        np.ones(10, np.uint32),
        np.array([round((first + 0.02 * one) * SECOND) for one in range(10)], np.int64),
        np.full(10, unit // 50, np.int64),
        rtp_clock=clock,
    )
    return [int(one) for one in positions]


def test_clocks_of_several_rates_share_a_line() -> None:
    line = Timeline(14_112_000)
    unit = line.clock_rate // 50

    positions = [
        *place(line, 5.0, 8000, 77, 1),
        *place(line, 5.2, 48000, 2**31, 11),
        *place(line, 5.4, 44100, 9, 21),
    ]

    assert positions[0] == 0
    assert all(after - before == unit for before, after in pairwise(positions))
    assert line.discontinuities == 2


def test_a_timestamp_is_located_by_its_source_or_else_by_its_arrival() -> None:
    line = Timeline(48000)
    place(line, 5.0, 8000, 1000, 1)

    by_source = line.locate(1000 + 800, 1, round(5.3 * SECOND), 8000)
    of_a_stranger = line.locate(1000 + 800, 2, round(5.3 * SECOND), 8000)
    of_another_clock = line.locate(1000 + 800, 1, round(5.3 * SECOND), 48000)
    out_of_its_mind = line.locate(2**30, 1, round(5.3 * SECOND), 8000)

    assert by_source == 4800
    assert of_a_stranger == of_another_clock == out_of_its_mind == round(0.3 * 48000)


@pytest.mark.parametrize("step_s", [-7200.0, 48 * 3600.0], ids=["back", "ahead"])
def test_an_arrival_after_the_clock_was_set_lies_where_it_would_have_been(step_s: float) -> None:
    line = Timeline(48000)
    place(line, 5.0, 8000, 1000, 1)
    place(line, 5.2 + step_s, 8000, 1000 + 1600, 11)

    of_a_stranger = line.locate(77, 2, round((5.4 + step_s) * SECOND), 8000)

    assert of_a_stranger == pytest.approx(0.4 * 48000, abs=0.03 * 48000)
