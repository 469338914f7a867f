"""Media: RTP in, spools on disk, audio files out. RFC 3550, RFC 3551.

Refuses to know SIP dialogs, participants and what is done with the audio. Packets are received
in a worker process; the spool that it appends to is the truth of a recording.
"""

from siprec_bridge.media.audio_file import FinishedFile, RecordingFormat, write_atomically
from siprec_bridge.media.coverage import Covered
from siprec_bridge.media.decode import can_decode, decodable
from siprec_bridge.media.engine import MediaEngine
from siprec_bridge.media.finish import (
    DtmfEvents,
    FinishedAudio,
    FinishedLeg,
    Stretches,
    finish_session,
)
from siprec_bridge.media.finisher import Finisher
from siprec_bridge.media.offline import OfflineMedia
from siprec_bridge.media.silence import Cover, silence
from siprec_bridge.media.supervisor import MediaEvent, MediaUnavailable
from siprec_bridge.receiver.control import DtlsTask, StreamPort, StreamReport, StreamSpec
from siprec_bridge.receiver.ports import NoPortLeft

__all__ = [
    "Cover",
    "Covered",
    "DtlsTask",
    "DtmfEvents",
    "FinishedAudio",
    "FinishedFile",
    "FinishedLeg",
    "Finisher",
    "MediaEngine",
    "MediaEvent",
    "MediaUnavailable",
    "NoPortLeft",
    "OfflineMedia",
    "RecordingFormat",
    "StreamPort",
    "StreamReport",
    "StreamSpec",
    "Stretches",
    "can_decode",
    "decodable",
    "finish_session",
    "silence",
    "write_atomically",
]
