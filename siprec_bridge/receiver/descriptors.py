"""How many files and sockets a worker may have open, and for how many streams these are."""

import contextlib
import re
import resource
from pathlib import Path

OF_A_STREAM = 3  # RTP, RTCP, spool
OF_A_MUXED = 2  # where RTCP comes to the port of the RTP
_SPARE = 64  # what a worker has open besides, pairs of ports that are bound ahead among it
_CAP_SYS_RESOURCE = 24


def room(streams: int, each: int = OF_A_STREAM) -> int:
    """For how many of so many streams a worker may open what they need, so many files each."""
    return min(streams, max(0, _most(_needed(streams)) - _SPARE) // each)


def allow(streams: int) -> int:
    """Raise this process's limit as far as so many streams need and it may; returns `room`."""
    most = _most(_needed(streams))
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, max(most, hard)))
    return room(streams)


def _needed(streams: int) -> int:
    return OF_A_STREAM * streams + _SPARE


def _most(wanted: int) -> int:
    """The hard limit, or what is wanted above it where we may set it (CAP_SYS_RESOURCE)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return hard if hard != resource.RLIM_INFINITY else wanted
    try:
        status = Path("/proc/self/status").read_text()
        ceiling = int(Path("/proc/sys/fs/nr_open").read_text())
    except OSError:
        return hard
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    if effective is None or not int(effective[1], 16) >> _CAP_SYS_RESOURCE & 1:
        return hard
    return max(hard, min(wanted, ceiling))
