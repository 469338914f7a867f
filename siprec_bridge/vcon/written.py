"""A container as octets, audio and all, without ever holding a whole recording."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from siprec_bridge.vcon.container import Vcon


def pieces(vcon: Vcon, bodies: Mapping[int, Iterable[bytes]] | None = None) -> Iterator[bytes]:
    """The JSON text, UTF-8, a piece at a time.

    `bodies`: by the index of the dialog, the octets of each one that has an `encoding`.
    """
    bodies = bodies or {}
    top = vcon.as_json()
    dialogs = top.pop("dialog")
    yield _open(top) + b', "dialog": ['
    for index, dialog in enumerate(dialogs):
        yield (b", " if index else b"") + _open(dialog)
        if "encoding" in dialog:
            yield b', "body": "'
            yield from base64url(bodies[index])
            yield b'"'
        yield b"}"
    yield b"]}"


def _open(members: Mapping[str, Any]) -> bytes:
    """An object whose end is still to come; it has at least one member."""
    return json.dumps(members, ensure_ascii=False).encode()[:-1]


def base64url(octets: Iterable[bytes]) -> Iterator[bytes]:
    """In base64url without padding, a piece at a time. RFC 7515 §2."""
    left = b""
    for some in octets:
        some = left + some
        whole = len(some) - len(some) % 3
        left = some[whole:]
        if whole:
            yield base64.urlsafe_b64encode(some[:whole])
    if left:
        yield base64.urlsafe_b64encode(left).rstrip(b"=")
