"""The certificates of the TLS endpoints; renewed files are used without a restart. RFC 3261 §26."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from siprec_bridge.provider import ConfigurationError

log = structlog.get_logger()

_WILDCARDS = ("*.", "_wildcard.")  # how a file is named that is for every name of a domain

_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `client_ca`: peers must show a certificate that it has signed.

    `sni` is a folder of NAME.crt and NAME.key, for clients that ask for NAME; the others, and
    those who ask for none, get `certificate`. RFC 6066 §3.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    sni: Path | None = None
    prefix: str = ""  # of the settings that name these files


@dataclass(frozen=True, slots=True)
class _Pair:
    name: str  # lower case, "*.example.com" for a wildcard, "" for the default
    certificate: Path
    key: Path
    setting: str


class TlsServerContext:
    """A server's SSL context; `reload` takes over what changed on disk, for new connections."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigurationError when a file is missing or is not what it should be."""
        self._files = files
        pairs = list(self._pairs())
        self._stamps = self._look(pairs)
        self._chosen = {pair.name: self._load(pair) for pair in pairs}
        self.certificates = {pair.name: pair.certificate for pair in pairs}  # the default: ""
        # Servers hold this one for good; every handshake is moved to one that is up to date.
        self.context = self._load(pairs[0])
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Load again what has changed; a pair that is broken now goes on as it was."""
        try:
            pairs = list(self._pairs())
        except ConfigurationError as error:
            log.error("tls.certificate_not_reloaded", cause=str(error))
            return False
        stamps = self._look(pairs)
        if stamps == self._stamps:
            return False
        before, self._stamps = self._stamps, stamps
        authority = self._files.client_ca
        all_anew = authority is not None and before.get(authority) != stamps.get(authority)
        chosen, taken = {}, False
        for pair in pairs:
            known = self._chosen.get(pair.name)
            same = all(before.get(one) == stamps[one] for one in (pair.certificate, pair.key))
            if known is not None and same and not all_anew:
                chosen[pair.name] = known
                continue
            try:
                chosen[pair.name] = self._load(pair)
            except ConfigurationError as error:
                log.error("tls.certificate_not_reloaded", cause=str(error))
                if known is not None:
                    chosen[pair.name] = known
            else:
                log.info("tls.certificate_reloaded", certificate=str(pair.certificate))
                taken = True
        self._chosen = chosen
        self.certificates = {one.name: one.certificate for one in pairs if one.name in chosen}
        return taken

    def client_context(self) -> ssl.SSLContext:
        """For a connection of ours to a peer, whom we ask for what we ask of clients.

        With client CAs these must have signed its certificate; without, TLS keeps listeners out
        and no more. Reads files: may block. Raises ConfigurationError.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The names of a certificate are compared as RFC 5922 has it, which `ssl` does not.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return self._fill(context, next(self._pairs()))

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL: a client said hello, and whom it wants to talk to, if it did."""
        asked = (name or "").lower().rstrip(".")
        chosen = self._chosen
        connection.context = (
            chosen.get(asked) or chosen.get(f"*.{asked.partition('.')[2]}") or chosen[""]
        )

    def _pairs(self) -> Iterator[_Pair]:
        files = self._files
        prefix = files.prefix
        setting = f"{prefix}TLS_CERT_PATH={files.certificate}, {prefix}TLS_KEY_PATH={files.key}"
        yield _Pair("", files.certificate, files.key, setting)
        if files.sni is None:
            return
        setting = f"TLS_SNI_DIR={files.sni}"
        try:
            found = sorted(one for one in files.sni.iterdir() if one.suffix == ".crt")
        except OSError as error:
            raise ConfigurationError(setting, _cause(error)) from error
        for one in found:
            name = one.stem.lower()
            for mark in _WILDCARDS:
                if name.startswith(mark):
                    name = f"*.{name.removeprefix(mark)}"
            yield _Pair(name, one, one.with_suffix(".key"), setting)

    def _load(self, pair: _Pair) -> ssl.SSLContext:
        return self._fill(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)

    def _fill(self, context: ssl.SSLContext, pair: _Pair) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(pair.certificate, pair.key)
        except (OSError, ssl.SSLError) as error:
            which = f"{pair.certificate.name} and {pair.key.name}: " if pair.name else ""
            raise ConfigurationError(pair.setting, which + _cause(error)) from error
        authority = self._files.client_ca
        if authority is not None:
            try:
                context.load_verify_locations(cafile=authority)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"TLS_CLIENT_CA_PATH={authority}", _cause(error)
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _look(self, pairs: list[_Pair]) -> dict[Path, _Stamp]:
        """Modification times and sizes; zeros for a file that is not there just now."""
        paths = [path for pair in pairs for path in (pair.certificate, pair.key)]
        if self._files.client_ca is not None:
            paths.append(self._files.client_ca)
        return {path: _stamp(path) for path in paths}


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _cause(error: OSError) -> str:
    return error.strerror or str(error)
