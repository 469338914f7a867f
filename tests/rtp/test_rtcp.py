"""RTCP: what is read of others, and what of ours is as RFC 3550 draws it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siprec_bridge.rtp import ReportBlock, Rtcp, SenderReport, read_rtcp, receiver_report

NTP = 0xE1B4_2C80_4000_0000
SR = struct.pack("!BBHIQIII", 0x80, 200, 6, 0x1234, NTP, 16000, 50, 8000)
BYE = struct.pack("!BBHII", 0x82, 203, 2, 0x1234, 0x5678)


def test_a_compound_packet_tells_clocks_and_who_has_left() -> None:
    found = read_rtcp(SR + receiver_report(0x1234, "a@b") + BYE)

    assert found == Rtcp((SenderReport(0x1234, NTP, 16000),), (0x1234, 0x5678))


@pytest.mark.parametrize("bad", [b"", b"\x80\xc8", SR[:-1], b"\x40" + SR[1:]])
def test_what_is_no_rtcp_is_none(bad: bytes) -> None:
    assert read_rtcp(bad) is None


def test_a_broken_end_leaves_what_was_before_it() -> None:
    assert read_rtcp(SR + BYE[:-1]) == Rtcp((SenderReport(0x1234, NTP, 16000),))


def test_our_report_is_laid_out_as_the_rfc_says() -> None:
    block = ReportBlock(0x1234, 64, -2, 0x1_0005, 33, 0x2C804000, 65536)

    packet = receiver_report(0xABCD, "x", (block,), bye=True)

    assert packet == (
        bytes.fromhex("81c90007 0000abcd 00001234 40fffffe 00010005 00000021 2c804000 00010000")
        + bytes.fromhex("81ca0002 0000abcd 01017800")
        + bytes.fromhex("81cb0001 0000abcd")
    )


@pytest.mark.parametrize("name", ["", "a", "ab", "abc", "abcd"])
def test_names_of_any_length_end_in_zeros_at_a_whole_word(name: str) -> None:
    packet = receiver_report(1, name)

    sdes = packet[8:]
    assert len(sdes) == 4 + 4 * struct.unpack("!H", sdes[2:4])[0]
    assert sdes[10 : 10 + len(name)].decode() == name
    assert 1 <= len(sdes[10 + len(name) :]) <= 4
    assert not any(sdes[10 + len(name) :])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_none(data: bytes) -> None:
    for candidate in (data, SR + data, b"\x9f\xcb" + data):
        found = read_rtcp(candidate)
        assert found is None or len(found.byes) <= len(candidate) // 4
