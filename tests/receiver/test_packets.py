"""What strangers can send at will must not take our time: packets of the ring are taken apart here."""

import struct

from harness.capture import ip
from siprec_bridge.receiver.packets import Datagram, Dissector, Frame

MORE = 0x2000  # fragments follow
IP = 101  # link type


def test_a_datagram_in_thousands_of_pieces_is_given_up_instead_of_looked_through_at_each() -> None:
    dissector = Dissector()

    def feed(number: int, flags: int) -> object:
        piece = ip("192.0.2.9", "192.0.2.1", 17, bytes(8), fragment=number | flags)
        return dissector.feed(Frame(0, IP, piece))

    assert feed(8000, 0) is None
    assert [feed(number, MORE) for number in range(7990)] == [None] * 7990

    assert dissector.ignored.total() == 7991 - 128
    dissector.finish()
    assert dissector.ignored.total() == 7991


def test_pieces_that_lie_over_one_another_take_a_bounded_room_and_later_datagrams_become_whole() -> (
    None
):
    dissector = Dissector()
    for ident in range(1024):
        for number in range(20):
            piece = ip("192.0.2.9", "192.0.2.1", 17, bytes(1400), fragment=number + 1 | MORE)
            head = bytearray(piece)
            head[4:6] = ident.to_bytes(2, "big")
            dissector.feed(Frame(0, IP, bytes(head)))
    whole = struct.pack("!4H", 1, 2, 8 + 1000, 0) + bytes(1000)

    first = ip("192.0.2.7", "192.0.2.1", 17, whole[:504], fragment=MORE)
    last = ip("192.0.2.7", "192.0.2.1", 17, whole[504:], fragment=504 // 8)
    joined = [dissector.feed(Frame(1, IP, one)) for one in (first, last)]

    assert joined[0] is None
    assert isinstance(joined[1], Datagram)
    assert sum(one.held for one in dissector._fragments.values()) == dissector._held <= 16 << 20
    dissector.finish()
    assert dissector._held == 0
    assert dissector.ignored.total() == 20 * 1024
