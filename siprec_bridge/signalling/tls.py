"""The certificates of the TLS endpoints; a renewed file is used without a restart. RFC 3261 §26."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import structlog

from siprec_bridge.provider import ConfigurationError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `client_ca`: peers must show a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class TlsServerContext:
    """A server's SSL context; `reload` takes over what changed on disk, for new connections."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigurationError when a file is missing or is not what it should be."""
        self._files = files
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._stamps = self._look()
        self._load()
        if files.client_ca is not None:
            try:
                self.context.load_verify_locations(cafile=files.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"TLS_CLIENT_CA_PATH={files.client_ca}", _cause(error)
                ) from error
            self.context.verify_mode = ssl.CERT_REQUIRED

    def reload(self) -> bool:
        """Load the certificate again if its files changed; one that is broken is not taken."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self._load()
        except ConfigurationError as error:
            log.error("tls.certificate_not_reloaded", cause=str(error))
            return False
        log.info("tls.certificate_reloaded", certificate=str(self._files.certificate))
        return True

    def _load(self) -> None:
        certificate, key = self._files.certificate, self._files.key
        # A pair that does not fit must not replace one that does: try it on the side first.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            trial.load_cert_chain(certificate, key)
            self.context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"TLS_CERT_PATH={certificate}, TLS_KEY_PATH={key}", _cause(error)
            ) from error

    def _look(self) -> tuple[tuple[int, int], ...]:
        """Modification times and sizes; zeros for a file that is not there just now."""
        stamps = []
        for path in (self._files.certificate, self._files.key):
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0))
            else:
                stamps.append((found.st_mtime_ns, found.st_size))
        return tuple(stamps)


def _cause(error: OSError) -> str:
    return error.strerror or str(error)
