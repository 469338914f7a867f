"""A name server of our own on loopback, with the records that a test wants."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Zone = dict[tuple[str, str], list[str]]  # (name, type) -> records as text


class NameServer(asyncio.DatagramProtocol):
    """Answers from `zone`; what it was asked is in `asked`. `silent`: it answers nothing."""

    def __init__(self, zone: Mapping[tuple[str, str], list[str]], *, ttl: int = 60) -> None:
        self.zone: Zone = dict(zone)
        self.ttl = ttl
        self.silent = False
        self.asked: list[tuple[str, str]] = []
        self.place = ("", 0)
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self.place = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True)
        kind = question.rdtype.name
        self.asked.append((name, kind))
        if self.silent or self._transport is None:
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        records = self.zone.get((name, kind))
        if records:
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *records))
        elif not any(known == name for known, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(), address)


@asynccontextmanager
async def name_server(
    zone: Mapping[tuple[str, str], list[str]], *, ttl: int = 60
) -> AsyncIterator[NameServer]:
    """A name server on a free port."""
    server = NameServer(zone, ttl=ttl)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
