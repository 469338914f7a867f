"""SIPREC: the recording session, its metadata and who is on which stream. RFC 7866, RFC 7865.

Refuses to know sockets, dialogs, ports and files: bodies and times in, changes and SDP out.
"""

from siprec_bridge.siprec.body import ACCEPT, Body, parse_body
from siprec_bridge.siprec.document import (
    Assurance,
    Attendance,
    CommunicationSession,
    Finding,
    FindingCode,
    PastPresence,
    Pause,
    Presence,
    SessionDocument,
    Span,
    StreamAssurance,
    StreamDocument,
    StreamQuality,
    Verdict,
)
from siprec_bridge.siprec.extensions import extension_texts
from siprec_bridge.siprec.forks import Fork, is_siprec, read_fork
from siprec_bridge.siprec.metadata import (
    SNAPSHOT_REQUEST,
    SNAPSHOT_REQUEST_TYPE,
    MalformedMetadata,
    Metadata,
    parse_metadata,
)
from siprec_bridge.siprec.negotiated import Changes, StreamToRecord
from siprec_bridge.siprec.pauses import PauseOrder
from siprec_bridge.siprec.session import RecordingSession

__all__ = [
    "ACCEPT",
    "SNAPSHOT_REQUEST",
    "SNAPSHOT_REQUEST_TYPE",
    "Assurance",
    "Attendance",
    "Body",
    "Changes",
    "CommunicationSession",
    "Finding",
    "FindingCode",
    "Fork",
    "MalformedMetadata",
    "Metadata",
    "PastPresence",
    "Pause",
    "PauseOrder",
    "Presence",
    "RecordingSession",
    "SessionDocument",
    "Span",
    "StreamAssurance",
    "StreamDocument",
    "StreamQuality",
    "StreamToRecord",
    "Verdict",
    "extension_texts",
    "is_siprec",
    "parse_body",
    "parse_metadata",
    "read_fork",
]
