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

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of its a=fmtp, names in lower case; a flag has the value ""."""
        pairs = (part.strip().partition("=") for part in self.fmtp.split(";"))
        return {name.strip().lower(): value.strip() for name, _, value in pairs if name.strip()}


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

# Encodings whose voice can be written down, where the machine's FFmpeg has their decoders.
RECORDABLE = (
    "PCMU", "PCMA", "G722", "OPUS", "AMR-WB", "AMR", "G729", "GSM", "ILBC", "G723", "L16",
    "G726-16", "G726-24", "G726-32", "G726-40",
    "AAL2-G726-16", "AAL2-G726-24", "AAL2-G726-32", "AAL2-G726-40",
)  # fmt: skip
# Payload types that belong to a stream and carry no voice: keys (RFC 4733), noise (RFC 3389).
EVENTS, NOISE = "TELEPHONE-EVENT", "CN"
_LINEAR_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_CLOCKS = {"G722": (8000, 16000), "OPUS": (48000,), "AMR-WB": (16000,), "L16": _LINEAR_RATES}
_CHANNELS = {"OPUS": 2, "L16": 2}


def recordable(codec: Codec) -> bool:
    """Whether an encoding with these parameters can be recorded, as far as SDP tells."""
    if codec.name not in RECORDABLE:
        return False
    if codec.clock_rate not in _CLOCKS.get(codec.name, (8000,)):
        return False
    if codec.channels > _CHANNELS.get(codec.name, 1):
        return False
    if codec.name in ("AMR", "AMR-WB"):
        # Forms of the payload that nobody sends and that would have to be undone. RFC 4867 §4.4
        given = codec.parameters
        sorted_or_checked = "1" in (given.get("crc"), given.get("robust-sorting"))
        return not sorted_or_checked and "interleaving" not in given
    return True


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
