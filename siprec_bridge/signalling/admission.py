"""Who may talk to us, by source address. A scanner that gets no answer looks elsewhere."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


class Admission:
    """An allow-list; empty, it lets everyone in. `forbid`: the others get a 403, else silence."""

    def __init__(self, allowed: Sequence[Network] = (), *, forbid: bool = False) -> None:
        self.forbid = forbid
        self._allowed = tuple(allowed)
        self._known = lru_cache(maxsize=4096)(self._look_up)

    def admits(self, host: str) -> bool:
        """Whether a source, an IP literal, may talk to us."""
        return not self._allowed or self._known(host)

    def _look_up(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 peer of an IPv6 socket
        return any(
            one in network
            for network in self._allowed
            for one in (address, mapped)
            if one is not None and one.version == network.version
        )
