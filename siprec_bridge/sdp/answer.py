"""An offer and what we can record: the answer. RFC 3264 §6, RFC 7866 §7.1 and §8.

Keys: RFC 4568 §5.1 (in the SDP), RFC 5763 §5 (by DTLS).

First `plan` says what becomes of each m-line; then, once ports are there, `answer` writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from siprec_bridge.sdp.codecs import (
    EVENTS,
    NOISE,
    RECORDABLE,
    STATIC,
    Codec,
    number,
    recordable,
)
from siprec_bridge.sdp.crypto import SUITES, Crypto, choose, write_crypto
from siprec_bridge.sdp.dtls import DtlsParameters, Fingerprint, read_dtls
from siprec_bridge.sdp.session import Attribute, Media, SessionDescription

_PLAIN = ("RTP/AVP", "RTP/AVPF")
_SECURE = ("RTP/SAVP", "RTP/SAVPF")
_BY_DTLS = ("UDP/TLS/RTP/SAVP", "UDP/TLS/RTP/SAVPF")
# We only receive: what the offerer sends is ours to take, what it does not send is inactive.
_ANSWER_DIRECTION = {
    "sendrecv": "recvonly",
    "sendonly": "recvonly",
    "recvonly": "inactive",
    "inactive": "inactive",
}


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """What is recorded. `codecs` in order of our preference, which yields to the offerer's."""

    codecs: tuple[str, ...] = RECORDABLE
    telephone_event: bool = True
    srtp: Literal["accept", "require", "refuse"] = "accept"
    suites: tuple[str, ...] = tuple(SUITES)
    sdes_only_over_tls: bool = False
    dtls: bool = False


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What becomes of one m-line. `direction` is the answer's.

    `reason` says why it is refused, and `warn_code` the same as a number. RFC 3261 §20.43.
    """

    index: int
    label: str | None
    accepted: bool
    reason: str = ""
    warn_code: int = 399
    direction: str = "recvonly"
    codecs: tuple[Codec, ...] = ()
    remote: tuple[str, int] = ("", 0)
    rtcp: tuple[str, int] = ("", 0)
    rtcp_mux: bool = False
    crypto: Crypto | None = None  # the offered line that is taken
    dtls: DtlsParameters | None = None  # else the association that the keys come from

    @property
    def paused(self) -> bool:
        """Whether the SRC sends nothing on it for now. RFC 7866 §7.1.1.1."""
        return self.accepted and self.direction == "inactive"


def plan(
    offer: SessionDescription, policy: MediaPolicy, *, over_tls: bool = False
) -> tuple[StreamPlan, ...]:
    """Decide on every m-line, in order. `over_tls`: nobody else could read the offer."""
    return tuple(
        _plan_one(index, media, offer.attributes, policy, over_tls)
        for index, media in enumerate(offer.media)
    )


def answer(
    offer: SessionDescription,
    plans: Sequence[StreamPlan],
    local: Mapping[int, int],
    keys: Mapping[int, bytes] | None = None,
    *,
    fingerprint: Fingerprint | None = None,
    tls_ids: Mapping[int, str] | None = None,
    address: str,
    session_id: int,
    version: int,
    name: str = "siprec-bridge",
) -> SessionDescription:
    """Write the answer: same m-lines in the same order, labels echoed, refused ones at port 0.

    `local` maps the index of each accepted m-line to our RTP port at `address`, `keys` those with
    SRTP to our own master key and salt. `fingerprint` is that of our certificate, for lines whose
    keys come by DTLS; `tls_ids` names our side of these associations where the offer named its own.
    """
    media = tuple(
        _answer_one(
            line,
            one,
            local.get(one.index, 0),
            _secret(one, (keys or {}).get(one.index), fingerprint, (tls_ids or {}).get(one.index)),
            address,
        )
        for line, one in zip(offer.media, plans, strict=True)
    )
    return SessionDescription(
        origin=_origin(session_id, version, address),
        name=name,
        connection=address,
        media=media,
        time=offer.time,
    )


def offer(
    policy: MediaPolicy,
    local: Sequence[int],
    *,
    address: str,
    session_id: int,
    version: int,
    name: str = "siprec-bridge",
) -> SessionDescription:
    """Our offer to an INVITE without one: a recvonly audio line for each port in `local`."""
    codecs = _static(policy)
    if policy.telephone_event:
        codecs += (Codec(101, EVENTS, 8000, fmtp="0-16"),)
    media = tuple(
        Media(
            kind="audio",
            port=port,
            protocol="RTP/AVP",
            formats=tuple(str(codec.payload_type) for codec in codecs),
            connection=address,
            direction="recvonly",
            attributes=(*_codec_attributes(codecs), ("label", str(index + 1))),
        )
        for index, port in enumerate(local)
    )
    return SessionDescription(
        origin=_origin(session_id, version, address), name=name, connection=address, media=media
    )


def ask_for_all(
    plans: Sequence[StreamPlan], last: SessionDescription, policy: MediaPolicy
) -> tuple[StreamPlan, ...]:
    """Plans for an offer of ours in a call: no line on hold, and all that can be recorded.

    What was agreed on comes first. Payload types of the `last` description keep their meaning, and
    what was refused in it stays refused. RFC 3261 §14.2, RFC 3264 §8.3.2.
    """
    return tuple(
        replace(one, direction="recvonly", codecs=_with_all(one.codecs, line, policy))
        if one.accepted
        else one
        for line, one in zip(last.media, plans, strict=True)
    )


def _with_all(agreed: tuple[Codec, ...], line: Media, policy: MediaPolicy) -> tuple[Codec, ...]:
    used = {number(one, 128) for one in line.formats} | {one.payload_type for one in agreed}
    names = {one.name for one in agreed}
    more = tuple(
        one for one in _static(policy) if one.name not in names and one.payload_type not in used
    )
    if policy.telephone_event and EVENTS not in names:
        free = next((one for one in (101, *range(96, 128)) if one not in used), None)
        more += (Codec(free, EVENTS, 8000, fmtp="0-16"),) if free is not None else ()
    return agreed + more


def _static(policy: MediaPolicy) -> tuple[Codec, ...]:
    """What can be offered without asking for a payload type, in order of preference."""
    by_name = {codec.name: codec for codec in STATIC.values() if codec.channels == 1}
    return tuple(by_name[name] for name in policy.codecs if name in by_name)


def _plan_one(
    index: int,
    media: Media,
    session: Sequence[Attribute],
    policy: MediaPolicy,
    over_tls: bool,
) -> StreamPlan:
    def refused(reason: str, warn_code: int = 399) -> StreamPlan:
        return StreamPlan(index, media.label, False, reason, warn_code, "inactive")

    if media.port == 0:
        return refused("offered at port 0")
    if media.kind != "audio":
        return refused(f"{media.kind} is not recorded", 304)
    if media.protocol.upper() not in _PLAIN + _SECURE + _BY_DTLS:
        return refused(f"{media.protocol} is not supported", 302)
    keyed = _keyed(media, session, policy, over_tls)
    if isinstance(keyed, str):
        return refused(keyed, 302)
    known = media.codecs
    voice = tuple(one for one in known if one.name in policy.codecs and recordable(one))
    if not voice:
        return refused("no codec in common", 305)
    extras = (EVENTS, NOISE) if policy.telephone_event else (NOISE,)
    beside = tuple(codec for codec in known if codec.name in extras)
    host = media.connection or ""
    # An address of all zeros is the hold of RFC 2543.
    held = host in ("0.0.0.0", "::")
    return StreamPlan(
        index=index,
        label=media.label,
        accepted=True,
        direction="inactive" if held else _ANSWER_DIRECTION[media.direction],
        codecs=voice + beside,
        remote=(host, media.port),
        rtcp=(host, media.rtcp_port),
        rtcp_mux=media.rtcp_mux,
        crypto=keyed if isinstance(keyed, Crypto) else None,
        dtls=keyed if isinstance(keyed, DtlsParameters) else None,
    )


def _keyed(
    media: Media, session: Sequence[Attribute], policy: MediaPolicy, over_tls: bool
) -> Crypto | DtlsParameters | str | None:
    """Where the keys come from; None: plain RTP; or why the m-line is refused."""
    by_dtls = media.protocol.upper() in _BY_DTLS
    secure = by_dtls or media.protocol.upper() in _SECURE
    certified = by_dtls or media.attribute("fingerprint") is not None
    found: Crypto | DtlsParameters | str = "SRTP is required"
    if policy.srtp == "refuse":
        found = "SRTP is refused"
    else:
        # Keys under a plain profile are an offer of SRTP too, if only to who wants it. RFC 8643 §3
        if not by_dtls and (media.crypto_lines or secure):
            found = _by_sdes(media, policy, over_tls)
        if certified and not isinstance(found, Crypto):
            found = read_dtls(media.attributes, session) if policy.dtls else "DTLS-SRTP is refused"
    if secure or policy.srtp == "require" or not isinstance(found, str):
        return found
    return None


def _by_sdes(media: Media, policy: MediaPolicy, over_tls: bool) -> Crypto | str:
    if policy.sdes_only_over_tls and not over_tls:
        return "SRTP keys are taken over TLS only"
    return choose(media.crypto_lines, policy.suites)


def _answer_one(
    line: Media, one: StreamPlan, port: int, secret: tuple[Attribute, ...], address: str
) -> Media:
    label: tuple[Attribute, ...] = (("label", one.label),) if one.label is not None else ()
    if not one.accepted:
        return Media(
            line.kind, 0, line.protocol, line.formats[:1] or ("0",), None, "inactive", label
        )
    mux: tuple[Attribute, ...] = (("rtcp-mux", ""),) if one.rtcp_mux else ()
    return Media(
        kind=line.kind,
        port=port,
        protocol=line.protocol,
        formats=tuple(str(codec.payload_type) for codec in one.codecs),
        connection=address,
        direction=one.direction,
        attributes=(*_codec_attributes(one.codecs), *label, *mux, *secret),
    )


def _secret(
    one: StreamPlan, key: bytes | None, fingerprint: Fingerprint | None, tls_id: str | None
) -> tuple[Attribute, ...]:
    """What an answer says of our keys."""
    if one.crypto is not None and key is not None:
        return (("crypto", write_crypto(one.crypto.tag, one.crypto.suite, key)),)
    if one.dtls is None or fingerprint is None:
        return ()
    named: tuple[Attribute, ...] = (("tls-id", tls_id),) if tls_id is not None else ()
    return (("setup", "passive"), ("fingerprint", str(fingerprint)), *named)


def _codec_attributes(codecs: Sequence[Codec]) -> tuple[Attribute, ...]:
    maps: list[Attribute] = []
    for codec in codecs:
        name = codec.name.lower() if codec.name == EVENTS else codec.name
        channels = f"/{codec.channels}" if codec.channels > 1 else ""
        maps.append(("rtpmap", f"{codec.payload_type} {name}/{codec.clock_rate}{channels}"))
        if parameters := _our_parameters(codec):
            maps.append(("fmtp", f"{codec.payload_type} {parameters}"))
    return tuple(maps)


def _our_parameters(codec: Codec) -> str:
    """Those of the offer; of Opus we also make use of the copies of lost frames. RFC 7587 §7.1"""
    if codec.name != "OPUS" or codec.parameters.get("useinbandfec") == "1":
        return codec.fmtp
    kept = [
        one for one in codec.fmtp.split(";") if one.strip() and "useinbandfec" not in one.lower()
    ]
    return ";".join([*kept, "useinbandfec=1"])


def _origin(session_id: int, version: int, address: str) -> str:
    family = "IP6" if ":" in address else "IP4"
    return f"siprec-bridge {session_id} {version} IN {family} {address}"
