"""Payload types: what a format number of an RTP m-line means. RFC 3551 §6, RFC 8866 §6.6."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoding as negotiated. `name` in upper case as IANA registers it; rate in Hz."""

    payload_type: int
    name: str
    clock_rate: int
    channels: int = 1
    fmtp: str = ""

    @property
    def rtpmap(self) -> str:
        """The value of its a=rtpmap line."""
        channels = f"/{self.channels}" if self.channels > 1 else ""
        return f"{self.payload_type} {self.name}/{self.clock_rate}{channels}"


# Audio payload types that need no rtpmap. RFC 3551 table 4.
STATIC: dict[int, Codec] = {
    codec.payload_type: codec
    for codec in (
        Codec(0, "PCMU", 8000),
        Codec(3, "GSM", 8000),
        Codec(4, "G723", 8000),
        Codec(5, "DVI4", 8000),
        Codec(6, "DVI4", 16000),
        Codec(7, "LPC", 8000),
        Codec(8, "PCMA", 8000),
        Codec(9, "G722", 8000),
        Codec(10, "L16", 44100, 2),
        Codec(11, "L16", 44100),
        Codec(12, "QCELP", 8000),
        Codec(13, "CN", 8000),
        Codec(14, "MPA", 90000),
        Codec(15, "G728", 8000),
        Codec(16, "DVI4", 11025),
        Codec(17, "DVI4", 22050),
        Codec(18, "G729", 8000),
    )
}


def number(text: str, below: int) -> int | None:
    """A decimal number that is less than `below`; None: it is something else."""
    # Length first: int() raises for thousands of digits.
    if len(text) > 10 or not (text.isascii() and text.isdecimal()):
        return None
    value = int(text)
    return value if value < below else None


def codec_of(payload_type: int, rtpmap: str | None, fmtp: str = "") -> Codec | None:
    """The codec of a format, from its rtpmap value or the static table; None: unknown or broken."""
    if rtpmap is None:
        static = STATIC.get(payload_type)
        if static is None or not fmtp:
            return static
        return Codec(payload_type, static.name, static.clock_rate, static.channels, fmtp)
    name, _, rest = rtpmap.strip().partition("/")
    rate, _, channels = rest.partition("/")
    clock_rate = number(rate.strip(), 1_000_001)
    if not name or not clock_rate:
        return STATIC.get(payload_type)
    count = number(channels.strip(), 256) or 1
    return Codec(payload_type, name.strip().upper(), clock_rate, count, fmtp)
