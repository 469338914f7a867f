"""One call from INVITE to archived audio and delivered transcript; all calls; recovery.

The application: it hands signalling, media, transcription and delivery to one another. It
knows no socket, no codec and no SQL. RFC 7866 (the SRS's behaviour), RFC 7245 §3.
"""

from siprec_bridge.recording.alteration import Alteration, Altered, Keys, StoredAudio
from siprec_bridge.recording.archive import Archive
from siprec_bridge.recording.capacity import Capacity
from siprec_bridge.recording.completion import Completion
from siprec_bridge.recording.custodian import Custodian
from siprec_bridge.recording.desk import Certificate, Desk, Media, Signalling
from siprec_bridge.recording.erasure import Affected, Eraser
from siprec_bridge.recording.fetching import fetch
from siprec_bridge.recording.identifier import Identifier
from siprec_bridge.recording.joining import read_group
from siprec_bridge.recording.ladder import LadderKeeper
from siprec_bridge.recording.late_redaction import LateRedaction, Redressed
from siprec_bridge.recording.off_the_loop import off_the_loop
from siprec_bridge.recording.orders import (
    AudioAway,
    AudioDeleted,
    NothingToTranscribe,
    Orders,
    UnknownVendor,
    version_of,
    why_away,
)
from siprec_bridge.recording.recorder import NotRecording, Recorder
from siprec_bridge.recording.recovery import left_behind, recover
from siprec_bridge.recording.redactor import Redactor
from siprec_bridge.recording.retention import Elsewhere, InUse, Keep, Retention, UnderHold
from siprec_bridge.recording.safekeeping import NotInStore, Safekeeping, Stores
from siprec_bridge.recording.service import RecordingService
from siprec_bridge.recording.vcons import AudioChanged, AudioWithheld, NotOver, VconEvents, Vcons

__all__ = [
    "Affected",
    "Alteration",
    "Altered",
    "Archive",
    "AudioAway",
    "AudioChanged",
    "AudioDeleted",
    "AudioWithheld",
    "Capacity",
    "Certificate",
    "Completion",
    "Custodian",
    "Desk",
    "Elsewhere",
    "Eraser",
    "Identifier",
    "InUse",
    "Keep",
    "Keys",
    "LadderKeeper",
    "LateRedaction",
    "Media",
    "NotInStore",
    "NotOver",
    "NotRecording",
    "NothingToTranscribe",
    "Orders",
    "Recorder",
    "RecordingService",
    "Redactor",
    "Redressed",
    "Retention",
    "Safekeeping",
    "Signalling",
    "StoredAudio",
    "Stores",
    "UnderHold",
    "UnknownVendor",
    "VconEvents",
    "Vcons",
    "fetch",
    "left_behind",
    "off_the_loop",
    "read_group",
    "recover",
    "version_of",
    "why_away",
]
