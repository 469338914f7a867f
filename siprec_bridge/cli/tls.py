"""What `--ca` and `--cert` of a command mean."""

import ssl
from pathlib import Path

from siprec_bridge.provider import ConfigurationError


def tls_of(ca: Path | None, cert: Path | None) -> ssl.SSLContext | None:
    """What `--ca` and `--cert` ask for; None: any certificate will do."""
    if ca is None and cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if cert is not None:
            context.load_cert_chain(cert)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError("--ca, --cert", error.strerror or str(error)) from error
    return context
