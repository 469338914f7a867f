"""Where a request comes from, and by which name it reached us."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

# Names that nobody can register, besides those without a dot: no stranger's page has one.
_PRIVATE = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test", ".invalid")
_MOST_HOPS = 20


def source_of(
    remote: str, forwarded_for: str | None, proxies: Sequence[IPv4Network | IPv6Network]
) -> str:
    """The address of the client: the last one that no proxy of ours wrote down.

    `forwarded_for` is the X-Forwarded-For header, to which each proxy adds whom it was asked by; what
    a client wrote there himself stands further left. Without trust in `remote` it says nothing.
    """
    source = remote
    hops = [one.strip() for one in (forwarded_for or "").split(",") if one.strip()]
    for hop in reversed(hops[-_MOST_HOPS:]):
        if not _among(source, proxies):
            return source
        try:
            source = str(ip_address(hop))
        except ValueError:
            return source
    return source


def is_private_name(host: str) -> bool:
    """Whether a Host header names an address, this machine, or what no public DNS server answers for."""
    name = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host.lower()
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        name = name.rstrip(".")
        return "." not in name or name.endswith(_PRIVATE)
    return True


def _among(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        known = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    known = getattr(known, "ipv4_mapped", None) or known
    return any(known in one for one in networks)
