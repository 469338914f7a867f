"""Servers of a domain: which of them are tried, in which order, and what is remembered."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from harness.bridge import eventually
from harness.callback import Srs, src
from harness.dns import NameServer, Zone, name_server
from siprec_bridge.signalling.locate import Locator, NoService

SBC = "sbc.example.com"
V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@asynccontextmanager
async def asking(
    threads: ThreadPoolExecutor, zone: Zone, *, ttl: int = 60
) -> AsyncIterator[tuple[NameServer, Locator]]:
    async with name_server(zone, ttl=ttl) as server:
        yield server, Locator(threads, [server.place])


async def test_servers_come_by_priority_with_all_their_addresses_of_one_family(
    threads: ThreadPoolExecutor,
) -> None:
    zone: Zone = {
        (f"_sip._tcp.{SBC}", "SRV"): ["20 0 5080 b.example.com.", "10 0 5070 a.example.com."],
        ("a.example.com", "A"): ["192.0.2.1"],
        ("a.example.com", "AAAA"): ["2001:db8::1"],
        ("b.example.com", "A"): ["192.0.2.2"],
    }
    async with asking(threads, zone) as (_, locator):
        four = await locator.servers(SBC, "tcp", V4)
        six = await locator.servers(SBC, "tcp", V6)
        other = await locator.servers(SBC, "tls", V4)

    assert four == [("192.0.2.1", 5070), ("192.0.2.2", 5080)]
    assert six == [("2001:db8::1", 5070)]
    assert other == []  # no SRV records: its address, at the default port


async def test_those_of_one_priority_are_drawn_by_their_weights(
    threads: ThreadPoolExecutor,
) -> None:
    zone: Zone = {
        (f"_sip._tcp.{SBC}", "SRV"): ["10 90 5060 a.example.com.", "10 10 5060 b.example.com."],
        ("a.example.com", "A"): ["192.0.2.1"],
        ("b.example.com", "A"): ["192.0.2.2"],
    }
    async with asking(threads, zone) as (server, locator):
        first = [(await locator.servers(SBC, "tcp", V4))[0][0] for _ in range(300)]
        asked = len(server.asked)

    assert 220 < first.count("192.0.2.1") < 298
    assert asked == 4  # NAPTR, SRV and two addresses, once


async def test_naptr_leads_to_the_records_of_the_transport(threads: ThreadPoolExecutor) -> None:
    zone: Zone = {
        (SBC, "NAPTR"): [
            '10 10 "s" "SIP+D2U" "" _sip._udp.pool.example.com.',
            '15 10 "u" "SIPS+D2T" "" _sips._tcp.other.example.com.',  # leads to no SRV records
            '20 10 "s" "SIPS+D2T" "" _sips._tcp.pool.example.com.',
            '30 10 "s" "SIPS+D2T" "" _sips._tcp.last.example.com.',
        ],
        ("_sips._tcp.pool.example.com", "SRV"): ["10 0 5061 a.example.com."],
        ("a.example.com", "A"): ["192.0.2.1"],
    }
    async with asking(threads, zone) as (server, locator):
        assert await locator.servers(SBC, "tls", V4) == [("192.0.2.1", 5061)]

    assert ("_sips._tcp.last.example.com", "SRV") not in server.asked


async def test_answers_are_remembered_for_their_ttl(threads: ThreadPoolExecutor) -> None:
    zone: Zone = {
        (f"_sip._tcp.{SBC}", "SRV"): ["10 0 5060 a.example.com."],
        ("a.example.com", "A"): ["192.0.2.1"],
    }
    async with asking(threads, zone, ttl=1) as (server, locator):
        begun = time.monotonic()
        first = await locator.servers(SBC, "tcp", V4)
        server.zone["a.example.com", "A"] = ["192.0.2.9"]
        known = await locator.servers(SBC, "tcp", V4)
        over = time.monotonic() - begun >= 1.0  # on a busy machine
        while (now := await locator.servers(SBC, "tcp", V4)) == first:
            assert time.monotonic() < begun + 30
            await asyncio.sleep(0.1)

    assert (first, now) == ([("192.0.2.1", 5060)], [("192.0.2.9", 5060)])
    assert known == first or over


@pytest.mark.parametrize(
    ("records", "cause"),
    [(["0 0 0 ."], "has no SIP over tcp"), (["1 0 5060 gone.example.com."], "has an address")],
)
async def test_a_domain_without_the_service_says_so(
    threads: ThreadPoolExecutor, records: list[str], cause: str
) -> None:
    async with asking(threads, {(f"_sip._tcp.{SBC}", "SRV"): records}) as (_, locator):
        with pytest.raises(NoService, match=cause):
            await locator.servers(SBC, "tcp", V4)


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".example", "\udcff.example", "[::1"])
async def test_what_is_no_name_has_no_servers(threads: ThreadPoolExecutor, name: str) -> None:
    async with asking(threads, {}) as (_, locator):
        assert await locator.servers(name, "tcp", V4) == []


async def test_a_bye_goes_to_the_next_server_where_the_first_is_down() -> None:
    async with src() as peer:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            nobody = free.getsockname()[1]
        zone: Zone = {
            (f"_sip._tcp.{SBC}", "SRV"): [
                f"10 0 {nobody} sip.example.com.", f"20 0 {peer.port} sip.example.com.",
            ],
            ("sip.example.com", "A"): ["127.0.0.1"],
        }  # fmt: skip
        async with name_server(zone) as server, Srs(nameservers=[server.place]) as srs:
            (dialog,) = await srs.calls(peer, 1, contact=f"sip:src@{SBC};transport=tcp")

            srs.listener.request(dialog, "BYE")

            await eventually(lambda: bool(peer.got), "the BYE")
            await eventually(lambda: bool(srs.events), "the end of the call")


async def test_name_servers_that_are_silent_hold_nothing_up_for_long() -> None:
    async with src() as peer, name_server({}) as server, Srs(nameservers=[server.place]) as srs:
        server.silent = True
        (dialog,) = await srs.calls(peer, 1, contact="sip:src@localhost")

        srs.listener.request(dialog, "BYE")

        # It is asked for NAPTR and SRV in vain; then the address is tried, whoever listens there.
        def tried() -> float:
            return sum(
                srs.count("connections_opened", transport="tcp", result=result)
                for result in ("opened", "failed")
            )

        await eventually(lambda: tried() == 1, "the attempt")
    assert {kind for _, kind in server.asked} == {"NAPTR", "SRV"}
