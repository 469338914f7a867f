"""What came of a replay: for a terminal as lines, for a machine as JSON."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from siprec_bridge.transcript import Participant


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One recorded stream. `duration` in seconds; `file` relative to the output folder."""

    index: int
    label: str
    speakers: tuple[str, ...]
    codec: str | None
    state: str
    packets: int
    lost: int
    duplicates: int
    duration: float
    file: str | None


@dataclass(frozen=True, slots=True)
class RefusedStream:
    """An m-line that was offered and is not recorded."""

    index: int
    codecs: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that we would have refused."""

    at: datetime
    method: str
    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of one INVITE. `captured_status`: what the captured SRS answered, if seen."""

    id: str
    sip_call_id: str
    at: datetime
    source: str
    srs: str
    transport: str
    status: int | None
    captured_status: int | None
    ladder: str
    folder: str | None = None
    end_cause: str | None = None
    duration: float = 0.0
    stereo: str | None = None
    participants: tuple[Participant, ...] = ()
    streams: tuple[StreamResult, ...] = ()
    refused_streams: tuple[RefusedStream, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def recorded(self) -> bool:
        """Whether its INVITE got a 2xx from us."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Report:
    """The whole replay. `ignored` counts what was passed over, by description."""

    file: str
    out: str
    frames: int
    first_at: datetime | None = None
    last_at: datetime | None = None
    calls: tuple[CallResult, ...] = ()
    warnings: tuple[str, ...] = ()
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there was something to record and nothing of it was refused."""
        return bool(self.calls) and all(
            one.recorded and not one.refusals and not one.refused_streams for one in self.calls
        )

    def write(self, path: Path) -> None:
        """Write it as JSON. Raises OSError."""
        path.write_bytes(REPORT.dump_json(self, indent=1) + b"\n")


REPORT = TypeAdapter(Report)


def report_lines(report: Report) -> list[str]:
    """For a terminal."""
    span = ""
    if report.first_at is not None and report.last_at is not None:
        seconds = (report.last_at - report.first_at).total_seconds()
        span = f", {seconds:.1f} s from {report.first_at:%Y-%m-%d %H:%M:%S} UTC"
    lines = [f"{report.file}: {report.frames} frames{span}"]
    for one in report.calls:
        lines += ["", *_call_lines(one)]
    lines += ["", *(f"warning: {text}" for text in report.warnings)] if report.warnings else []
    if report.ignored:
        lines += ["", "ignored:"]
        lines += [f"  {count:>8}  {what}" for what, count in sorted(report.ignored.items())]
    recorded = sum(one.recorded for one in report.calls)
    lines += ["", f"{recorded} of {len(report.calls)} calls recorded; files in {report.out}"]
    return [_printable(line) for line in lines]


def _call_lines(call: CallResult) -> list[str]:
    ours = call.status if call.status is not None else "nothing"
    theirs = call.captured_status if call.captured_status is not None else "nothing in this capture"
    lines = [
        f"{call.id}: {'recorded' if call.recorded else 'NOT RECORDED'}, "
        f"{call.duration:.1f} s" + (f", ended by {call.end_cause}" if call.end_cause else ""),
        f"  Call-ID {call.sip_call_id}",
        f"  {call.source} to {call.srs} over {call.transport.upper()}, "
        f"{call.at:%Y-%m-%d %H:%M:%S.%f} UTC",
        f"  we answer {ours}, the captured server answered {theirs}; messages in {call.ladder}",
    ]
    for one in call.participants:
        lines.append(f"  participant {_named(one)}")
    for stream in call.streams:
        lines.append(
            f"  stream {stream.index + 1}: label {stream.label}, "
            f"{' and '.join(stream.speakers) or 'speaker unknown'}, {stream.codec or 'no codec'}, "
            f"{stream.packets} packets, {stream.lost} lost, {stream.duration:.1f} s"
            + (f", {stream.file}" if stream.file else "")
        )
    for refused in call.refused_streams:
        codecs = ", ".join(refused.codecs) or "no known codec"
        lines.append(
            f"  m-line {refused.index + 1}: NOT RECORDED: {refused.reason} (offered: {codecs})"
        )
    for refusal in call.refusals:
        lines.append(f"  {refusal.method} refused: {refusal.status} {refusal.reason}")
    if call.stereo:
        lines.append(f"  stereo {call.stereo}")
    return lines + [f"  warning: {text}" for text in call.warnings]


def _named(one: Participant) -> str:
    return f"{one.name} <{one.aor}>" if one.name and one.aor else one.name or one.aor or one.id


def _printable(line: str) -> str:
    """Without what a stranger's label could do to a terminal."""
    return "".join(char if char.isprintable() else "?" for char in line)
