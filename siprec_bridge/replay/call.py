"""One INVITE of a capture and what becomes of it in the replay."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from siprec_bridge.receiver.packets import Address
from siprec_bridge.replay.dialogs import CapturedDialog
from siprec_bridge.replay.report import Refusal
from siprec_bridge.sdp import Codec, Crypto, MalformedSdp, SessionDescription
from siprec_bridge.sdp import parse as parse_sdp
from siprec_bridge.sip import DialogId, Refused, Request
from siprec_bridge.siprec import parse_body
from siprec_bridge.telemetry import masked


@dataclass(eq=False, slots=True)
class Line:
    """An m-line as the captured SRS answered it."""

    call: "ReplayedCall"
    index: int
    codecs: dict[int, Codec]
    types: Counter[int] = field(default_factory=Counter)  # RTP packets by payload type
    latest_ns: int = 0  # when its latest packet came


@dataclass(eq=False, slots=True)
class ReplayedCall:
    """One INVITE of an SRC, and what became of it."""

    name: str
    captured: CapturedDialog
    number: int  # CSeq of its INVITE
    at_ns: int
    source: Address
    srs: Address
    transport: str
    ladder: Path
    dialog: DialogId | None = None  # ours
    session_id: str | None = None
    ended: str | None = None
    status: int | None = None
    captured_status: int | None = None
    offer: SessionDescription | None = None
    lines: dict[int, Line] = field(default_factory=dict)
    keys: dict[int, Crypto | None] = field(default_factory=dict)  # by m-line, as it was answered
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note_offer(self, request: Request) -> None:
        """Keep the SDP that a request of the SRC brings."""
        try:
            body = parse_body(
                request.content_type, request.headers.get("Content-Encoding"), request.body
            ).sdp
            if body is not None:
                self.offer = parse_sdp(body)
        except (Refused, MalformedSdp):
            pass  # the recorder says what it thinks of it

    def note_end(self, cause: str) -> None:
        """Say what ended our side of the call, the first time."""
        if self.ended is not None:
            return
        self.ended = cause
        if cause == "ack_timeout":
            self.warnings.append("no ACK in 32 s: we would have hung up")
        elif cause == "session_expired":
            self.warnings.append("no refresh within the session timer: we would have hung up")

    def write_ladder(self, at_ns: int, where: str, data: bytes, who: str = "") -> None:
        """Add a message to the call's ladder, keys and digests masked."""
        text = masked(data.decode("utf-8", "replace"))
        title, *rest = text.lstrip("\r\n").splitlines() or [""]
        note = f"   ({who})" if who else ""
        lines = [f"{(at_ns - self.at_ns) / 1e9:9.3f}  {where} {title}{note}"]
        lines += [f"           | {line}" for line in rest]
        with self.ladder.open("a", encoding="utf-8", errors="replace") as file:
            file.write("\n".join(lines) + "\n\n")
