"""What an SRC sends, as bytes: for machines that are tested without sockets."""

from collections.abc import Iterable

from siprec_bridge import sip
from siprec_bridge.sip import Output, Peer, Request, Response, Send, SipServer

PEER = Peer("udp", "192.0.2.10", 5070, 1, "192.0.2.1", 5060)
TCP_PEER = Peer("tcp", "192.0.2.10", 40000, 7, "192.0.2.1", 5060)

OFFER = (
    "v=0\r\no=src 1 1 IN IP4 192.0.2.10\r\ns=-\r\nc=IN IP4 192.0.2.10\r\nt=0 0\r\n"
    "m=audio 30000 RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
    "a=sendonly\r\na=label:96\r\n"
    "m=audio 30002 RTP/AVP 8\r\na=sendonly\r\na=label:97\r\n"
)
METADATA = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<recording xmlns="urn:ietf:params:xml:ns:recording:1"><datamode>complete</datamode>'
    '<group group_id="g1"/><session session_id="s1"><group-ref>g1</group-ref></session>'
    '<participant participant_id="p1"><nameID aor="sip:alice@example.com"><name>Alice</name>'
    "</nameID></participant>"
    '<participant participant_id="p2"><nameID aor="sip:bob@example.com"><name>Bob</name>'
    "</nameID></participant>"
    '<stream stream_id="t1" session_id="s1"><label>96</label></stream>'
    '<stream stream_id="t2" session_id="s1"><label>97</label></stream>'
    '<participantstreamassoc participant_id="p1"><send>t1</send></participantstreamassoc>'
    '<participantstreamassoc participant_id="p2"><send>t2</send></participantstreamassoc>'
    "</recording>"
)


def multipart(*, sdp: str = OFFER, metadata: str = METADATA, sdp_first: bool = True) -> bytes:
    """SDP and metadata in one body, boundary "b"."""
    parts = [
        f"Content-Type: application/sdp\r\n\r\n{sdp}",
        "Content-Type: application/rs-metadata+xml\r\n"
        f"Content-Disposition: recording-session\r\n\r\n{metadata}",
    ]
    if not sdp_first:
        parts.reverse()
    return ("".join(f"--b\r\n{part}\r\n" for part in parts) + "--b--\r\n").encode()


def request(
    method: str,
    *,
    number: int = 1,
    branch: str = "z9hG4bK1",
    to_tag: str = "",
    call_id: str = "call-1",
    from_tag: str = "src",
    headers: Iterable[str] = (),
    body: bytes = b"",
    content_type: str = "multipart/mixed;boundary=b",
    transport: str = "UDP",
) -> bytes:
    """A request as an SRC writes it."""
    to = f";tag={to_tag}" if to_tag else ""
    lines = [
        f"{method} sip:srs@192.0.2.1 SIP/2.0",
        f"Via: SIP/2.0/{transport} 192.0.2.10:5070;branch={branch};rport",
        f"From: <sip:src@192.0.2.10>;tag={from_tag}",
        f"To: <sip:srs@192.0.2.1>{to}",
        f"Call-ID: {call_id}",
        f"CSeq: {number} {method}",
        "Contact: <sip:src@192.0.2.10:5070>;+sip.src",
        "Max-Forwards: 70",
        *headers,
    ]
    if body:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def new_server(**options: object) -> SipServer:
    """A machine whose tags are t1, t2, … in order."""
    numbers = iter(range(1, 100_000))
    return SipServer(
        token=lambda: f"t{next(numbers)}",
        contact=lambda peer: f"<sip:srs@192.0.2.1:5060;transport={peer.transport}>;+sip.srs",
        **options,  # type: ignore[arg-type]
    )


def sent(outputs: Iterable[Output]) -> list[bytes]:
    """The bytes for the wire."""
    return [one.data for one in outputs if isinstance(one, Send)]


def responses(outputs: Iterable[Output]) -> list[Response]:
    """The responses among them."""
    parsed = [sip.parse(data) for data in sent(outputs)]
    return [one for one in parsed if isinstance(one, Response)]


def requests(outputs: Iterable[Output]) -> list[Request]:
    """The requests among them."""
    parsed = [sip.parse(data) for data in sent(outputs)]
    return [one for one in parsed if isinstance(one, Request)]


def statuses(outputs: Iterable[Output]) -> list[int]:
    """The status codes of the responses."""
    return [one.status for one in responses(outputs)]
