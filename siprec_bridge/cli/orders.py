"""Orders of transcription as the settings have them."""

from typing import TYPE_CHECKING

from siprec_bridge.settings import Settings

if TYPE_CHECKING:
    from siprec_bridge.recording import Orders


def orders_of(settings: Settings) -> "Orders":
    """Raises ConfigurationError."""
    from siprec_bridge.recording import Orders
    from siprec_bridge.transcription import load_rules

    vendors = settings.supported_vendors
    rules = load_rules(settings.transcription_rules, vendors)
    return Orders(settings.stt_default_vendor, vendors, rules, shared=settings.recordings_shared)
