"""The caller against a server whose answer names a place where nothing can be sent: it hangs up."""

import asyncio
import contextlib
from typing import cast

import pytest

from harness.rtp import tone
from siprec_bridge.caller import CallPlan, Leg, parse_target, place_call
from siprec_bridge.caller.messages import answer_to
from siprec_bridge.sip import Request, parse, serialize
from siprec_bridge.sip.message import Response


class Server(asyncio.DatagramProtocol):
    """Takes any call; its media is somewhere."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.heard: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = parse(data)
        assert isinstance(request, Request)
        self.heard.append(request.method)
        if request.method != "ACK":
            self._transport.sendto(serialize(self._answer(request)), addr)

    def _answer(self, request: Request) -> Response:
        answer = answer_to(request, 200, "OK", "srs")
        if request.method == "INVITE":
            port = self._transport.get_extra_info("sockname")[1]
            answer.headers.add("Contact", f"<sip:127.0.0.1:{port}>;+sip.srs")
            answer.headers.add("Content-Type", "application/sdp")
            lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", f"c=IN IP4 {self._place}", "t=0 0"]
            lines += ["m=audio 5000 RTP/AVP 0", "a=label:1", "a=recvonly"]
            answer.body = "\r\n".join([*lines, ""]).encode()
        return answer


@pytest.mark.parametrize("place", ["::1", "fe80::1%é..", "255.255.255.255"])
async def test_what_cannot_be_sent_is_told_and_the_call_ends_as_others_do(place: str) -> None:
    loop = asyncio.get_running_loop()
    server = Server(place)
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", 0))
    with contextlib.closing(transport):
        port = transport.get_extra_info("sockname")[1]
        leg = Leg("Alice", "sip:alice@example.com", tone(440, 0.1))
        report = await place_call(CallPlan(parse_target(f"127.0.0.1:{port}"), [leg]))

    assert server.heard == ["INVITE", "ACK", "BYE"]
    assert (report.bye_status, report.packets) == (200, (0,))
    assert [one[:36] for one in report.problems] == [
        "stream 1: nothing can be sent to " + place[:3]
    ]
