"""A SIPREC client (SRC) of our own: dials any recording server, sends real RTP, hangs up.

Knows only the protocol core, nothing of the server, so that it tests other recorders as well.
RFC 7866 §6 (SRC), RFC 3261 §13.2 (UAC).
"""

from siprec_bridge.caller.audio import CallError, Leg, load_leg, sample_call
from siprec_bridge.caller.call import CallPlan, CallReport, place_call, report_lines
from siprec_bridge.caller.target import Target, parse_participant, parse_target

__all__ = [
    "CallError",
    "CallPlan",
    "CallReport",
    "Leg",
    "Target",
    "load_leg",
    "parse_participant",
    "parse_target",
    "place_call",
    "report_lines",
    "sample_call",
]
