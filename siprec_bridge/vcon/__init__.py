"""vCon, the IETF's container of a conversation: a recording session as one JSON object.

draft-ietf-vcon-vcon-core-04, its unsigned and its signed form. Refuses to know files, databases and settings:
documents and facts of audio in, a container or its octets out.
"""

from siprec_bridge.vcon.build import Call, Recording, Spoken, build, uuid_of
from siprec_bridge.vcon.container import MEDIA_TYPE, Vcon, content_hash
from siprec_bridge.vcon.signed import Signer
from siprec_bridge.vcon.transcript import SCHEMA
from siprec_bridge.vcon.written import pieces

__all__ = [
    "MEDIA_TYPE",
    "SCHEMA",
    "Call",
    "Recording",
    "Signer",
    "Spoken",
    "Vcon",
    "build",
    "content_hash",
    "pieces",
    "uuid_of",
]
