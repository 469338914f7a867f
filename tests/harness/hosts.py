"""What the machine that tests run on can do."""

import socket
from ipaddress import IPv6Address
from pathlib import Path

_LINK = 0x20  # scope of an address, as the kernel has it


def has_ipv6() -> bool:
    """Containers often have no ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


def link_local() -> tuple[str, int] | None:
    """A link-local address of this machine and the number of its link, if it has one."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for address, link, _, scope, *_ in map(str.split, lines):
        if int(scope, 16) == _LINK:
            return str(IPv6Address(bytes.fromhex(address))), int(link, 16)
    return None
