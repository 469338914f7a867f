"""A connection by itself."""

import asyncio

from siprec_bridge.signalling.stream import StreamConnection


class GoneTransport(asyncio.Transport):
    """What asyncio has of a connection whose other end reset it before anybody looked."""

    def __init__(self) -> None:
        super().__init__({"peername": None, "sockname": ("127.0.0.1", 5060)})
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


def test_a_connection_that_is_reset_at_once_is_none() -> None:
    made: list[StreamConnection] = []
    one = StreamConnection(
        1,
        lambda data, peer: None,
        lambda broken, peer: None,
        made.append,
        lambda connection: None,
        lambda connection: None,
    )
    transport = GoneTransport()

    one.connection_made(transport)

    assert (made, one.peer, one.is_open, transport.aborted) == ([], None, False, True)
