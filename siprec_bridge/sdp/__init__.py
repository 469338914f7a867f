"""Session descriptions and offer/answer for a party that only receives. RFC 8866, RFC 3264.

Refuses to know SIP, sockets and what is done with the media.
"""

from siprec_bridge.sdp.answer import MediaPolicy, StreamPlan, answer, ask_for_all, offer, plan
from siprec_bridge.sdp.codecs import EVENTS, NOISE, RECORDABLE, STATIC, Codec, recordable
from siprec_bridge.sdp.crypto import SUITES, Crypto, StreamKeys, read_crypto, write_crypto
from siprec_bridge.sdp.dtls import DtlsParameters, Fingerprint, fingerprint_of, matches, read_dtls
from siprec_bridge.sdp.session import Attribute, MalformedSdp, Media, SessionDescription, parse

__all__ = [
    "EVENTS",
    "NOISE",
    "RECORDABLE",
    "STATIC",
    "SUITES",
    "Attribute",
    "Codec",
    "Crypto",
    "DtlsParameters",
    "Fingerprint",
    "MalformedSdp",
    "Media",
    "MediaPolicy",
    "SessionDescription",
    "StreamKeys",
    "StreamPlan",
    "answer",
    "ask_for_all",
    "fingerprint_of",
    "matches",
    "offer",
    "parse",
    "plan",
    "read_crypto",
    "read_dtls",
    "recordable",
    "write_crypto",
]
