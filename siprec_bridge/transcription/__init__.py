"""Transcription: durable jobs to a provider, at its pace, and what it heard into a conversation.

Refuses to know Whisper, SIP and who gets the transcript. Providers are plug-ins, found by the
entry point group `siprec_bridge.providers`.
"""

from siprec_bridge.transcription.merge import RecordedLeg, merge
from siprec_bridge.transcription.registry import load_provider
from siprec_bridge.transcription.scheduler import Scheduler

__all__ = ["RecordedLeg", "Scheduler", "load_provider", "merge"]
