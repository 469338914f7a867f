"""Requests of ours that a server of the peer's does not serve: the next one gets them. RFC 3263 §4.3."""

import socket

from harness.bridge import eventually
from harness.callback import Srs, src, udp_src
from harness.dns import Zone, name_server
from harness.src import new_server, request
from siprec_bridge.signalling import Listener
from siprec_bridge.sip import InviteReceived, Output, RequestAnswered
from siprec_bridge.telemetry import Metrics

SBC = "sbc.example.com"


async def test_over_udp_a_bye_goes_on_to_the_servers_of_the_contact_s_domain() -> None:
    async with udp_src(503) as first, udp_src(503) as second, udp_src(200) as third:
        zone: Zone = {
            (f"_sip._udp.{SBC}", "SRV"): [
                f"10 0 {first.port} sip.example.com.",
                f"20 0 {second.port} sip.example.com.",
                f"30 0 {third.port} sip.example.com.",
            ],
            ("sip.example.com", "A"): ["127.0.0.1"],
        }
        events: list[Output] = []
        async with name_server(zone) as names:
            listener = Listener(new_server(), events.append, Metrics(), nameservers=[names.place])
            await listener.start(["127.0.0.1"], udp_ports=[0], tcp_ports=[])
            try:
                here = listener.endpoints[0]
                invite = request("INVITE").replace(
                    b"<sip:src@192.0.2.10:5070>", f"<sip:src@{SBC}>".encode()
                )
                first.send(invite, (here.host, here.port))
                await eventually(lambda: bool(events), "the INVITE")
                (asked,) = events
                assert isinstance(asked, InviteReceived)
                listener.respond(asked.id, 200)

                listener.request(asked.dialog, "BYE")

                def answers() -> list[int]:
                    return [
                        one.response.status for one in events if isinstance(one, RequestAnswered)
                    ]

                await eventually(lambda: bool(answers()), "the answer")
            finally:
                await listener.stop()
    branches = [  # whatever was sent again on a slow machine
        {one.via.branch for one in server.got if one.method == "BYE"}
        for server in (first, second, third)
    ]
    assert answers() == [200]
    assert [len(one) for one in branches] == [1, 1, 1]
    assert len(set.union(*branches)) == 3


async def test_over_tcp_a_server_that_is_down_and_one_that_refuses_are_passed_over() -> None:
    async with src() as refusing, src() as serving:
        refusing.status = 503
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            nobody = free.getsockname()[1]
        zone: Zone = {
            (f"_sip._tcp.{SBC}", "SRV"): [
                f"10 0 {refusing.port} sip.example.com.",
                f"20 0 {nobody} sip.example.com.",
                f"30 0 {serving.port} sip.example.com.",
            ],
            ("sip.example.com", "A"): ["127.0.0.1"],
        }
        async with name_server(zone) as names, Srs(nameservers=[names.place]) as srs:
            (dialog,) = await srs.calls(refusing, 1, contact=f"sip:src@{SBC};transport=tcp")

            srs.listener.request(dialog, "BYE")

            def answers() -> list[int]:
                return [
                    one.response.status for one in srs.events if isinstance(one, RequestAnswered)
                ]

            await eventually(lambda: bool(answers()), "the answer")
    assert answers() == [200]
    assert (len(refusing.got), len(serving.got)) == (1, 1)


async def test_a_request_that_gets_nowhere_is_told_at_once() -> None:
    async with src() as peer, Srs() as srs:
        (dialog,) = await srs.calls(peer, 1, contact="sip:src@no.such.invalid")

        srs.listener.request(dialog, "OPTIONS")

        await eventually(
            lambda: (
                [one.response.status for one in srs.events if isinstance(one, RequestAnswered)]
                == [408]
            ),
            "the failure",
        )
