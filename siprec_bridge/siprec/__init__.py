"""SIPREC: the recording session, its metadata and who is on which stream. RFC 7866, RFC 7865.

Refuses to know sockets, dialogs, ports and files: bodies and times in, changes and SDP out.
"""

from siprec_bridge.siprec.body import ACCEPT, Body, parse_body
from siprec_bridge.siprec.document import Presence, SessionDocument, StreamDocument
from siprec_bridge.siprec.extensions import call_ids_of_headers
from siprec_bridge.siprec.metadata import MalformedMetadata, Metadata, parse_metadata
from siprec_bridge.siprec.session import Changes, RecordingSession, StreamToRecord

__all__ = [
    "ACCEPT",
    "Body",
    "Changes",
    "MalformedMetadata",
    "Metadata",
    "Presence",
    "RecordingSession",
    "SessionDocument",
    "StreamDocument",
    "StreamToRecord",
    "call_ids_of_headers",
    "parse_body",
    "parse_metadata",
]
