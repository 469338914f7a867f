"""What the bridge and the live process say to each other: one JSON object a line, both ways."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from siprec_bridge.live.recogniser import Line, Wanted

LINE_LIMIT: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class LiveStream:
    """A stream to listen to: its spool, and what its recogniser is to be asked for.

    `from_now`: what is in the spool already was said before, and is nobody's concern.
    """

    stream_id: str
    spool: Path
    wanted: Wanted
    from_now: bool = False

    def to_json(self) -> dict[str, object]:
        """For the wire."""
        return asdict(self) | {"spool": str(self.spool)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LiveStream":
        """From the wire."""
        return cls(
            value["stream_id"], Path(value["spool"]), Wanted(**value["wanted"]), value["from_now"]
        )


@dataclass(slots=True)
class LiveCounters:
    """What the live process counted since it last told; `connected` streams are so now.

    `sent` and `skipped` in seconds of sound; `busy`: its share of a core.
    """

    sent: float = 0.0
    skipped: float = 0.0
    late: int = 0
    undecoded: int = 0
    connected: int = 0
    streams: int = 0
    busy: float = 0.0


def line_to_json(line: Line) -> dict[str, object]:
    """For the wire."""
    return asdict(line)


def line_from_json(value: dict[str, Any]) -> Line:
    """From the wire."""
    words = tuple((text, start, end, sure) for text, start, end, sure in value["words"])
    return Line(**(value | {"words": words}))
