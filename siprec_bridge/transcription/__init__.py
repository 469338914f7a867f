"""Transcription: durable jobs to a provider, at its pace, and what it heard into a conversation.

Refuses to know Whisper, SIP and who gets the transcript. Providers are plug-ins, found by the
entry point group `siprec_bridge.providers`.
"""

from siprec_bridge.transcription.guard import Guard, GuardPolicy
from siprec_bridge.transcription.join import JoinedConversation, JoinedSession, join
from siprec_bridge.transcription.merge import RecordedLeg, merge
from siprec_bridge.transcription.packing import PackingPolicy
from siprec_bridge.transcription.prepare import Preparation
from siprec_bridge.transcription.registry import load_provider, load_providers
from siprec_bridge.transcription.rules import (
    UNRULED,
    Choice,
    Rules,
    Wish,
    address_of,
    facts_of_call,
    load_rules,
)
from siprec_bridge.transcription.scheduler import Scheduler
from siprec_bridge.transcription.speech import SpeechOptions
from siprec_bridge.transcription.vad import missing_detector
from siprec_bridge.transcription.vendor import VendorState

__all__ = [
    "UNRULED",
    "Choice",
    "Guard",
    "GuardPolicy",
    "JoinedConversation",
    "JoinedSession",
    "PackingPolicy",
    "Preparation",
    "RecordedLeg",
    "Rules",
    "Scheduler",
    "SpeechOptions",
    "VendorState",
    "Wish",
    "address_of",
    "facts_of_call",
    "join",
    "load_provider",
    "load_providers",
    "load_rules",
    "merge",
    "missing_detector",
]
