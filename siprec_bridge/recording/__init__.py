"""One call from INVITE to archived audio and delivered transcript; all calls; recovery.

The application: it hands signalling, media, transcription and delivery to one another. It
knows no socket, no codec and no SQL. RFC 7866 (the SRS's behaviour), RFC 7245 §3.
"""

from siprec_bridge.recording.archive import Archive
from siprec_bridge.recording.capacity import Capacity
from siprec_bridge.recording.completion import Completion
from siprec_bridge.recording.erasure import Affected, Eraser, Identifier
from siprec_bridge.recording.ladder import LadderKeeper
from siprec_bridge.recording.orders import (
    AudioDeleted,
    NothingToTranscribe,
    Orders,
    UnknownVendor,
    version_of,
)
from siprec_bridge.recording.recorder import Desk, Media, NotRecording, Recorder, Signalling
from siprec_bridge.recording.recovery import left_behind, recover
from siprec_bridge.recording.redactor import Redactor
from siprec_bridge.recording.retention import Elsewhere, InUse, Keep, Retention, UnderHold
from siprec_bridge.recording.service import RecordingService

__all__ = [
    "Affected",
    "Archive",
    "AudioDeleted",
    "Capacity",
    "Completion",
    "Desk",
    "Elsewhere",
    "Eraser",
    "Identifier",
    "InUse",
    "Keep",
    "LadderKeeper",
    "Media",
    "NotRecording",
    "NothingToTranscribe",
    "Orders",
    "Recorder",
    "RecordingService",
    "Redactor",
    "Retention",
    "Signalling",
    "UnderHold",
    "UnknownVendor",
    "left_behind",
    "recover",
    "version_of",
]
