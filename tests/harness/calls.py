"""Calls of our own caller at a real bridge, with voices that a test can tell apart."""

from pathlib import Path

from harness.bridge import Bridge, Events, eventually, of_type
from harness.rtp import tone
from siprec_bridge import caller
from siprec_bridge.caller import CallPlan, CallReport, Leg, parse_target, place_call

SAMPLE = Path(caller.__file__).parent / "sample"  # also where the package is installed


def tones(seconds: float = 2.0) -> tuple[Leg, Leg]:
    """Alice is a tone of 440 Hz, Bob one of 1000 Hz and longer by half a second."""
    return (
        Leg("Alice", "sip:alice@example.com", tone(440, seconds)),
        Leg("Bob", "sip:bob@example.com", tone(1000, seconds + 0.5)),
    )


async def call(
    bridge: Bridge,
    *,
    transport: str = "udp",
    codec: str = "pcmu",
    legs: tuple[Leg, ...] | None = None,
    rate: float = 20.0,
    srtp: str | None = None,
    dtls: bool = False,
) -> CallReport:
    """Place a call, by default at twenty times the pace of speech; it must be answered well."""
    host, port = bridge.udp if transport == "udp" else bridge.tcp
    plan = CallPlan(
        parse_target(f"{host}:{port}", transport),
        legs or tones(),
        codec,
        rate,
        srtp=srtp,
        dtls=dtls,
    )
    report = await place_call(plan)
    assert report.ok, report
    return report


async def finals(bridge: Bridge, events: Events, count: int = 1, patience: float = 30.0) -> Events:
    """The finished transcripts among a listener's events, once there are so many."""
    await eventually(
        lambda: len(of_type(events, "transcript.final")) >= count,
        f"{count} finished transcripts",
        bridge,
        patience,
    )
    return of_type(events, "transcript.final")
