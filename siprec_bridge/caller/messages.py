"""What an SRC sends: the INVITE with SDP and metadata, its ACK and its BYE."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.sax.saxutils import escape, quoteattr

from siprec_bridge.caller.audio import Leg
from siprec_bridge.sdp import STATIC, Fingerprint, Media, SessionDescription, write_crypto
from siprec_bridge.sip import Headers, Request, Response, parse_name_addr

_BOUNDARY = "siprec-bridge-call"
PAYLOAD_TYPES = {"pcmu": 0, "pcma": 8}


@dataclass(slots=True)
class Identity:
    """This call's end of the dialog."""

    call_id: str
    tag: str
    address: str
    port: int
    transport: str
    target: str  # Request-URI of the INVITE

    @property
    def contact(self) -> str:
        """Where requests of the server reach us."""
        return f"<sip:src@{self._host}:{self.port};transport={self.transport}>;+sip.src"

    def via(self, branch: str) -> str:
        """The Via of a request of ours."""
        sent_by = f"{self._host}:{self.port}"
        return f"SIP/2.0/{self.transport.upper()} {sent_by};branch=z9hG4bK{branch};rport"

    @property
    def from_(self) -> str:
        """The From of our requests."""
        return f'"siprec-bridge call" <sip:src@{self._host}>;tag={self.tag}'

    @property
    def _host(self) -> str:
        return f"[{self.address}]" if ":" in self.address else self.address


def invite(
    me: Identity,
    branch: str,
    number: int,
    legs: Sequence[Leg],
    ports: Sequence[int],
    codec: str,
    authorization: str | None = None,
    *,
    suite: str | None = None,
    keys: Sequence[bytes] = (),
    fingerprint: Fingerprint | None = None,
) -> Request:
    """A recording session's INVITE. RFC 7866 §6.1 and §9.1.

    `keys`: one for each port, where the media are to be SRTP of this suite; `fingerprint`: of our
    certificate, where the keys come by DTLS.
    """
    secrets = [_secrets(number, suite, keys, fingerprint) for number in range(len(ports))]
    protocol = "UDP/TLS/RTP/SAVP" if fingerprint is not None else "RTP/SAVP"
    offer = _offer(me, ports, codec, protocol if any(secrets) else "RTP/AVP", secrets).write()
    parts = [
        b"Content-Type: application/sdp\r\n\r\n" + offer,
        b"Content-Type: application/rs-metadata+xml\r\n"
        b"Content-Disposition: recording-session\r\n\r\n" + _metadata(legs).encode(),
    ]
    limit = f"--{_BOUNDARY}".encode()
    body = b"".join(limit + b"\r\n" + part + b"\r\n" for part in parts) + limit + b"--\r\n"
    headers = _headers(me, branch, number, "INVITE", f"<{me.target}>")
    if authorization is not None:
        headers.add("Authorization", authorization)
    headers.add("Contact", me.contact)
    headers.add("Require", "siprec")
    headers.add("Supported", "siprec, timer")
    headers.add("Allow", "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE")
    headers.add("Accept", "application/sdp, application/rs-metadata-request")
    headers.add("Content-Type", f"multipart/mixed;boundary={_BOUNDARY}")
    return Request("INVITE", me.target, headers, body)


def in_dialog(me: Identity, branch: str, method: str, number: int, answer: Response) -> Request:
    """A request after the answer to the INVITE: to its Contact, by its route. RFC 3261 §12.2.1."""
    contacts = answer.headers.values("Contact")
    target = parse_name_addr(contacts[0]).uri if contacts else me.target
    routes = tuple(reversed(answer.headers.values("Record-Route")))
    headers = _headers(me, branch, number, method, answer.headers.get("To") or f"<{me.target}>")
    for route in routes:
        headers.add("Route", route)
    return Request(method, target, headers)


def ack_of_refusal(me: Identity, branch: str, number: int, answer: Response) -> Request:
    """The ACK of a 3xx-6xx: same branch as the INVITE. RFC 3261 §17.1.1.3."""
    headers = _headers(me, branch, number, "ACK", answer.headers.get("To") or "")
    return Request("ACK", me.target, headers)


def answer_to(request: Request, status: int, reason: str, tag: str) -> Response:
    """An answer to a request that the server sends us."""
    headers = Headers(("Via", one) for one in request.headers.get_all("Via"))
    to = request.headers.get("To") or ""
    headers.add("From", request.headers.get("From") or "")
    headers.add("To", to if "tag=" in to else f"{to};tag={tag}")
    headers.add("Call-ID", request.headers.get("Call-ID") or "")
    headers.add("CSeq", request.headers.get("CSeq") or "")
    return Response(status, reason, headers)


def _headers(me: Identity, branch: str, number: int, method: str, to: str) -> Headers:
    return Headers(
        [
            ("Via", me.via(branch)),
            ("Max-Forwards", "70"),
            ("From", me.from_),
            ("To", to),
            ("Call-ID", me.call_id),
            ("CSeq", f"{number} {method}"),
            ("User-Agent", "siprec-bridge call"),
        ]
    )


def _secrets(
    number: int, suite: str | None, keys: Sequence[bytes], fingerprint: Fingerprint | None
) -> tuple[tuple[str, str], ...]:
    """What a stream's m-line says of our keys."""
    if fingerprint is not None:
        return (("setup", "actpass"), ("fingerprint", str(fingerprint)), ("rtcp-mux", ""))
    if suite is not None:
        return (("crypto", write_crypto("1", suite, keys[number])),)
    return ()


def _offer(
    me: Identity,
    ports: Sequence[int],
    codec: str,
    protocol: str,
    secrets: Sequence[tuple[tuple[str, str], ...]],
) -> SessionDescription:
    static = STATIC[PAYLOAD_TYPES[codec]]
    family = "IP6" if ":" in me.address else "IP4"
    media = tuple(
        Media(
            kind="audio",
            port=port,
            protocol=protocol,
            formats=(str(static.payload_type),),
            connection=me.address,
            direction="sendonly",
            attributes=(
                ("rtpmap", static.rtpmap),
                ("ptime", "20"),
                ("label", str(number)),
                *secrets[number - 1],
            ),
        )
        for number, port in enumerate(ports, 1)
    )
    origin = f"siprec-bridge 1 1 IN {family} {me.address}"
    return SessionDescription(origin, connection=me.address, media=media)


def _metadata(legs: Sequence[Leg]) -> str:
    """A complete document: each participant sends on the stream of its number. RFC 7865 §7."""
    group, session = _urn(), _urn()
    people, streams, sends = [], [], []
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for number, leg in enumerate(legs, 1):
        person, stream = _urn(), _urn()
        people.append(
            f"<participant participant_id={quoteattr(person)}>"
            f"<nameID aor={quoteattr(leg.aor)}><name>{escape(leg.name)}</name></nameID>"
            "</participant>"
        )
        streams.append(
            f"<stream stream_id={quoteattr(stream)} session_id={quoteattr(session)}>"
            f"<label>{number}</label></stream>"
        )
        sends.append(
            f"<participantstreamassoc participant_id={quoteattr(person)}>"
            f"<send>{stream}</send></participantstreamassoc>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<recording xmlns="urn:ietf:params:xml:ns:recording:1"><datamode>complete</datamode>'
        f"<group group_id={quoteattr(group)}><associate-time>{now}</associate-time></group>"
        f"<session session_id={quoteattr(session)}><group-ref>{group}</group-ref></session>"
        + "".join(people + streams + sends)
        + "</recording>\n"
    )


def _urn() -> str:
    return uuid.uuid4().urn
