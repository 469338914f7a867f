"""Captures: what the bridge makes of calls that somebody recorded with tcpdump.

Reads pcap and pcapng, finds the recording sessions, and has the code of live calls answer and
record them. Refuses to know settings, sockets and recognisers. RFC 7866 §6.
"""

from siprec_bridge.replay.capture import Capture, UnreadableCapture
from siprec_bridge.replay.feed import ReplayFailed, replay
from siprec_bridge.replay.report import REPORT, CallResult, Report, StreamResult, report_lines

__all__ = [
    "REPORT",
    "CallResult",
    "Capture",
    "ReplayFailed",
    "Report",
    "StreamResult",
    "UnreadableCapture",
    "replay",
    "report_lines",
]
