"""What must not be kept of what was said: found in a conversation, and taken out of it.

Pure: texts, times and a policy in; the same conversation without it out, and where it was. Who
takes out imports `redaction.conversation`, whose libraries a bridge without a policy does not load.
"""

from siprec_bridge.redaction.policy import DEFAULT_REGIONS, KINDS, Kind, Policy, parse_kinds

__all__ = ["DEFAULT_REGIONS", "KINDS", "Kind", "Policy", "parse_kinds"]
