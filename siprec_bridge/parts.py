"""Parts that are made of the settings alone."""

from collections.abc import Callable, Sequence
from functools import cache

import structlog

from siprec_bridge.delivery import AmqpSink, Brokers, BrokerTls, Hook, beginnings_of_types
from siprec_bridge.media import decodable
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.recording import Certificate, Orders, Redactor, Safekeeping, VconEvents, Vcons
from siprec_bridge.redaction import Policy
from siprec_bridge.rtp import available_suites
from siprec_bridge.sdp import MediaPolicy
from siprec_bridge.settings import Settings
from siprec_bridge.store import node_id, outbox
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcription import SpeechOptions, missing_detector
from siprec_bridge.vault import open_store
from siprec_bridge.vcon import Signer

log = structlog.get_logger()


def brokers_of(settings: Settings) -> Brokers | None:
    """Where AMQP goes, if anywhere. Raises ConfigurationError."""
    if settings.amqp_url is None:
        return None
    ca, certificate = settings.amqp_tls_ca_path, settings.amqp_tls_cert_path
    return Brokers(
        settings.amqp_url,
        tls=BrokerTls(ca, certificate, settings.amqp_tls_key_path) if ca or certificate else None,
        external=settings.amqp_auth == "external",
        heartbeat_s=round(settings.amqp_heartbeat.total_seconds()),
    )


def recipients_of(settings: Settings, hooks: Sequence[Hook]) -> list[outbox.Recipient]:
    """All who get events of the outbox: what nobody gets now cannot be sent later.

    Raises ConfigurationError.
    """
    broker: list[outbox.Recipient] = []
    if settings.amqp_url is not None:
        try:
            types = beginnings_of_types(settings.amqp_types)
        except ValueError as error:
            raise ConfigurationError(
                f"AMQP_TYPES={','.join(settings.amqp_types)}", str(error)
            ) from error
        broker.append(outbox.Subscriber(AmqpSink.name, types) if types else AmqpSink.name)
    return broker + [hook.recipient for hook in hooks]


def media_policy_of(settings: Settings) -> MediaPolicy:
    """What is accepted. Raises ConfigurationError for one that cannot be decoded."""
    there = decodable()
    missing = [name for name in settings.codecs if name not in there]
    if missing:
        reason = f"this machine's FFmpeg has no decoder of {', '.join(missing)}"
        raise ConfigurationError(f"CODECS={','.join(settings.codecs)}", reason)
    return MediaPolicy(
        settings.codecs or there,
        srtp=settings.srtp,
        suites=available_suites(),
        sdes_only_over_tls=settings.srtp_sdes_only_over_tls,
    )


def safekeeping_of(settings: Settings) -> Safekeeping:
    """What becomes of finished recordings. Raises ConfigurationError for a store that cannot be."""
    return Safekeeping(
        store=open_store(settings.archive_url, settings.archive_options)
        if settings.archive_url is not None
        else None,
        recipients=settings.recordings_recipients,
        layout=settings.archive_layout,
        keep_local=settings.archive_keep_local,
        after_transcription=settings.archive_when == "transcribed",
        plain_for=settings.recordings_plain_for,
    )


def redactor_of(settings: Settings, orders: Orders, metrics: Metrics) -> Redactor:
    """What takes out of sessions what the policy names."""
    return Redactor(
        Policy(frozenset(settings.redact), settings.redact_regions),
        orders,
        metrics,
        cover=settings.redact_audio,
        originals=settings.recordings_recipients if settings.redact_keep_original else None,
    )


def certificate_of(settings: Settings) -> Callable[[], Certificate]:
    """What DTLS-SRTP is done with. Raises ConfigurationError for one that cannot be used.

    One of our own is made with the first call that asks: OpenSSL costs others nothing then.
    """

    @cache
    def made() -> Certificate:
        from siprec_bridge import dtls

        return dtls.Certificate.make()

    if settings.dtls_cert_path is None or settings.dtls_key_path is None:
        return made
    from siprec_bridge import dtls

    where = f"DTLS_CERT_PATH={settings.dtls_cert_path}, DTLS_KEY_PATH={settings.dtls_key_path}"
    try:
        read = dtls.Certificate.read(
            settings.dtls_cert_path.read_bytes(), settings.dtls_key_path.read_bytes()
        )
    except OSError as error:
        raise ConfigurationError(where, f"{error.filename}: {error.strerror}") from error
    except dtls.BadCertificate as error:
        raise ConfigurationError(where, str(error)) from error
    return lambda: read


def vcon_signer_of(settings: Settings) -> Signer | None:
    """What signs vCons. Raises ConfigurationError for a key that cannot."""
    chain, key = settings.vcon_sign_cert_path, settings.vcon_sign_key_path
    if chain is None or key is None:
        return None
    where = f"VCON_SIGN_CERT_PATH={chain}, VCON_SIGN_KEY_PATH={key}"
    try:
        return Signer.read(chain.read_bytes(), key.read_bytes())
    except OSError as error:
        raise ConfigurationError(where, f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(where, str(error)) from error


def vcon_events_of(settings: Settings, signer: Signer | None) -> VconEvents | None:
    """What makes an event of each session's container; None: nobody wants them."""
    if settings.vcon_events == "off":
        return None
    return VconEvents(Vcons(settings.vcon_events, address=settings.http_public_url or ""), signer)


def speech_of(settings: Settings) -> SpeechOptions | None:
    """What counts as speech; None where recognisers get whole legs."""
    if not settings.vad:
        return None
    if (cause := missing_detector()) is not None:
        log.warning("vad.unavailable", cause=cause, effect="recognisers get whole legs")
        return None
    return SpeechOptions(
        threshold=settings.vad_threshold,
        min_speech_ms=settings.min_speech_duration_ms,
        max_speech_s=settings.max_speech_duration_s,
        pad_ms=settings.speech_pad_ms,
    )


def node_of(settings: Settings) -> str | None:
    """The name among those that share the database; None: it is ours alone."""
    if not settings.database.startswith("postgresql"):
        return None
    if settings.node_id is not None:
        return settings.node_id
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return node_id(settings.data_dir)
    except OSError as error:
        raise ConfigurationError(f"DATA_DIR={settings.data_dir}", f"{error.strerror}") from error
