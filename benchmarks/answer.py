#!/usr/bin/env python3
"""CPU time of the protocol core for one call, step by step: no sockets, no disk.

    benchmarks/answer.py [--calls 3000] [--profile]

The body is that of benchmarks/calls.py. Best of five runs, in microseconds a call.
"""

import argparse
import cProfile
import itertools
import pstats
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sip_body import CONTENT_TYPE, body

from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.sip import AckReceived, DialogEnded, InviteReceived, Output, Peer, SipServer
from siprec_bridge.siprec import RecordingSession, parse_body, read_fork

_PEER = Peer("udp", "127.0.0.1", 5070, 1, "127.0.0.1", 5060)
_AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
_BODY = body().encode()


def _request(method: str, call: int, number: int, to_tag: str = "", content: bytes = b"") -> bytes:
    to = f";tag={to_tag}" if to_tag else ""
    lines = [
        f"{method} sip:record@127.0.0.1:5060 SIP/2.0",
        f"Via: SIP/2.0/UDP 127.0.0.1:5070;branch=z9hG4bK-{call}-{number}-{method};rport",
        "Max-Forwards: 70",
        f"From: <sip:sbc@127.0.0.1:5070>;tag={call}",
        f"To: <sip:record@127.0.0.1:5060>{to}",
        f"Call-ID: {call}-1@127.0.0.1",
        f"CSeq: {number} {method}",
        "Contact: <sip:sbc@127.0.0.1:5070;transport=UDP>;+sip.src",
        "Allow: INVITE, ACK, BYE, CANCEL, OPTIONS, UPDATE, INFO",
        "Supported: timer, replaces",
        "Require: siprec",
        "Accept: application/sdp, application/rs-metadata-request",
        "User-Agent: benchmark",
    ]
    if content:
        lines.append(f"Content-Type: {CONTENT_TYPE}")
    lines += [f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content


class _Core:
    """The machine with recording sessions, and how long each step took."""

    def __init__(self) -> None:
        tags = itertools.count(1)
        self.server = SipServer(
            token=lambda: f"{next(tags):016x}",
            contact=lambda peer: "<sip:srs@127.0.0.1:5060;transport=udp>;+sip.srs",
        )
        self.spent: dict[str, float] = {}

    def timed(self, step: str, work: Callable[[], list[Output]]) -> list[Output]:
        begun = time.process_time_ns()
        out = work()
        self.spent[step] = self.spent.get(step, 0) + time.process_time_ns() - begun
        return out

    def call(self, number: int) -> None:
        now = number / 100
        self.server.advance(now)
        invite = _request("INVITE", number, 1, content=_BODY)
        out = self.timed("receive INVITE", lambda: self.server.receive(invite, _PEER, now))
        (event,) = (one for one in out if isinstance(one, InviteReceived))
        self.timed("negotiate", lambda: self._negotiate(event))
        self.timed("send 200", lambda: self._respond(event, now))
        tag = event.dialog.local_tag
        ack, bye = _request("ACK", number, 1, tag), _request("BYE", number, 2, tag)
        out = self.timed("ACK", lambda: self.server.receive(ack, _PEER, now))
        assert any(isinstance(one, AckReceived) for one in out)
        out = self.timed("BYE", lambda: self.server.receive(bye, _PEER, now))
        assert any(isinstance(one, DialogEnded) for one in out)

    def _negotiate(self, event: InviteReceived) -> list[Output]:
        request = event.request
        session = RecordingSession("s", MediaPolicy(), sdp_session_id=1, fork=read_fork(request))
        session.offer(parse_body(request.content_type, None, request.body), _AT)
        self._sdp = session.answer({0: 20000, 1: 20002}, "127.0.0.1")
        return []

    def _respond(self, event: InviteReceived, now: float) -> list[Output]:
        return self.server.respond(
            event.id, 200, now=now, content_type="application/sdp", body=self._sdp
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    if options.profile:
        core, profiler = _Core(), cProfile.Profile()
        with profiler:
            for number in range(options.calls):
                core.call(number)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
        return
    best: dict[str, float] = {}
    for _ in range(5):
        core = _Core()
        for number in range(options.calls):
            core.call(number)
        for step, spent in core.spent.items():
            each = spent / options.calls / 1000
            best[step] = min(best.get(step, each), each)
    for step, each in best.items():
        print(f"{step:16} {each:7.1f} µs")
    parse_and_answer = sum(best[one] for one in ("receive INVITE", "negotiate", "send 200"))
    print(f"{'parse + answer':16} {parse_and_answer:7.1f} µs")
    print(f"{'a call':16} {sum(best.values()):7.1f} µs")


if __name__ == "__main__":
    main()
