"""Providers by name: whoever registers an entry point is one of them."""

from collections.abc import Mapping
from importlib.metadata import entry_points

from siprec_bridge.provider import ConfigurationError, Provider

GROUP = "siprec_bridge.providers"


def load_provider(name: str, options: Mapping[str, str]) -> Provider:
    """Build the provider of this name from the configured options.

    Raises ConfigurationError: no such provider, it cannot be loaded, or its options are wrong.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigurationError(
            f"STT_DEFAULT_VENDOR={name}", f"no such provider is installed (there are: {known})"
        )
    try:
        kind: type[Provider] = found[name].load()
    except Exception as error:  # a plug-in's import may fail in any way
        raise ConfigurationError(
            f"STT_DEFAULT_VENDOR={name}", f"the provider cannot be loaded: {error}"
        ) from error
    return kind.from_options(options)
