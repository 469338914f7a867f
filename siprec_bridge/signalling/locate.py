"""Where a domain's SIP servers are: NAPTR, SRV and addresses, each for as long as its TTL. RFC 3263 §4.

The transport is the dialog's: of what a domain offers, only that is looked for.
"""

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded with the first name: that takes 0.2 s of CPU
    from dns.asyncresolver import Resolver

_ANSWER_S = 1.0  # for one question: a name server that is down must leave time for the address
_MOST_SERVERS = 8
_MOST_NAMES = 4  # that NAPTR may lead to
_REMEMBERED = 1000  # answers
_SERVICES = {
    "udp": (b"sip+d2u", "_sip._udp"),
    "tcp": (b"sip+d2t", "_sip._tcp"),
    "tls": (b"sips+d2t", "_sips._tcp"),
}


class NoService(OSError):
    """A domain says that it has no such service, or names servers without an address."""


class Locator:
    """Asks the system's name servers, or these (address and port)."""

    def __init__(self, threads: Executor, nameservers: Sequence[tuple[str, int]] = ()) -> None:
        self._threads = threads
        self._nameservers = nameservers
        self._known: Resolver | None = None

    async def servers(
        self, domain: str, transport: str, family: socket.AddressFamily
    ) -> list[tuple[str, int]]:
        """Addresses and ports in the order in which to try them; none: it has no SRV records.

        Name servers that do not answer in time count as if they knew nothing. Raises NoService.
        """
        services = await self._services(domain, transport)
        if not services:
            return []
        if [str(one.target) for one in services] == ["."]:  # RFC 2782
            raise NoService(f"{domain} has no SIP over {transport}")
        kind = "AAAA" if family == socket.AF_INET6 else "A"
        found = await asyncio.gather(*(self._ask(one.target, kind) for one in services))
        servers = [
            (str(address.address), int(one.port))
            for one, addresses in zip(services, found, strict=True)
            for address in addresses
        ]
        if not servers:
            raise NoService(f"no server of {domain} has an address ({kind})")
        return list(dict.fromkeys(servers))

    async def _services(self, domain: str, transport: str) -> list[Any]:
        """The domain's SRV records, by priority, those of one priority drawn by their weights."""
        service, prefix = _SERVICES[transport]
        pointers = [
            one
            for one in await self._ask(domain, "NAPTR")
            if one.flags.lower() == b"s" and one.service.lower() == service
        ]
        # Once one of an order fits, those of later orders are not for us. RFC 3403 §4.1
        names = [one.replacement for one in pointers if one.order == pointers[0].order]
        services: list[Any] = []
        for name in names[:_MOST_NAMES] or [f"{prefix}.{domain}"]:
            services += await self._ask(name, "SRV")
        return services[:_MOST_SERVERS]

    async def _ask(self, name: Any, kind: str) -> list[Any]:
        """The records in the order in which to use them."""
        from dns.exception import DNSException

        try:
            resolver = await self._resolver()
            answer = await resolver.resolve(
                name, kind, raise_on_no_answer=False, lifetime=_ANSWER_S, search=False
            )
        except (DNSException, UnicodeError, OSError):  # no such name, no answer, or no name at all
            return []
        records = answer.rrset
        return records.processing_order() if records is not None else []

    async def _resolver(self) -> "Resolver":
        if self._known is None:
            loop = asyncio.get_running_loop()
            self._known = await loop.run_in_executor(self._threads, self._load)
        return self._known

    def _load(self) -> "Resolver":
        from dns.asyncresolver import Resolver
        from dns.nameserver import Do53Nameserver
        from dns.resolver import LRUCache

        resolver = Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = [Do53Nameserver(*one) for one in self._nameservers]
        resolver.cache = LRUCache(_REMEMBERED)
        return resolver
