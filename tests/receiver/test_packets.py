"""What strangers can send at will must not take our time: packets of the ring are taken apart here."""

from harness.capture import ip
from siprec_bridge.receiver.packets import Dissector, Frame

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
