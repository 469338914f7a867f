"""What a replay tells of its calls, and of what belongs to none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from siprec_bridge.media import FinishedAudio, StreamReport, can_decode
from siprec_bridge.replay.call import Line, ReplayedCall
from siprec_bridge.replay.report import CallResult, RefusedStream, StreamResult
from siprec_bridge.sdp import (
    EVENTS,
    NOISE,
    STATIC,
    Codec,
    MediaPolicy,
    SessionDescription,
    plan,
)
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import SessionRow

_NO_VOICE = (EVENTS, NOISE)
_OTHER_RTP = "RTP of other streams"
_KEPT = (
    "id", "sip_call_id", "at", "source", "srs", "transport", "status", "captured_status", "ladder",
    "refused_streams", "refusals",
)  # fmt: skip


def outcome(call: ReplayedCall, policy: MediaPolicy) -> CallResult:
    """Of a call, whether it is recorded or not."""
    warnings = list(dict.fromkeys(call.warnings))
    if call.captured_status is not None and (call.captured_status < 300) != (
        call.status is not None and call.status < 300
    ):
        warnings.append(f"the captured server answered {call.captured_status}")
    return CallResult(
        id=call.name,
        sip_call_id=clean(call.captured.key[0]),
        at=moment(call.at_ns),
        source=str(call.source),
        srs=str(call.srs),
        transport=call.transport,
        status=call.status,
        captured_status=call.captured_status,
        ladder=call.ladder.name,
        refused_streams=_refused_streams(call.offer, policy),
        refusals=tuple(call.refusals),
        warnings=tuple(warnings),
    )


def recorded(
    call: ReplayedCall,
    row: SessionRow,
    audio: FinishedAudio,
    reports: Mapping[str, Sequence[StreamReport]],
    policy: MediaPolicy,
    out: Path,
) -> CallResult:
    """Of a call that became a session; its document is written to the session's folder in `out`.

    `reports` are of the parts of each stream, by its id. Raises OSError.
    """
    result = outcome(call, policy)
    document = SessionDocument.model_validate_json(row.document)
    legs = {leg.index: leg for leg in audio.legs}
    folder = out / row.id
    (folder / "session.json").write_text(document.model_dump_json(indent=1), "utf-8")
    warnings = [*document.warnings, *result.warnings]
    if not call.lines:
        warnings.append("no answer with SDP in the capture: nothing tells where its RTP went")
    streams: list[StreamResult] = []
    for one in document.streams:
        leg = legs.get(one.index)
        parts = reports.get(f"{row.id}-{one.index}", [])
        line = call.lines.get(one.index)
        packets = sum(report.packets for report in parts)
        streams.append(
            StreamResult(
                index=one.index,
                label=one.label,
                speakers=tuple(
                    who.name or who.aor or who.id for who in document.on_stream(one.label)
                ),
                codec=", ".join(leg.codecs) if leg is not None else one.codec,
                state=one.state,
                packets=packets,
                lost=sum(report.lost for report in parts),
                duplicates=sum(report.duplicates for report in parts),
                duration=leg.duration if leg is not None else 0.0,
                file=f"{row.id}/{leg.file}" if leg is not None else None,
            )
        )
        if line is not None and not packets:
            warnings.append(f"stream {one.label}: no RTP in the capture")
        locked = sum(report.unauthenticated for report in parts)
        if locked:
            warnings.append(f"stream {one.label}: {locked} packets that its key does not open")
        warnings += _undecoded(one.label, line)
    return CallResult(
        **{name: getattr(result, name) for name in _KEPT},
        folder=row.id,
        end_cause=call.ended,
        duration=((row.ended_at or row.started_at) - row.started_at).total_seconds(),
        stereo=f"{row.id}/{audio.stereo}" if audio.stereo else None,
        participants=document.participants,
        streams=tuple(streams),
        warnings=tuple(warnings),
    )


def why_nothing(ignored: Counter[str], others: int) -> str:
    """What to do about a capture in which no call is a recording session; `others` is of calls."""
    if others:
        return (
            f"{others} calls, none of which asks for a recording session; "
            "say which address is the recording server with --srs"
        )
    if ignored["SIP messages of other dialogs"]:
        return "no INVITE in this capture: begin it before the call does"
    if any(what.startswith(_OTHER_RTP) for what in ignored):
        return "RTP but no SIP in this capture: without the INVITE nothing says whose it is"
    return "neither SIP nor RTP in this capture"


def unclaimed(payload_type: int) -> str:
    """RTP of which no dialog tells: only types that mean the same everywhere have a name."""
    codec = STATIC.get(payload_type)
    name = f" ({codec.name})" if codec is not None else ""
    decoded = codec is None or _understood(codec)
    note = "" if decoded else ", which the bridge does not decode"
    return f"{_OTHER_RTP}, payload type {payload_type}{name}{note}"


def clean(text: str) -> str:
    """Text of a message, octets that are no UTF-8 replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def moment(at_ns: int) -> datetime:
    """Nanoseconds since 1970 as an aware time."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC)


def _refused_streams(
    offer: SessionDescription | None, policy: MediaPolicy
) -> tuple[RefusedStream, ...]:
    """Of the last offer: m-lines that the bridge does not take, and why."""
    if offer is None:
        return ()
    return tuple(
        RefusedStream(
            one.index,
            tuple(clean(codec.name) for codec in media.codecs),
            clean(one.reason),
        )
        for one, media in zip(plan(offer, policy), offer.media, strict=True)
        if not one.accepted and media.port
    )


def _undecoded(label: str, line: Line | None) -> list[str]:
    """Packets on a recorded stream that carry what cannot be decoded."""
    found: list[str] = []
    for number, count in sorted(line.types.items()) if line is not None else ():
        codec = line.codecs.get(number) or STATIC.get(number) if line is not None else None
        name = clean(codec.name) if codec is not None else "an unknown codec"
        if codec is None or not _understood(codec):
            found.append(
                f"stream {label}: {count} packets of {name} (payload type {number}), "
                "which the bridge does not decode"
            )
    return found


def _understood(codec: Codec) -> bool:
    return can_decode(codec) or codec.name in _NO_VOICE
