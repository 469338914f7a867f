"""Providers by name: whoever registers an entry point is one of them."""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

from siprec_bridge.provider import ConfigurationError, Provider

GROUP = "siprec_bridge.providers"


def load_providers(
    names: Sequence[str], default: str, options: Mapping[str, str]
) -> list[Provider]:
    """Build all of them, the default one first, then in the order given. Raises as `load_provider`."""
    others = [name for name in dict.fromkeys(names) if name != default]
    return [
        load_provider(default, options),
        *(load_provider(name, options, "SUPPORTED_VENDORS") for name in others),
    ]


def load_provider(
    name: str, options: Mapping[str, str], setting: str = "STT_DEFAULT_VENDOR"
) -> Provider:
    """Build the provider of this name from the configured options.

    Raises ConfigurationError: no such provider, it cannot be loaded, or its options are wrong.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigurationError(
            f"{setting}={name}", f"no such provider is installed (there are: {known})"
        )
    try:
        kind: type[Provider] = found[name].load()
    except Exception as error:  # a plug-in's import may fail in any way
        raise ConfigurationError(
            f"{setting}={name}", f"the provider cannot be loaded: {error}"
        ) from error
    return kind.from_options(options)
