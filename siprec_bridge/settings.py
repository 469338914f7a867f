"""Every setting of the bridge: name, type, default, meaning.

A setting is an environment variable. The same names, in a TOML file (`http_port = 8080`, or
`[http]` with `port = 8080`) and in `.env`, rank below it: defaults < TOML < .env < environment.
`NAME_FILE` names a file that holds the value of `NAME`, for secrets. What begins with a
provider's name (`WHISPER_…`) belongs to that provider, which reads it from `options`.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from siprec_bridge.access import Token, read_tokens
from siprec_bridge.provider import ConfigurationError, parse_duration
from siprec_bridge.redaction import DEFAULT_REGIONS, Kind, parse_kinds
from siprec_bridge.sdp import RECORDABLE
from siprec_bridge.vault import Layout, Recipients


def _ports(value: object) -> object:
    """Split "5060,5070" at its commas; "none" is no port at all."""
    if isinstance(value, str):
        return [part for part in value.replace(" ", "").split(",") if part and part != "none"]
    return value


def _names(value: object) -> object:
    if isinstance(value, str):
        return [part.strip().lower() for part in value.split(",") if part.strip()]
    return value


def _hosts(value: object) -> object:
    if isinstance(value, str):
        return [part.strip().strip("[]") for part in value.split(",") if part.strip()]
    return value


def _external(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = [part.replace(" ", "") for part in value.split(",") if part.strip()]
    for part in parts:
        try:
            families = {ip_address(one).version for one in part.split("=", 1)}
        except ValueError as error:
            raise ValueError(f"{error}; write 203.0.113.5 or 10.0.0.1=203.0.113.5") from error
        if len(families) > 1:
            raise ValueError(f"{part}: both must be of IPv4 or both of IPv6")
    return parts


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{error}; write 192.0.2.10 or 198.51.100.0/24") from error


def _upper_names(value: object) -> object:
    if isinstance(value, str):
        return [part.strip().upper() for part in value.split(",") if part.strip()]
    return value


def _codecs(value: object) -> object:
    names = _upper_names(value)
    if isinstance(names, list) and (unknown := [one for one in names if one not in RECORDABLE]):
        raise ValueError(f"{', '.join(unknown)}: names among {', '.join(RECORDABLE)} are needed")
    return names


def _users(value: object) -> object:
    if not isinstance(value, str):
        return value
    users: dict[str, str] = {}
    for part in value.replace("\n", ",").split(","):
        name, colon, password = part.strip().partition(":")
        if part.strip() and not (name and colon and password):
            raise ValueError("name:password is needed, several by commas")
        if name:
            users[name] = password
    return users


def _tokens(value: object) -> object:
    return read_tokens(value) if isinstance(value, str) else value


def _origins(value: object) -> object:
    names = _names(value)
    for name in names if isinstance(names, list) else ():
        if not re.fullmatch(r"https?://[^/?#@\s]+", name):
            raise ValueError(f"{name}: an origin such as https://wallboard.example.com is needed")
    return names


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", value.strip().lower())
    if found is None:
        raise ValueError("a size such as 500MB or 2GB is needed")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2] or " "))


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError('a JSON object such as {"endpoint_url": "https://…"} is needed')
    return found


def _layout(value: object) -> object:
    return Layout(value) if isinstance(value, str) else value


def _recipients(value: object) -> object:
    return Recipients.read(value) if isinstance(value, str) else value


def _duration(value: object) -> object:
    return timedelta(seconds=parse_duration(value)) if isinstance(value, str) else value


def _age(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "never":
        return None
    # 90 is 90 seconds elsewhere; here that would delete what was to be kept for 90 days.
    if value.strip().isdecimal():
        raise ValueError("a unit is needed: 90d, 12h or 30m")
    return _duration(value)


def _room(value: object) -> object:
    if isinstance(value, str) and value.strip().isdecimal():
        raise ValueError("a unit is needed: 500GB or 2TB")
    return _size(value)


def _kinds(value: object) -> object:
    return tuple(sorted(parse_kinds(value.split(",")))) if isinstance(value, str) else value


def _regions(value: object) -> object:
    from phonenumbers import SUPPORTED_REGIONS  # many modules, for who says something here

    names = _upper_names(value)
    for name in names if isinstance(names, list) else ():
        if name not in SUPPORTED_REGIONS:  # UK, say: its numbers would stay
            raise ValueError(f"{name}: countries by ISO 3166, such as US,GB,DE, are needed")
    return names


Port = Annotated[int, Field(ge=0, le=65535)]
PortList = Annotated[tuple[Port, ...], BeforeValidator(_ports)]
NameList = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]
ExternalList = Annotated[tuple[str, ...], BeforeValidator(_external)]
HostList = Annotated[tuple[str, ...], BeforeValidator(_hosts), Field(min_length=1)]
Users = Annotated[dict[str, str], BeforeValidator(_users), Field(repr=False)]
Tokens = Annotated[tuple[Token, ...], BeforeValidator(_tokens), Field(repr=False)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
NetworkList = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
Age = Annotated[Annotated[timedelta, Field(gt=timedelta(0))] | None, BeforeValidator(_age)]


_SECRETS = (
    "SIP_AUTH_USERS",
    "AMQP_URL",
    "HTTP_TOKENS",
    "LIVE_TOKEN",
    "DATABASE_URL",
    "ARCHIVE_OPTIONS",
    "RECORDINGS_RECIPIENTS",  # somebody will give the wrong half of a key
)  # never shown, not even when they are wrong
_CASELESS = (
    "log_level",
    "log_format",
    "stt_default_vendor",
    "sip_unknown_sources",
    "non_siprec_calls",
    "dtmf_events",
    "recording_format",
    "archive_when",
    "rtp_source",
    "srtp",
    "hallucination_guard",
    "amqp_topology",
    "amqp_auth",
    "redact_audio",
    "live_transcripts",
    "live_redacted",
    "vcon_events",
)


class Settings(BaseModel):
    """What the operator chose. Build it with `load`; attribute = variable in lower case."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    # Signalling
    sip_host: HostList = Field(
        ("0.0.0.0",),
        description="addresses that SIP listens on, each with every port; "
        "0.0.0.0,:: is all of IPv4 and IPv6",
    )
    ports: PortList = Field((5060,), description="SIP ports, UDP and TCP; 0 picks a free one")
    udp_ports: PortList | None = Field(
        None, description="SIP ports for UDP, instead of PORTS; none: no UDP"
    )
    tcp_ports: PortList | None = Field(
        None, description="SIP ports for TCP, instead of PORTS; none: no TCP"
    )
    tls_port: Port | None = Field(None, description="SIP port for TLS, usually 5061; none: no TLS")
    tls_cert_path: Path | None = Field(
        None, description="PEM file of our certificate and its chain; renewed files are taken over"
    )
    tls_key_path: Path | None = Field(None, description="PEM file of its private key")
    tls_client_ca_path: Path | None = Field(
        None, description="PEM file of CAs; set: SRCs must show a certificate that these signed"
    )
    tls_client_names: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (),
        description="domains (or *.example.com); set: an SRC's certificate must be for one of them",
    )
    tls_sni_dir: Path | None = Field(
        None,
        description="folder of NAME.crt and NAME.key, also _wildcard.example.com.crt: "
        "certificates for clients that ask for NAME",
    )
    sip_allowed_sources: NetworkList = Field(
        (), description="addresses and networks that may send SIP; none given: anyone"
    )
    sip_unknown_sources: Literal["silent", "forbidden"] = Field(
        "silent", description="what others get: no answer, or a 403"
    )
    sip_auth_realm: str = Field("siprec-bridge", min_length=1, description="realm of the users")
    sip_auth_users: Users = Field(
        {},
        description="name:password, several by commas: SRCs must authenticate (digest); "
        "none given: they need not",
    )
    sip_auth_algorithms: Annotated[
        tuple[Literal["SHA-256", "MD5"], ...], BeforeValidator(_upper_names), Field(min_length=1)
    ] = Field(
        ("SHA-256", "MD5"),
        description="digests that are offered, in this order; MD5 alone for SRCs that know no other",
    )
    max_calls: Annotated[int, Field(ge=0)] = Field(
        0, description="calls at once; further ones are turned away (503); 0: no limit"
    )
    sip_call_rate: Annotated[float, Field(ge=0)] = Field(
        0, description="new calls a second from one address; more are turned away; 0: no limit"
    )
    non_siprec_calls: Literal["record", "refuse"] = Field(
        "record", description="INVITEs of forks that are not SIPREC: recorded, or answered 421"
    )
    external_ip: ExternalList = Field(
        (),
        description="address that Contact and SDP announce (behind NAT); else the local one. "
        "One for each family, or LOCAL=EXTERNAL for each address of SIP_HOST, by commas",
    )

    # Media
    rtp_bind_ip: str | None = Field(
        None,
        description="address that RTP is received on; else SIP_HOST, "
        "of several the one that the call came to",
    )
    rtp_port_min: Annotated[int, Field(ge=1024, le=65535)] = Field(
        16384, description="first RTP port"
    )
    rtp_port_max: Annotated[int, Field(ge=1024, le=65535)] = Field(
        32767, description="last RTP port"
    )
    rtp_timeout: Duration = Field(
        timedelta(seconds=30), description="a stream without RTP for so long is reported as silent"
    )
    rtp_source: Literal["learned", "signalled", "any"] = Field(
        "learned",
        description="whose RTP is recorded: signalled, of the address in the SRC's SDP; learned, "
        "of that, its SIP's, or else the first that sends; any, of anyone who finds the port",
    )
    media_workers: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="processes that receive RTP, each with its share of the ports; "
        "else one for each core",
    )
    codecs: Annotated[tuple[str, ...], BeforeValidator(_codecs)] = Field(
        (),
        description="encodings that are accepted, such as PCMA,G729; none given: all that can be "
        "decoded. The SRC's order of preference counts",
    )
    dtmf_events: Literal["keep", "mask", "drop"] = Field(
        "mask",
        description="telephone keys sent as RFC 4733 events: told, told as *, or not told at all",
    )
    srtp: Literal["accept", "require", "refuse"] = Field(
        "accept",
        description="encrypted media: taken when offered; required, plain RTP is refused; or refused",
    )
    srtp_sdes_only_over_tls: bool = Field(
        False, description="true: keys in SDP are taken only from SIP over TLS"
    )
    dtls_cert_path: Path | None = Field(
        None,
        description="PEM file of the certificate that DTLS-SRTP is done with; else one is made "
        "with the first call that needs it",
    )
    dtls_key_path: Path | None = Field(None, description="PEM file of its private key")
    rtp_fast_path: bool = Field(True, description="receive with recvmmsg; false: plain sockets")
    media_capture: Literal["sockets", "ring"] = Field(
        "sockets",
        description="ring: RTP is taken out of a ring that the kernel fills, at about half the CPU; "
        "needs CAP_NET_RAW",
    )
    media_capture_interfaces: Annotated[tuple[str, ...], BeforeValidator(_hosts)] = Field(
        (), description="where the ring listens, such as eth0,lo; none given: everywhere"
    )
    media_ring_mb: Annotated[int, Field(ge=16, le=2048)] = Field(
        128, description="MiB of a worker's ring; 64 hold a second of 4,000 streams of G.711"
    )

    # Storage
    data_dir: Path = Field(
        Path("data"), description="folder of everything the bridge keeps on disk"
    )
    recording_dir: Path | None = Field(None, description="audio; else DATA_DIR/recordings")
    recording_format: Literal["wav", "flac", "opus"] = Field(
        "wav",
        description="of finished audio; flac has the same samples in less room, opus has a "
        "fifteenth, with losses that are not heard",
    )
    database_url: str | None = Field(
        None,
        description="postgresql://user:password@host/name, which several bridges may share; "
        "else SQLite in DATA_DIR/siprec-bridge.db",
    )
    node_id: str | None = Field(
        None,
        pattern=r"^[\w.:-]{1,100}$",
        description="name of this bridge among those that share the database; "
        "else one made up for DATA_DIR",
    )
    recordings_shared: bool = Field(
        False,
        description="true: all nodes have the same RECORDING_DIR at the same path, "
        "so that any may transcribe what another recorded",
    )
    database_wait: Duration = Field(
        timedelta(seconds=60),
        description="longest wait for a database server that is away at the start",
    )
    min_free_disk: Size = Field(
        500_000_000, description="new calls are turned away (503) while less than this is free"
    )
    keep_audio: Age = Field(None, description="audio of older calls is deleted; unset: never")
    keep_audio_size: Annotated[int, BeforeValidator(_room), Field(gt=0)] | None = Field(
        None,
        description="beyond it, the oldest audio that has been transcribed is deleted; "
        "unset: never",
    )
    keep_sessions: Age = Field(
        None, description="older calls are deleted with all that is known of them; unset: never"
    )
    keep_events: Age = Field(
        timedelta(days=30),
        description="older events are deleted once every sink has them; or never",
    )

    archive_url: str | None = Field(
        None,
        description="where finished recordings are taken: s3://bucket/folder, gs://…, az://…, "
        "file:///folder; none: they stay in RECORDING_DIR",
    )
    archive_options: Annotated[
        dict[str, object], BeforeValidator(_json_object), Field(repr=False)
    ] = Field(
        {},
        description="how to reach it, as fsspec takes it, in JSON: "
        '{"endpoint_url": "https://s3.example.com", "key": "…", "secret": "…"}',
    )
    archive_layout: Annotated[Layout, BeforeValidator(_layout)] = Field(
        Layout("{year}/{month}/{day}/{session}"),
        description="folders in it, of {year} {month} {day} {hour} {session} {call_id} {group} "
        "{tenant} {peer} {node}; times are UTC",
    )
    archive_when: Literal["finished", "transcribed"] = Field(
        "finished",
        description="recordings are taken there once they are finished, or only once their "
        "transcription is done, too",
    )
    archive_keep_local: Age = Field(
        None,
        description="files are deleted here so long after the store has proven that it has them; "
        "unset: never. Never before their transcription is done",
    )
    recordings_recipients: Annotated[Recipients | None, BeforeValidator(_recipients)] = Field(
        None,
        description="public keys (age1…, ssh-ed25519 …), by commas; set: recordings are encrypted to "
        "them, at once in the archive, here once their transcription is done",
    )
    recordings_plain_for: Age = Field(
        None,
        description="so long after the call they are encrypted here even if their transcription is "
        "not done, which then cannot be done any more; unset: never",
    )

    # Transcription
    supported_vendors: NameList = Field(("whisper",), description="providers that may be used")
    stt_default_vendor: str = Field("whisper", description="provider of a call that names none")
    transcription_attempts: Annotated[int, Field(ge=1)] = Field(
        5, description="runs before a job is parked as failed"
    )
    transcription_retry_delay: Duration = Field(
        timedelta(seconds=5),
        description="wait before the second run; doubles with each further one",
    )
    transcription_rules: Path | None = Field(
        None,
        description="TOML file of rules: vendor, model, language, prompt, priority and live by call",
    )
    transcription_circuit: Annotated[int, Field(ge=0)] = Field(
        5,
        description="runs that fail alike in a row before the recogniser is probed; broken, it gets "
        "no jobs, and none is given up; 0: never probed",
    )
    transcription_fallback_after: Age = Field(
        None,
        description="a vendor that is away or broken for so long loses its jobs to the next of "
        "SUPPORTED_VENDORS, as do jobs that it gave up; unset: never",
    )
    vad: bool = Field(
        True,
        description="false: recognisers get whole legs; true: the speech in them, and none without",
    )
    vad_threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="probability from which on a moment is taken for speech"
    )
    min_speech_duration_ms: Annotated[int, Field(ge=0, le=10_000)] = Field(
        250, description="speech shorter than this is left out, unless it stands near other speech"
    )
    max_speech_duration_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        30, description="longer speech is divided at its quietest moments"
    )
    speech_pad_ms: Annotated[int, Field(ge=0, le=10_000)] = Field(
        400, description="what is kept before and after speech"
    )
    transcription_packing: Literal["off", "call", "calls"] = Field(
        "off",
        description="short legs that one file of 30 s has room for, where the language is set and VAD "
        "on: each has a file of its own; those of a call, or of several calls, share one",
    )
    hallucination_guard: Literal["suppress", "flag", "off"] = Field(
        "suppress",
        description="text that nobody seems to have said: set aside in the stored transcript, "
        "or delivered with its doubt, or as any other",
    )

    # Redaction
    redact: Annotated[tuple[Kind, ...], BeforeValidator(_kinds)] = Field(
        (),
        description="what is taken out of transcripts and audio: of cards, emails, phones, ids, "
        "ibans; or all; or off. A rule may say otherwise",
    )
    redact_regions: Annotated[tuple[str, ...], BeforeValidator(_regions)] = Field(
        DEFAULT_REGIONS,
        description="countries whose telephone numbers are known without their country code",
    )
    redact_audio: Literal["silence", "beep", "keep"] = Field(
        "silence", description="what the recording gets there; keep: it stays as it was"
    )
    redact_keep_original: bool = Field(
        False,
        description="true: the conversation as it was said is kept as well, encrypted to "
        "RECORDINGS_RECIPIENTS",
    )

    # Live transcripts
    live_transcripts: Literal["off", "on", "rules"] = Field(
        "off",
        description="lines while the call is on: of no call; of each, unless a rule says live = false; "
        "of those of which a rule says live = true",
    )
    live_url: str = Field(
        "ws://127.0.0.1:9300/v1/stream",
        pattern=r"^wss?://[^\s@]+$",
        description="live recogniser: siprec-asr, or whoever speaks its protocol",
    )
    live_token: str | None = Field(
        None, repr=False, description="bearer token for it (ASR_TOKEN of siprec-asr)"
    )
    live_model: str | None = Field(
        None, min_length=1, description="model that it is asked for; unset: its own choice"
    )
    live_max_lag: Duration = Field(
        timedelta(seconds=5),
        ge=timedelta(seconds=2),
        le=timedelta(seconds=60),
        description="a recogniser that is further behind than this skips what was said meanwhile",
    )
    live_processes: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="processes that live calls are heard in, at most; one, until it is busy; "
        "else one for each core",
    )
    live_to_sinks: bool = Field(
        False,
        description="true: AMQP and other sinks get live lines, too, those of utterances that are over",
    )
    live_redacted: Literal["withhold", "mask"] = Field(
        "withhold",
        description="calls of which something is taken out: not heard live; or heard, all numbers that "
        "may be of that kind being masked",
    )

    # Delivery
    amqp_url: str | None = Field(
        None,
        description="amqp://user:password@host:5672/vhost, or amqps://; several by commas are tried "
        "in turn; none: no AMQP",
    )
    amqp_exchange: str = Field(
        "siprec", min_length=1, description="topic exchange that is published to"
    )
    amqp_topology: Literal["declare", "check"] = Field(
        "declare", description="the exchange is made where it is missing; check: it must be there"
    )
    amqp_types: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        (),
        description="beginnings of event types that brokers get, such as transcript.final; else all",
    )
    amqp_auth: Literal["password", "external"] = Field(
        "password", description="external: our certificate logs us in (SASL EXTERNAL)"
    )
    amqp_tls_ca_path: Path | None = Field(
        None, description="PEM file of who signs brokers' certificates; else the system's"
    )
    amqp_tls_cert_path: Path | None = Field(
        None, description="PEM file of our certificate for brokers and its chain"
    )
    amqp_tls_key_path: Path | None = Field(None, description="PEM file of its private key")
    amqp_heartbeat: Annotated[
        Duration, Field(ge=timedelta(seconds=1), le=timedelta(minutes=10))
    ] = Field(
        timedelta(seconds=15),
        description="between signs of life; a broker that is still for three of them is given up",
    )
    amqp_inline_limit: Annotated[int, BeforeValidator(_size), Field(ge=1000)] = Field(
        4_000_000,
        description="transcripts that are larger go by reference: an address to get it at",
    )
    webhooks: Path | None = Field(
        None,
        description="TOML file of webhooks: URLs that events are posted to, signed; none: no webhooks",
    )
    vcon_events: Literal["off", "none", "url"] = Field(
        "off",
        description="an event session.vcon after each transcript: off; without audio; "
        "or with the audio's URLs (HTTP_PUBLIC_URL)",
    )
    vcon_inline_max: Size = Field(
        100_000_000, description="largest audio that the API writes into a vCon"
    )
    vcon_sign_cert_path: Path | None = Field(
        None,
        description="PEM file of the certificate, and its chain, that vCons are signed by; none: unsigned",
    )
    vcon_sign_key_path: Path | None = Field(None, description="PEM file of its private key")

    # Operation
    http_host: str = Field(
        "127.0.0.1",
        description="address of API, page, metrics, health and WebSocket; "
        "give HTTP_TOKENS before you open it to a network",
    )
    http_port: Port = Field(8080, description="port of the same; 0 picks a free one")
    http_public_url: Annotated[str | None, Field(pattern=r"^https?://[^\s?#]+$")] = Field(
        None, description="how others reach it, such as https://bridge.example.com; else unknown"
    )
    http_tokens: Tokens = Field(
        (),
        description="who may ask, a line each as `siprec-bridge token new` prints it, or by "
        "semicolons; none given: anybody who reaches the port",
    )
    http_open_metrics: bool = Field(
        False, description="true: /metrics needs no token, even where there are tokens"
    )
    http_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = Field(
        (), description="origins of other pages that may use API and WebSocket, by commas"
    )
    http_proxies: NetworkList = Field(
        (),
        description="addresses and networks of reverse proxies whose X-Forwarded-For is believed",
    )
    http_tls_cert_path: Path | None = Field(
        None, description="PEM file of certificate and chain: HTTPS and wss only; renewed as SIP's"
    )
    http_tls_key_path: Path | None = Field(None, description="PEM file of its private key")
    http_listeners_per_client: Annotated[int, Field(ge=0)] = Field(
        100,
        description="WebSocket listeners of one token at once, without tokens of one address; "
        "0: no limit",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )
    log_format: Literal["json", "console", "auto"] = Field(
        "auto", description="auto: console on a terminal, else json"
    )
    shutdown_timeout: Duration = Field(
        timedelta(seconds=20), description="longest wait for running work when told to stop"
    )

    @model_validator(mode="before")
    @classmethod
    def _lower_levels(cls, values: dict[str, object]) -> dict[str, object]:
        return {
            name: value.lower() if name in _CASELESS and isinstance(value, str) else value
            for name, value in values.items()
        }

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.rtp_port_max - self.rtp_port_min < 3:
            raise ValueError("RTP_PORT_MAX must be at least RTP_PORT_MIN + 3 (two RTP/RTCP pairs)")
        if self.stt_default_vendor not in self.supported_vendors:
            raise ValueError(
                f"STT_DEFAULT_VENDOR={self.stt_default_vendor} is not among SUPPORTED_VENDORS="
                + ",".join(self.supported_vendors)
            )
        if not (self.sip_udp_ports or self.sip_tcp_ports or self.tls_port is not None):
            raise ValueError("PORTS: at least one UDP, TCP or TLS port is needed")
        if self.tls_port is not None and not (self.tls_cert_path and self.tls_key_path):
            raise ValueError("TLS_PORT needs TLS_CERT_PATH and TLS_KEY_PATH")
        if (self.amqp_tls_cert_path is None) != (self.amqp_tls_key_path is None):
            raise ValueError("AMQP_TLS_CERT_PATH and AMQP_TLS_KEY_PATH go together")
        if (self.dtls_cert_path is None) != (self.dtls_key_path is None):
            raise ValueError("DTLS_CERT_PATH and DTLS_KEY_PATH go together")
        if (self.http_tls_cert_path is None) != (self.http_tls_key_path is None):
            raise ValueError("HTTP_TLS_CERT_PATH and HTTP_TLS_KEY_PATH go together")
        if self.archive_keep_local is not None and self.archive_url is None:
            raise ValueError("ARCHIVE_KEEP_LOCAL needs ARCHIVE_URL: where else would they be?")
        if self.recordings_plain_for is not None and self.recordings_recipients is None:
            raise ValueError("RECORDINGS_PLAIN_FOR needs RECORDINGS_RECIPIENTS")
        if self.redact_keep_original and self.recordings_recipients is None:
            raise ValueError("REDACT_KEEP_ORIGINAL needs RECORDINGS_RECIPIENTS: who may read it?")
        if self.tls_client_names and self.tls_client_ca_path is None:
            raise ValueError("TLS_CLIENT_NAMES needs TLS_CLIENT_CA_PATH: who has signed them?")
        if (self.vcon_sign_cert_path is None) != (self.vcon_sign_key_path is None):
            raise ValueError("VCON_SIGN_CERT_PATH and VCON_SIGN_KEY_PATH go together")
        if self.vcon_events == "url" and self.http_public_url is None:
            raise ValueError("VCON_EVENTS=url needs HTTP_PUBLIC_URL: the audio is there")
        for name in self.tls_client_names:
            if "*" in name.removeprefix("*."):
                raise ValueError(f"TLS_CLIENT_NAMES: {name}: a wildcard is *.example.com")
        return self

    @property
    def sip_udp_ports(self) -> tuple[int, ...]:
        """UDP ports to listen on."""
        return self.ports if self.udp_ports is None else self.udp_ports

    @property
    def sip_tcp_ports(self) -> tuple[int, ...]:
        """TCP ports to listen on."""
        return self.ports if self.tcp_ports is None else self.tcp_ports

    @property
    def rtp_hosts(self) -> tuple[str, ...]:
        """Addresses that RTP may be received on."""
        return (self.rtp_bind_ip,) if self.rtp_bind_ip else self.sip_host

    def rtp_host_for(self, local_host: str, zone: int = 0) -> str:
        """The address to receive the RTP of a call on whose SIP came to this address of ours.

        `zone`: the number of its link, for one that is link-local.
        """
        hosts = self.rtp_hosts
        if len(hosts) == 1:
            host = hosts[0]
        elif local_host in hosts:
            host = local_host
        else:  # it came to a wildcard: RTP may come to any address of the same family
            host = "::" if ":" in local_host else "0.0.0.0"
        # What a socket of no link sends to a link-local address goes nowhere.
        by_link = zone and host == "::" and self.announced_for(local_host) == local_host
        return f"{local_host}%{zone}" if by_link else host

    def announced_for(self, local_host: str) -> str:
        """The address that a peer is told whose SIP came to this address of ours."""
        family = ""
        for one in self.external_ip:
            local, equals, external = one.rpartition("=")
            if equals and str(ip_address(local)) == local_host.partition("%")[0]:
                return external
            if not equals and (":" in external) == (":" in local_host):
                family = family or external
        return family or local_host

    @property
    def worker_count(self) -> int:
        """Processes that are to receive RTP."""
        return self.media_workers or len(os.sched_getaffinity(0))

    @property
    def live_process_limit(self) -> int:
        """Processes that may hear live calls."""
        return self.live_processes or len(os.sched_getaffinity(0))

    @property
    def http_exposed(self) -> bool:
        """Whether anybody but this machine may reach the HTTP port, and no token is asked for."""
        return not (self.http_tokens or self.http_local)

    @property
    def http_local(self) -> bool:
        """Whether this machine alone reaches the HTTP port."""
        try:
            return ip_address(self.http_host).is_loopback
        except ValueError:
            return self.http_host == "localhost"

    @property
    def origins(self) -> tuple[str, ...]:
        """Whose pages may use the HTTP port: those of HTTP_ORIGINS, and our own by its public name."""
        own = re.match(r"https?://[^/]+", self.http_public_url or "")
        return (*self.http_origins, own[0].lower()) if own else self.http_origins

    @property
    def recordings(self) -> Path:
        """Absolute folder of the audio."""
        return (self.recording_dir or self.data_dir / "recordings").absolute()

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'siprec-bridge.db'}"


def gather(
    environment: Mapping[str, str],
    *,
    toml_file: Path | None = None,
    dotenv_file: Path | None = None,
) -> dict[str, str]:
    """Merge all sources into one mapping of upper-case names to text; empty values are unset.

    Raises ConfigurationError when a named file cannot be read.
    """
    merged: dict[str, str] = {}
    if toml_file is not None:
        try:
            table = tomllib.loads(toml_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(str(toml_file), f"cannot be read: {error}") from error
        merged |= _flatten(table)
        _refuse_unknown(merged, toml_file)
    if dotenv_file is not None and dotenv_file.is_file():
        merged |= {
            name.upper(): value for name, value in dotenv_values(dotenv_file).items() if value
        }
    merged |= {name: value for name, value in environment.items() if name.isupper()}
    return {name: value for name, value in _read_secrets(merged).items() if value.strip()}


def load(options: Mapping[str, str]) -> Settings:
    """Check what `gather` found. Raises ConfigurationError that names variable, value, allowed."""
    known = {
        name: options[name.upper()] for name in Settings.model_fields if name.upper() in options
    }
    try:
        return Settings.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        message = re.sub(r"datetime\.timedelta\(seconds=(\d+)\)", r"\1 seconds", message)
        if not first["loc"]:  # a rule over several settings: the text names them
            raise ConfigurationError("settings", message) from error
        name = str(first["loc"][0]).upper()
        shown = "***" if name in _SECRETS else options.get(name, "")
        raise ConfigurationError(f"{name}={shown}", message) from error


def likely_typos(options: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names that are no setting, but all but one, each with that: `SIP_ALOWED_SOURCES` does nothing."""
    known = {name.upper() for name in Settings.model_fields}
    found = []
    for name in options:
        if name.removesuffix("_FILE") not in known:
            near = get_close_matches(name.removesuffix("_FILE"), known, n=1, cutoff=0.9)
            found += [(name, near[0])] if near else []
    return found


def from_environment(toml_file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings of this process, and all options for the providers to pick theirs from."""
    if toml_file is None and "SIPREC_BRIDGE_CONFIG" in os.environ:
        toml_file = Path(os.environ["SIPREC_BRIDGE_CONFIG"])
    options = gather(os.environ, toml_file=toml_file, dotenv_file=Path(".env"))
    return load(options), options


def tokens_of(file: Path) -> tuple[Token, ...]:
    """The tokens of HTTP_TOKENS_FILE, which may change while we run. Raises ConfigurationError."""
    try:
        return read_tokens(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"HTTP_TOKENS_FILE={file}", str(error)) from error


def _flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}{key}".upper().replace("-", "_")
        match value:
            case dict():
                flat |= _flatten(value, f"{name}_")
            case bool():
                flat[name] = "true" if value else "false"
            case list():
                flat[name] = ",".join(str(item) for item in value)
            case _:
                flat[name] = str(value)
    return flat


def _refuse_unknown(options: Mapping[str, str], toml_file: Path) -> None:
    """A typo in our own file must not pass silently; the environment is shared with others."""
    vendors = options.get("SUPPORTED_VENDORS", "whisper").upper().replace(" ", "").split(",")
    prefixes = tuple(f"{vendor}_" for vendor in vendors)
    known = {name.upper() for name in Settings.model_fields} | {"TMPDIR"}
    for name in options:
        if name.removesuffix("_FILE") not in known and not name.startswith(prefixes):
            raise ConfigurationError(name, f"is not a setting of the bridge (in {toml_file})")


def _read_secrets(options: Mapping[str, str]) -> dict[str, str]:
    resolved = dict(options)
    for name, path in options.items():
        target = name.removesuffix("_FILE")
        if target == name or target.lower() not in Settings.model_fields:
            continue
        if target in options:
            del resolved[name]  # the value itself outranks the file
            continue
        try:
            resolved[target] = Path(path).read_text(encoding="utf-8").strip()
            if not resolved[target]:  # unset, it would let in whom it was to keep out
                raise ConfigurationError(f"{name}={path}", "is empty")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{name}={path}", f"cannot be read: {error}") from error
    return resolved
