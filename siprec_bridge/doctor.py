"""`siprec-bridge doctor`: tries each piece by using it, and says what to do about what is wrong."""

import asyncio
import ctypes
import os
import secrets
import shutil
import socket
import ssl
import tempfile
import threading
import wave
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from siprec_bridge.delivery import AmqpSink, Unreachable, WebhookSink, load_hooks
from siprec_bridge.live.decoder import RATE
from siprec_bridge.live.recogniser import Wanted
from siprec_bridge.live.tryout import Broken, try_out
from siprec_bridge.media import NoPortLeft, decodable
from siprec_bridge.parts import brokers_of, recipients_of, vcon_signer_of
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.receiver import descriptors
from siprec_bridge.receiver.ports import PortRange, shares
from siprec_bridge.receiver.ring import Ring
from siprec_bridge.sdp import RECORDABLE
from siprec_bridge.settings import Settings, likely_typos
from siprec_bridge.signalling import TlsFiles, TlsServerContext
from siprec_bridge.store import Database, StoreError
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcription import load_rules
from siprec_bridge.trial import MOST_WRONG_WORDS, sample_job, sample_words, try_provider
from siprec_bridge.trial import word_error_rate as word_error_rate
from siprec_bridge.vault import ObjectError, Recipients, encrypt_file, open_store

_OCTETS_AN_HOUR = 4.2e8  # of a two-party call in G.711: spools, a WAV each at 16 kHz, stereo
_BROKER_TIMEOUT_S = 10.0
_RENEW_WITHIN = timedelta(days=14)
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `soon`: it will be bad if nobody does anything."""

    part: str
    ok: bool
    text: str
    soon: bool = False

    def __str__(self) -> str:
        word = "BAD " if not self.ok else "SOON" if self.soon else "ok  "
        return f"{word}  {self.part:<11} {self.text}"


async def examine(settings: Settings, options: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Examine everything that the settings choose, one piece after the other."""
    for name, setting in likely_typos(options):
        text = f"{name} is none and does nothing; perhaps {setting} is meant"
        yield Finding("settings", True, text, soon=True)
    yield _ports(settings)
    yield _access(settings)
    if settings.http_tls_cert_path is not None and settings.http_tls_key_path is not None:
        yield _certificates(
            "http tls",
            TlsFiles(settings.http_tls_cert_path, settings.http_tls_key_path, prefix="HTTP_"),
        )
    if settings.tls_port is not None:
        yield examine_tls(settings)
    if settings.vcon_sign_cert_path is not None:
        yield examine_vcon_signing(settings)
    yield _rtp(settings)
    yield _codecs(settings)
    yield _folder(settings)
    if settings.archive_url is not None:
        yield await asyncio.to_thread(examine_archive, settings)
    if settings.recordings_recipients is not None:
        yield _encryption(settings.recordings_recipients)
    yield await _database(settings)
    yield await _recogniser(options, settings.stt_default_vendor)
    if settings.transcription_rules is not None:
        yield _rules(settings)
    if settings.live_transcripts != "off":
        yield await examine_live(settings)
    yield await _broker(settings)
    async for finding in examine_webhooks(settings):
        yield finding
    yield _clock()


def _ports(settings: Settings) -> Finding:
    wanted = [
        (settings.http_host, settings.http_port, socket.SOCK_STREAM, "HTTP_HOST", "HTTP_PORT"),
    ]
    for host in settings.sip_host:
        for kind, ports in (
            (socket.SOCK_DGRAM, settings.sip_udp_ports),
            (socket.SOCK_STREAM, settings.sip_tcp_ports),
        ):
            wanted += [(host, port, kind, "SIP_HOST", "PORTS") for port in ports]
        if settings.tls_port is not None:
            wanted.append((host, settings.tls_port, socket.SOCK_STREAM, "SIP_HOST", "TLS_PORT"))
    for host, port, kind, host_setting, port_setting in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            try:
                one.bind(
                    socket.getaddrinfo(host, port, family, kind)[0][4]
                )  # with its zone, if any
            except OSError as error:
                refusal = ConfigurationError.cannot_listen(
                    "UDP" if kind == socket.SOCK_DGRAM else "TCP",
                    (host, port),
                    error,
                    host=host_setting,
                    port=port_setting,
                )
                return Finding("ports", False, str(refusal))
    return Finding("ports", True, f"SIP and HTTP can listen ({len(wanted)} ports tried)")


def _access(settings: Settings) -> Finding:
    """Who may hear the recordings."""
    place = f"{settings.http_host}:{settings.http_port}"
    if settings.http_exposed:
        text = (
            f"{place} takes no token: whoever reaches it hears and deletes recordings; "
            "set HTTP_TOKENS (siprec-bridge token new), or HTTP_HOST=127.0.0.1"
        )
        return Finding("http", True, text, soon=True)
    if not settings.http_tokens:
        return Finding("http", True, f"{place} takes no token, and this machine alone reaches it")
    names = ", ".join(one.name for one in settings.http_tokens)
    plain = "; tokens cross the network in clear, unless a proxy speaks TLS for us"
    clear = settings.http_tls_cert_path is None and not settings.http_local
    return Finding("http", True, f"{place} takes the tokens of {names}{plain * clear}")


def examine_tls(settings: Settings) -> Finding:
    """Load SIP's certificates as the bridge does, and say until when they are good."""
    assert settings.tls_cert_path is not None
    assert settings.tls_key_path is not None
    files = TlsFiles(
        settings.tls_cert_path,
        settings.tls_key_path,
        settings.tls_client_ca_path,
        settings.tls_sni_dir,
    )
    mutual = ", SRCs must show one too" if files.client_ca is not None else ""
    allowed = f" for {', '.join(settings.tls_client_names)}" if settings.tls_client_names else ""
    return _certificates("tls", files, mutual + allowed)


def _certificates(part: str, files: TlsFiles, note: str = "") -> Finding:
    try:
        certificates = TlsServerContext(files).certificates
    except ConfigurationError as error:
        return Finding(part, False, str(error))
    paths = [*certificates.values(), *([files.client_ca] if files.client_ca is not None else [])]
    until, path = min((_valid_until(path), path) for path in paths)
    names = f", {len(certificates) - 1} more for the names of clients" * (len(certificates) > 1)
    return _expiry(part, path, until, "the bridge takes it over", names + note)


def _expiry(part: str, path: Path, until: datetime, renewed: str, note: str) -> Finding:
    """`renewed`: what is to be done once it is."""
    left = until - datetime.now(UTC)
    text = f"{path} is valid until {until:%Y-%m-%d}"
    if left < timedelta(0):
        return Finding(part, False, f"{text}; renew it")
    if left < _RENEW_WITHIN:
        return Finding(part, True, f"{text}; renew it, {renewed}", soon=True)
    return Finding(part, True, text + note)


def examine_vcon_signing(settings: Settings) -> Finding:
    """Load the key that signs vCons, and say until when its certificates are good."""
    try:
        signer = vcon_signer_of(settings)
    except ConfigurationError as error:
        return Finding("vcon", False, str(error))
    assert signer is not None
    assert settings.vcon_sign_cert_path is not None
    path, (since, until) = settings.vcon_sign_cert_path, signer.validity
    if since > datetime.now(UTC):
        text = f"{path} is valid from {since:%Y-%m-%d %H:%M} UTC only; whoever verifies refuses"
        return Finding("vcon", False, text)
    return _expiry("vcon", path, until, "and restart the bridge", f", signs with {signer.alg}")


def _valid_until(certificate: Path) -> datetime:
    """When the first certificate of a PEM file expires."""
    # The standard library has no other way to read a certificate that is not a peer's.
    shown: dict[str, str] = ssl._ssl._test_decode_cert(str(certificate))  # type: ignore[attr-defined]
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)


def _rtp(settings: Settings) -> Finding:
    for host in settings.rtp_hosts:
        try:
            for one in PortRange(settings.rtp_port_min, settings.rtp_port_max).bind(host):
                one.close()
        except NoPortLeft as error:
            return Finding("rtp", False, f"{error}; widen RTP_PORT_MIN to RTP_PORT_MAX")
        except OSError as error:
            return Finding("rtp", False, f"{host}: {error.strerror}; correct RTP_BIND_IP")
    ranges = shares(settings.rtp_port_min, settings.rtp_port_max, settings.worker_count)
    pairs = [PortRange(first, last).pairs for first, last in ranges]
    streams = sum(descriptors.room(one) for one in pairs)
    muxed = sum(descriptors.room(one, descriptors.OF_A_MUXED) for one in pairs)
    if settings.media_capture == "ring":
        try:
            Ring(*ranges[0], settings.media_capture_interfaces, settings.media_ring_mb << 20).stop()
        except OSError as error:
            text = f"MEDIA_CAPTURE=ring: {error.strerror or error}; it needs CAP_NET_RAW"
            return Finding("rtp", False, text)
    hosts = ", ".join(settings.rtp_hosts)
    text = f"room for {streams} streams at {hosts}, MEDIA_WORKERS {len(ranges)}"
    if streams < sum(pairs):
        text += f"; the limit of open files leaves {sum(pairs) - streams} ports unused"
        text += f" ({sum(pairs) - muxed} if all SRCs agree to rtcp-mux)"
    if 2 * settings.max_calls > streams:
        text += f"; MAX_CALLS {settings.max_calls} is more than that"
        return Finding("rtp", True, text, soon=True)
    return Finding("rtp", True, text)


def _codecs(settings: Settings) -> Finding:
    there = decodable()
    missing = [name for name in settings.codecs or RECORDABLE if name not in there]
    names = ", ".join(settings.codecs or there)
    if settings.codecs and missing:
        text = f"no decoder of {', '.join(missing)} on this machine; take them out of CODECS"
        return Finding("codecs", False, text)
    lacking = f"; no decoder here of {', '.join(missing)}" if missing else ""
    return Finding("codecs", True, f"accepted: {names}{lacking}")


def _folder(settings: Settings) -> Finding:
    folder = settings.recordings
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            "recordings",
            False,
            f"{folder}: {error.strerror}; make it writable or choose another RECORDING_DIR",
        )
    hours = free / _OCTETS_AN_HOUR
    text = (
        f"{folder}: {free / 1e9:.1f} GB free, about {hours:,.0f} hours of two-party calls in G.711"
    )
    if free < settings.min_free_disk:
        return Finding(
            "recordings",
            False,
            f"{text}: below MIN_FREE_DISK, calls are turned away; make room or move RECORDING_DIR",
        )
    return Finding("recordings", True, text)


def examine_archive(settings: Settings) -> Finding:
    """Write an object to ARCHIVE_URL, read it, delete it."""
    assert settings.archive_url is not None
    key, stop = f".doctor-{secrets.token_hex(8)}", threading.Event()
    try:
        store = open_store(settings.archive_url, settings.archive_options)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe"
            source.write_bytes(secrets.token_bytes(65536))
            sums = store.put(key, source, stop)
            try:
                store.check(key, sums, stop)
                if store.read(key, 0, sums.size) != source.read_bytes():
                    raise ObjectError("what was read is not what was written")
            finally:
                store.delete(key)
    except ConfigurationError as error:
        return Finding("archive", False, str(error))
    except OSError as error:
        text = f"{settings.archive_url}: {error}; check ARCHIVE_URL, ARCHIVE_OPTIONS and its rights"
        return Finding("archive", False, f"{text} (write, read, delete)")
    return Finding("archive", True, f"{store.place}: an object was written, read and deleted")


def _encryption(recipients: Recipients) -> Finding:
    """Encrypt something, as far as that can be tried by one who cannot decrypt it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe"
            source.write_bytes(b"probe")
            encrypt_file(source, Path(folder) / "probe.age", recipients)
    except (OSError, ValueError) as error:
        return Finding("encryption", False, f"{error}; correct RECORDINGS_RECIPIENTS")
    return Finding(
        "encryption", True, f"to {', '.join(recipients.keys)}; make sure that somebody has the key"
    )


async def _database(settings: Settings) -> Finding:
    try:
        store = Database(settings.database)
        await store.start()
        try:
            cause = await store.unwritable()
        finally:
            await store.stop()
    except (StoreError, ConfigurationError) as error:
        return Finding("database", False, f"{error}; correct DATABASE_URL or DATA_DIR")
    if cause is not None:
        return Finding("database", False, f"{store.place}: {cause}")
    return Finding("database", True, f"{store.place} takes a transaction")


async def _recogniser(options: Mapping[str, str], vendor: str) -> Finding:
    """Run it on the bundled sample and compare what it hears with what is said."""
    trial = await try_provider(vendor, options)
    last = trial.steps[-1]
    if trial.reason == "off":  # as somebody wants it
        return Finding("recogniser", True, last.text)
    if trial.provider is None or last.name == "program":
        return Finding("recogniser", False, last.text)
    if not last.ok:
        wrote = " ".join(trial.stderr[-200:].split()) or "nothing"
        return Finding("recogniser", False, f"{trial.provider}: {last.text}; it wrote: {wrote}")
    return Finding("recogniser", True, f"{trial.provider}: {last.text}, {trial.seconds:.1f} s")


async def examine_live(settings: Settings) -> Finding:
    """Say what one party of the bundled sample says, as a stream of a call."""
    wanted = Wanted(
        url=settings.live_url,
        max_lag=settings.live_max_lag.total_seconds(),
        token=settings.live_token,
        model=settings.live_model,
    )
    async with sample_job(RATE) as job:
        with wave.open(str(job.audio[0].path)) as file:
            pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        said = sample_words()[job.audio[0].key]
    try:
        heard = await try_out(wanted, pcm)
    except Broken as error:
        remedy = (
            "check LIVE_URL, LIVE_TOKEN and LIVE_MODEL"
            if error.step == "connect"
            else "what does it log?"
        )
        text = f"{settings.live_url}: {error.step}: {error}; {remedy} (calls are recorded without)"
        return Finding("live", False, text)
    wrong = word_error_rate(said, heard.text)
    text = (
        f"{settings.live_url}: {heard.model or 'its model'} told {heard.growing} growing and "
        f"{heard.settled} settled lines in {heard.seconds:.1f} s, {wrong:.0%} of the words wrong"
    )
    if wrong > MOST_WRONG_WORDS:
        return Finding("live", True, f"{text}; is LIVE_MODEL right for English?", soon=True)
    return Finding("live", True, text)


def _rules(settings: Settings) -> Finding:
    try:
        rules = load_rules(settings.transcription_rules, settings.supported_vendors)
    except ConfigurationError as error:
        return Finding("rules", False, str(error))
    return Finding("rules", True, f"{len(rules)} in {settings.transcription_rules}")


async def _broker(settings: Settings) -> Finding:
    """Publish a message through the exchange to a queue of our own, and take it out again."""
    try:
        brokers = brokers_of(settings)
        if brokers is None:
            return Finding("broker", True, "none configured (AMQP_URL)")
        recipients_of(settings, ())
        sink = AmqpSink(
            brokers,
            Metrics(),
            exchange=settings.amqp_exchange,
            topology=settings.amqp_topology,
        )
        async with asyncio.timeout(_BROKER_TIMEOUT_S):
            await sink.connect()
            try:
                await sink.try_out()
            finally:
                await sink.close()
    except ConfigurationError as error:
        return Finding("broker", False, str(error))
    except (Unreachable, TimeoutError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        cure = "check AMQP_URL, its user and its vhost"
        if "ACCESS_REFUSED" in cause and "amq.gen" in cause:
            # Its login is right, and the bridge itself needs no such queue.
            cure = "for this test its user needs rights to amq\\.gen.*, and to read the exchange"
        return Finding("broker", False, f"{cause}; {cure}")
    return Finding("broker", True, f"a message went through exchange {settings.amqp_exchange}")


async def examine_webhooks(settings: Settings) -> AsyncIterator[Finding]:
    """Ask each for its options, by our way there and our certificates: that delivers nothing."""
    try:
        hooks = load_hooks(settings.webhooks)
    except ConfigurationError as error:
        yield Finding("webhook", False, str(error))
        return
    for hook in hooks:
        sink = WebhookSink(hook, Metrics())
        try:
            status = await sink.knock()
        except Unreachable as error:
            text = f"{hook.name}: {error}; check url, ca and client_certificate in WEBHOOKS"
            yield Finding("webhook", False, text)
        else:
            clear = "" if sink.address.startswith("https:") else "; transcripts go there in clear"
            text = f"{hook.name}: {sink.address} is there (it answers OPTIONS with {status}){clear}"
            yield Finding("webhook", True, text)
        finally:
            await sink.close()


def _clock() -> Finding:
    now = datetime.now(UTC)
    if now.year < 2025:
        return Finding("clock", False, f"{now:%Y-%m-%d %H:%M} UTC is in the past; set the clock")
    buffer = ctypes.create_string_buffer(512)  # struct timex, all zero: only asks
    synchronised = ctypes.CDLL(None).adjtimex(buffer) not in (-1, _TIME_ERROR)
    note = "" if synchronised else ", not known to be synchronised (NTP)"
    return Finding("clock", True, f"{now:%Y-%m-%d %H:%M:%S} UTC{note}")
