"""From the octets of a capture file to SIP messages and datagrams."""

import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.capture import (
    SRC,
    SRS,
    START_S,
    Sent,
    call,
    ethernet,
    frames,
    ip,
    linked,
    packet,
    pcap,
    pcapng,
    tcp,
    udp,
)
from harness.src import request
from siprec_bridge.receiver.packets import CUT, Address, Datagram
from siprec_bridge.replay.capture import UnreadableCapture
from siprec_bridge.replay.dialogs import find_dialogs
from siprec_bridge.replay.traffic import Traffic, WireMessage

INVITE = request("INVITE", body=b"x" * 3000)
OPTIONS = request("OPTIONS", transport="TCP")
ONE = Sent(1.25, SRC, SRS, INVITE)
SIX = Sent(1.25, Address("2001:db8::1", 5070), Address("2001:db8::2", 5060), INVITE)
AT_NS = (START_S * 1000 + 1250) * 1_000_000


def traffic(path: Path, data: bytes) -> tuple[list[WireMessage | Datagram], Traffic]:
    file = path / "one.pcap"
    file.write_bytes(data)
    found = Traffic(file)
    return list(found), found


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_a_classic_capture_reads_in_both_byte_orders_and_resolutions(
    tmp_path: Path, order: str, nano: bool
) -> None:
    found, _ = traffic(tmp_path, pcap(frames([ONE]), order=order, nano=nano))

    assert found == [WireMessage(AT_NS, "udp", SRC, SRS, INVITE)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_each_interface_of_a_pcapng_has_its_own_link_type_and_clock(
    tmp_path: Path, order: str
) -> None:
    wire = packet(ONE)
    written = pcapng(
        [(0, 1.25, ethernet(wire)), (1, 1.25, linked(276, wire))], [(1, 6), (276, 9)], order=order
    )

    found, source = traffic(tmp_path, written)

    assert found == [WireMessage(AT_NS, "udp", SRC, SRS, INVITE)] * 2
    assert source.capture.damage is None


@pytest.mark.parametrize("link_type", [0, 1, 12, 101, 108, 113, 228, 276])
@pytest.mark.parametrize("one", [ONE, SIX], ids=["ipv4", "ipv6"])
def test_every_link_type_leads_to_the_same_message(
    tmp_path: Path, link_type: int, one: Sent
) -> None:
    found, _ = traffic(tmp_path, pcap(frames([one], link_type), link_type=link_type))

    assert found == [WireMessage(AT_NS, "udp", one.source, one.destination, INVITE)]


@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8, 0x8100)])
def test_vlan_tags_are_passed_over(tmp_path: Path, tags: tuple[int, ...]) -> None:
    found, _ = traffic(tmp_path, pcap([(1.25, ethernet(packet(ONE), tags=tags))]))

    assert found == [WireMessage(AT_NS, "udp", SRC, SRS, INVITE)]


def fragments(one: Sent) -> list[bytes]:
    whole = udp(one)
    cuts = range(0, len(whole), 1480)
    if ":" not in one.source.host:
        return [
            ip(
                one.source.host, one.destination.host, 17, whole[at : at + 1480],
                fragment=at // 8 | (0x2000 if at + 1480 < len(whole) else 0),
            )
            for at in cuts
        ]  # fmt: skip
    return [
        ip(
            one.source.host, one.destination.host, 44,
            struct.pack("!BBHI", 17, 0, at | (at + 1480 < len(whole)), 99) + whole[at : at + 1480],
        )
        for at in cuts
    ]  # fmt: skip


@pytest.mark.parametrize("one", [ONE, SIX], ids=["ipv4", "ipv6"])
def test_fragments_make_their_datagram_in_any_order(tmp_path: Path, one: Sent) -> None:
    pieces = fragments(one)
    assert len(pieces) == 3

    found, source = traffic(
        tmp_path, pcap([(1.25, ethernet(piece)) for piece in (pieces[2], pieces[0], pieces[1])])
    )

    assert found == [WireMessage(AT_NS, "udp", one.source, one.destination, INVITE)]
    assert not source.ignored


def test_a_missing_fragment_is_counted(tmp_path: Path) -> None:
    found, source = traffic(
        tmp_path, pcap([(1.25, ethernet(piece)) for piece in fragments(ONE)[1:]])
    )

    assert found == []
    assert source.ignored == {"fragments whose datagram is not complete": 2}


def segments(data: bytes, *, first: int = 0xFFFFFF00, size: int = 700) -> list[bytes]:
    """The stream's packets, its SYN first; sequence numbers wrap around on the way."""
    out = [tcp(SRC, SRS, first - 1, b"", 0x02)]
    out += [
        tcp(SRC, SRS, first + at, data[at : at + size], 0x18) for at in range(0, len(data), size)
    ]
    return [ethernet(ip(SRC.host, SRS.host, 6, one)) for one in out]


def test_tcp_is_put_in_order_and_repetitions_are_left_out(tmp_path: Path) -> None:
    syn, *sent = segments(INVITE + OPTIONS)
    assert len(sent) > 4
    mixed = [syn, sent[0], sent[2], sent[1], sent[1], sent[0], *reversed(sent[3:])]

    found, source = traffic(tmp_path, pcap([(1.25, one) for one in mixed]))

    assert [one.data for one in found if isinstance(one, WireMessage)] == [INVITE, OPTIONS]
    assert {(one.transport, one.flow) for one in found if isinstance(one, WireMessage)} == {
        ("tcp", 1)
    }
    assert not source.ignored


def test_a_hole_in_tcp_costs_the_messages_around_it_only(tmp_path: Path) -> None:
    _, *sent = segments(INVITE + OPTIONS + OPTIONS, size=len(OPTIONS))
    begun = len(INVITE) // len(OPTIONS)
    start = begun * len(OPTIONS)
    behind = [
        ethernet(ip(SRC.host, SRS.host, 6, tcp(SRC, SRS, 0xFFFFFF00 + at, OPTIONS, 0x18)))
        for at in (len(INVITE), len(INVITE) + len(OPTIONS))
    ]
    assert start < len(INVITE)

    found, source = traffic(tmp_path, pcap([(1.25, one) for one in [*sent[:2], *behind]]))

    assert [one.data for one in found if isinstance(one, WireMessage)] == [OPTIONS, OPTIONS]
    assert source.ignored["holes in SIP over TCP"] == 1


def test_tls_and_other_protocols_over_tcp_are_counted_not_taken(tmp_path: Path) -> None:
    http = segments(b"GET / HTTP/1.1\r\n\r\n" * 100)
    elsewhere = Address("192.0.2.99", 5061)
    tls = [
        ethernet(ip(SRC.host, elsewhere.host, 6, tcp(SRC, elsewhere, number, data, flags)))
        for number, data, flags in ((0, b"", 2), (1, b"\x16\x03\x01\x02\x00" * 20, 0x18))
    ]

    found, source = traffic(tmp_path, pcap([(1.25, one) for one in http + tls]))

    assert found == []
    assert source.ignored["TLS streams, one way each (SIP in them cannot be read)"] == 1
    assert source.ignored["TCP segments that are not SIP"] == len(http) - 1


def test_what_the_capture_cut_short_is_counted_and_not_taken(tmp_path: Path) -> None:
    found, source = traffic(tmp_path, pcap([(1.25, ethernet(packet(ONE))[:96])]))

    assert found == []
    assert source.ignored == {CUT: 1}


def test_a_file_that_ends_in_a_frame_is_read_up_to_there(tmp_path: Path) -> None:
    data = pcap(frames([ONE, ONE]))

    found, source = traffic(tmp_path, data[:-10])

    assert len(found) == 1
    assert source.capture.damage == (
        "the file ends within a frame after frame 1; what follows is not read"
    )


def test_a_damaged_length_takes_no_memory(tmp_path: Path) -> None:
    data = pcap(frames([ONE])) + struct.pack("<IIII", 0, 0, 0xF0000000, 0xF0000000)

    found, source = traffic(tmp_path, data)

    assert len(found) == 1
    assert "a frame of 4026531840 octets cannot be" in (source.capture.damage or "")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"GIF89a", "neither pcap nor pcapng"),
        (pcap([])[:20], "ends within its header"),
    ],
)
def test_a_file_that_is_no_capture_is_said_so(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(UnreadableCapture, match=why):
        traffic(tmp_path, data)


WHOLE = pcap(frames(call()[:12]))
WHOLE_NG = pcapng([(0, at, data) for at, data in frames(call()[:12])], [(1, 6)])


@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(
            st.sampled_from([WHOLE, WHOLE_NG, pcap([(0, one) for one in segments(INVITE)])]),
            st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=6)), max_size=6),
            st.integers(0, 20_000),
        ).map(lambda made: damaged(*made)),
        st.tuples(st.sampled_from([0, 1, 12, 108, 113, 228, 229, 276]), st.binary(max_size=90)).map(
            lambda made: pcap([(0.0, made[1])], link_type=made[0])
        ),
    )
)
def test_any_octets_give_traffic_or_our_own_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found, source = traffic(Path(folder), data)
        except UnreadableCapture:
            return
        dialogs = find_dialogs(found, ())

    assert source.capture.frames >= len([one for one in found if isinstance(one, Datagram)])
    assert all(one.srs for one in dialogs.recordings)


def damaged(data: bytes, changes: list[tuple[int, bytes]], length: int) -> bytes:
    """A capture with some octets overwritten, and cut off."""
    out = bytearray(data)
    for at, octets in changes:
        out[at : at + len(octets)] = octets
    return bytes(out[:length])
