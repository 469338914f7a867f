"""What the bridge and a media worker say to each other: one JSON object a line, both ways.

A command carries `id`, its reply the same `id`; what the worker tells by itself has `event`.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from siprec_bridge.sdp import Codec, Fingerprint, StreamKeys

VERSION: Final = 5
LINE_LIMIT: Final = 1 << 24  # octets; the reports of 10,000 streams are 4 MB
SWEEP_S: Final = 0.2  # between two sweeps of a worker's sockets
LIVE_SWEEP_S: Final = 0.1  # of a worker with a stream that somebody listens to live

# Whose packets are taken: anyone's; of the address in the SRC's c= line; of that or of the first
# address that sends RTP.
SourcePolicy = Literal["any", "signalled", "learned"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a worker is told first: its ports, and how it is to receive.

    `rtp_timeout` in s. `ring`: octets of the ring that packets are taken out of; 0: they are taken
    from sockets. `interfaces`: those that the ring listens at; none: all.
    """

    first: int
    last: int
    fast: bool
    rtp_timeout: float
    sources: SourcePolicy
    ring: int = 0
    interfaces: Sequence[str] = ()
    version: int = VERSION

    def to_json(self) -> dict[str, object]:
        """For the wire."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Configuration":
        """From the wire. Raises ValueError when the bridge is of another version."""
        if value.get("version") != VERSION:
            raise ValueError(f"the bridge speaks version {value.get('version')}, not {VERSION}")
        return cls(**value)


@dataclass(slots=True)
class Counters:
    """What a worker counted since it last told.

    With a sweep: `late`, s after it was due, and `busy`, the worker's share of a core since the
    sweep before.
    """

    packets: int = 0
    octets: int = 0
    duplicates: int = 0
    malformed: int = 0
    strangers: int = 0
    unauthenticated: int = 0
    handshakes: int = 0
    handshakes_failed: int = 0
    kernel_drops: int = 0
    late: float | None = None
    busy: float = 0.0

    def to_json(self) -> dict[str, object]:
        """For the wire: what is not zero."""
        return {name: value for name, value in asdict(self).items() if value not in (0, None)} | (
            {"late": self.late} if self.late is not None else {}
        )


@dataclass(frozen=True, slots=True)
class DtlsTask:
    """Whom to agree on a stream's keys with: the certificate that he has, and ours, with its key."""

    fingerprints: tuple[Fingerprint, ...]
    certificate: bytes = field(repr=False)  # PEM


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream to record. Its spool is `<folder>/<stream_id>.spool`.

    `host` is the address to receive it on, `rtcp` where the SRC receives RTCP, at the address of
    its c= line; `peer` the address that its SIP comes from. Keys go to the worker and nowhere else.
    With `dtls` they come from there: `keys`, and `rtcp_keys` where RTCP has a port of its own, are
    then those of an association that was made before.
    """

    stream_id: str
    session_id: str
    index: int
    label: str
    codecs: tuple[Codec, ...]
    folder: Path
    host: str
    keys: StreamKeys | None = field(default=None, repr=False)
    rtcp: tuple[str, int] | None = None
    rtcp_mux: bool = False  # on one port with RTP, on both sides
    peer: str | None = None
    dtls: DtlsTask | None = None
    rtcp_keys: StreamKeys | None = field(default=None, repr=False)

    @property
    def secure(self) -> bool:
        """Whether its packets are SRTP, be the keys there or not."""
        return self.keys is not None or self.dtls is not None

    @property
    def spool(self) -> Path:
        """The file that its packets go to."""
        return self.folder / f"{self.stream_id}.spool"

    def to_json(self) -> dict[str, object]:
        """For the wire."""
        return {
            "stream_id": self.stream_id,
            "session_id": self.session_id,
            "index": self.index,
            "label": self.label,
            "codecs": [
                {name: getattr(one, name) for name in Codec.__slots__} for one in self.codecs
            ],
            "folder": str(self.folder),
            "host": self.host,
            "keys": keys_to_json(self.keys),
            "rtcp_keys": keys_to_json(self.rtcp_keys),
            "dtls": _dtls_to_json(self.dtls),
            "rtcp": self.rtcp,
            "rtcp_mux": self.rtcp_mux,
            "peer": self.peer,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StreamSpec":
        """From the wire."""
        codecs = tuple(Codec(**one) for one in value["codecs"])
        keys = {name: keys_from_json(value[name]) for name in ("keys", "rtcp_keys")}
        dtls = _dtls_from_json(value["dtls"])
        rtcp = tuple(value["rtcp"]) if value["rtcp"] is not None else None
        own = {"codecs": codecs, "folder": Path(value["folder"]), "dtls": dtls, "rtcp": rtcp}
        return cls(**(value | own | keys))


@dataclass(frozen=True, slots=True)
class StreamPort:
    """Where a stream is received."""

    host: str
    rtp_port: int
    rtcp_port: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What was received on a stream, from its opening to its end. Times are UTC.

    `unauthenticated`: SRTP that none of its keys opened. `jitter_ms` is the mean. `codec`: of the
    last packets; `mos` by it and the loss. `said_bye`: the SRC ended it by RTCP.
    """

    stream_id: str
    packets: int = 0
    octets: int = 0
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    malformed: int = 0
    unauthenticated: int = 0
    kernel_drops: int = 0
    jitter_ms: float | None = None
    codec: str | None = None
    mos: float | None = None
    sender_reports: int = 0
    said_bye: bool = False
    first_packet_at: datetime | None = None
    last_packet_at: datetime | None = None

    @property
    def loss_ratio(self) -> float | None:
        """Of what was sent; None: nothing came."""
        return self.lost / (self.lost + self.packets) if self.packets else None

    def to_json(self) -> dict[str, object]:
        """For the wire."""
        return {name: getattr(self, name) for name in StreamReport.__slots__} | {
            "first_packet_at": _to_ns(self.first_packet_at),
            "last_packet_at": _to_ns(self.last_packet_at),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "StreamReport":
        """From the wire."""
        times = {name: from_ns(value[name]) for name in ("first_packet_at", "last_packet_at")}
        return cls(**(value | times))


def encode(message: dict[str, object]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def from_ns(at_ns: int | None) -> datetime | None:
    """Nanoseconds since 1970 as an aware time; microseconds are kept."""
    return None if at_ns is None else datetime.fromtimestamp(at_ns / 1e9, UTC)


def keys_to_json(keys: StreamKeys | None) -> list[object] | None:
    """For the wire."""
    if keys is None:
        return None
    remote, local = (base64.b64encode(one).decode() for one in (keys.remote, keys.local))
    return [keys.suite, remote, local, keys.mki_length]


def keys_from_json(value: list[Any] | None) -> StreamKeys | None:
    """From the wire."""
    if value is None:
        return None
    suite, remote, local, mki_length = value
    return StreamKeys(suite, base64.b64decode(remote), base64.b64decode(local), mki_length)


def _dtls_to_json(dtls: DtlsTask | None) -> dict[str, object] | None:
    if dtls is None:
        return None
    known = [[one.function, one.digest.hex()] for one in dtls.fingerprints]
    return {"fingerprints": known, "certificate": dtls.certificate.decode()}


def _dtls_from_json(value: dict[str, Any] | None) -> DtlsTask | None:
    if value is None:
        return None
    known = tuple(Fingerprint(name, bytes.fromhex(text)) for name, text in value["fingerprints"])
    return DtlsTask(known, value["certificate"].encode())


def _to_ns(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1e9)
