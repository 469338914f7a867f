"""What the machine that tests run on can do."""

import socket


def has_ipv6() -> bool:
    """Containers often have no ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True
