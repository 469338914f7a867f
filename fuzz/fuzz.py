"""Coverage-guided fuzzing of the protocol core: `make fuzz`, or one target at a time.

    python fuzz/fuzz.py TARGET [libFuzzer's options and corpus folders]

A target takes any bytes. It may raise what its contract names, and nothing else: whatever else
rises is a crash, and libFuzzer keeps the input that led to it.
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

with atheris.instrument_imports(include=["siprec_bridge"]):
    from harness.src import PEER, TCP_PEER
    from harness.srs import Srs
    from siprec_bridge import rtp, sdp, sip, siprec

# What separates the messages of a conversation; a digit after it is the seconds that pass.
_TURN = b"\n%%"


def message(data: bytes) -> None:
    """One SIP message: all that is read of it later, and what is written reads back."""
    with contextlib.suppress(sip.MalformedMessage):
        one = sip.parse(data)
        again = sip.parse(sip.serialize(one))
        assert again.body == one.body
        if isinstance(one, sip.Request):
            _ = one.call_id, one.cseq, one.via, one.from_, one.to
            siprec.read_fork(one)


def stream(data: bytes) -> None:
    """A stream in one piece gives the messages that it gives in pieces."""

    def framed(size: int) -> list[bytes | sip.KeepAlive]:
        framer, got = sip.StreamFramer(max_message=4096), []
        with contextlib.suppress(sip.MalformedMessage):
            for start in range(0, len(data), size):
                got += framer.feed(data[start : start + size])
        return got

    whole, pieces = framed(len(data) or 1), framed(7)
    # A stream that breaks takes with it what came in the same piece.
    assert whole == pieces[: len(whole)]


def description(data: bytes) -> None:
    """An SDP body: read, planned, answered, and read again."""
    with contextlib.suppress(sdp.MalformedSdp):
        offer = sdp.parse(data)
        sdp.parse(offer.write())
        plans = sdp.plan(offer, sdp.MediaPolicy())
        ports = {one.index: 20000 for one in plans if one.accepted}
        answer = sdp.answer(offer, plans, ports, address="192.0.2.1", session_id=1, version=1)
        assert len(sdp.parse(answer.write()).media) == len(offer.media)


def body(data: bytes) -> None:
    """A message body; the first line is its Content-Type."""
    kind, _, content = data.partition(b"\n")
    with contextlib.suppress(sip.Refused):
        siprec.parse_body(kind.decode("utf-8", "surrogateescape"), None, content)


def metadata(data: bytes) -> None:
    """An rs-metadata document."""
    with contextlib.suppress(siprec.MalformedMetadata):
        siprec.parse_metadata(data)


def payload(data: bytes) -> None:
    """An RTP payload, taken apart as each codec does it; the first octet says of which one."""
    name = sdp.RECORDABLE[data[0] % len(sdp.RECORDABLE)] if data else ""
    for parameters in ({}, {"octet-align": "1", "mode": "20"}):
        if (unpack := rtp.unpacker(name, parameters)) is not None:
            with contextlib.suppress(rtp.MalformedPayload):
                assert all(0 <= one.samples <= 2 * 65536 * 8 for one in unpack(data[1:]))


def machine(data: bytes) -> None:
    """A conversation with the whole core: machine, sessions and what is stored of them."""
    srs, now = Srs(), 0.0
    for turn, one in enumerate(data.split(_TURN)[:20]):
        if turn and one[:1].isdigit():
            now += int(one[:1]) ** 2
        srs.advance(now)
        srs.receive(one.partition(b"\n")[2] if turn else one, (PEER, TCP_PEER)[turn % 2], now)
    srs.advance(now + 100_000)
    assert len(srs.sessions) == srs.server.dialogs


TARGETS: dict[str, Callable[[bytes], None]] = {
    "sip": message,
    "stream": stream,
    "sdp": description,
    "body": body,
    "metadata": metadata,
    "payload": payload,
    "machine": machine,
}


if __name__ == "__main__":
    target = TARGETS.get(sys.argv.pop(1) if len(sys.argv) > 1 else "")
    if target is None:
        sys.exit(f"which one of {', '.join(TARGETS)}?")
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
