"""What a bridge does, said in its log when it starts: no operator should have to guess it."""

import structlog

from siprec_bridge import __version__
from siprec_bridge.app import Bridge
from siprec_bridge.provider import is_off
from siprec_bridge.settings import Settings
from siprec_bridge.store import outbox

log = structlog.get_logger()


async def tell_choices(bridge: Bridge) -> None:
    """Log what the bridge was told to do, what it does in default of that, and what is odd."""
    settings = bridge.settings
    bound: dict[str, list[str]] = {"udp": [], "tcp": [], "tls": []}
    for one in bridge.listener.endpoints:
        bound[one.transport].append(str(one))
    sip = "; ".join(
        f"{name.upper()} {', '.join(places)}" for name, places in bound.items() if places
    )
    host, port = bridge.front.address
    http = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    secure = "s" if bridge.http_tls is not None else ""
    stored = "embedded SQLite" if settings.database_url is None else "DATABASE_URL"
    chosen = [
        f"SIP on {sip}",
        "SIP from "
        + (", ".join(map(str, settings.sip_allowed_sources)) or "anyone who reaches the port")
        + (f", with a password (realm {settings.sip_auth_realm})" * bool(settings.sip_auth_users)),
        *_tls(bridge),
        f"RTP on {', '.join(settings.rtp_hosts)}, ports {settings.rtp_port_min} "
        f"to {settings.rtp_port_max}, received by {bridge.media.receiver}, in {bridge.media.workers} "
        f"process{'es' * (bridge.media.workers > 1)} with room for {bridge.media.room} streams, "
        f"sources: {settings.rtp_source}",
        f"recordings in {settings.recordings}",
        *_archive(settings),
        *_redaction(settings),
        f"database {bridge.database.place} ({stored})"
        + (f", as node {bridge.database.node}" if bridge.database.node is not None else ""),
        f"recogniser {bridge.provider.describe()}"
        + ", switched off: calls are recorded, jobs are off" * is_off(bridge.provider),
        *(f"also recogniser {one.name}: {one.describe()}" for one in bridge.providers[1:]),
        *(
            [f"{len(bridge.orders.rules)} rules of {settings.transcription_rules}"]
            if settings.transcription_rules is not None
            else []
        ),
        f"it gets {'whole legs' if bridge.speech is None else 'the speech of each leg alone'}",
        f"live lines from {settings.live_url}"
        + (", of the calls that rules say" * (settings.live_transcripts == "rules"))
        if bridge.live is not None
        else "no live lines: LIVE_TRANSCRIPTS is off",
        f"delivery to WebSocket listeners at ws{secure}://{http}/ws/transcripts",
        f"delivery to AMQP at {bridge.broker.address}"
        if bridge.broker is not None
        else "no delivery to AMQP: AMQP_URL is not set",
        *(
            f"delivery to {sink.name} at {sink.address}, "
            f"{', '.join(one + '*' for one in sink.hook.types or ('',))}"
            for sink in bridge.webhooks
        ),
        f"page, API, metrics and health at http{secure}://{http}/, "
        + (
            f"with a token ({', '.join(one.name for one in settings.http_tokens)})"
            if settings.http_tokens
            else "without a token"
        ),
    ]
    for line in chosen:
        log.info("bridge.chose", what=line)
    if settings.http_exposed:
        log.warning(
            "http.open",
            address=http,
            effect="whoever reaches it hears and deletes recordings",
            remedy="HTTP_TOKENS (siprec-bridge token new), or HTTP_HOST=127.0.0.1",
        )
    served = {relay.name for relay in bridge.relays}
    for name in await bridge.database.read(outbox.sinks):
        if name not in served:
            log.warning(
                "delivery.sink_gone",
                sink=name,
                effect="its events are kept until a sink of this name takes them",
                remedy=f"siprec-bridge deliveries drop {name} --all --pending",
            )
    cause = await bridge.provider.unavailable()
    if cause is not None and not is_off(bridge.provider):
        log.error("recogniser.unavailable", cause=cause, effect="calls are recorded, jobs wait")
    log.info(
        "bridge.ready",
        version=__version__,
        sip_udp=bound["udp"],
        sip_tcp=bound["tcp"],
        sip_tls=bound["tls"],
        http=http,
    )


def _tls(bridge: Bridge) -> list[str]:
    if bridge.tls is None:
        return []
    names = [name for name in bridge.tls.certificates if name]
    said = [f"TLS certificates of their own for {', '.join(names)}"] if names else []
    if bridge.settings.tls_client_names:
        said.append(f"TLS from {', '.join(bridge.settings.tls_client_names)}")
    return said


def _redaction(settings: Settings) -> list[str]:
    if not settings.redact:
        return []
    audio = {"silence": ", and of audio", "beep": ", and of audio, where it beeps", "keep": ""}
    return [f"{', '.join(settings.redact)} taken out of transcripts{audio[settings.redact_audio]}"]


def _archive(settings: Settings) -> list[str]:
    said = []
    if settings.archive_url is not None:
        kept = settings.archive_keep_local
        here = f"deleted here {kept} later" if kept is not None else "and kept here"
        said.append(f"recordings taken to {settings.archive_url}, {here}")
    if settings.recordings_recipients is not None:
        count = len(settings.recordings_recipients.keys)
        said.append(f"recordings encrypted to {count} public key{'s' * (count > 1)}")
    return said
