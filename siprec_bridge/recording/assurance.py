"""Was it recorded? What came of each stream against what was to come, as findings and a verdict."""

from datetime import datetime
from itertools import combinations

from siprec_bridge.media import FinishedAudio, FinishedLeg
from siprec_bridge.siprec import (
    Assurance,
    Finding,
    FindingCode,
    SessionDocument,
    StreamAssurance,
    StreamDocument,
    Verdict,
)

_SHORTEST_S = 1.0  # a stream that was there for less may well be over before its first packet
_EDGE_S = 2.0  # between the answer and the first packet, the last one and the BYE
# The same of a sender that sends nothing in silence, which calls begin and end with.
_EDGE_OF_SILENT_S = 30.0
_GAP_S = 2.0  # a sentence is lost
_LOSS = 0.01  # of the audio, in short gaps: there G.711 falls below a MOS of 4
_LEAST_LOSS_S = 0.2
_UNDECODED = 0.01  # of the packets
# Who says nothing for so long, in a call where the other one speaks, is not heard.
_ONE_WAY_S = 10.0
_NO_SOUND_S = 0.2  # a click is no speech
_SPEECH_S = 1.0
_UNEQUAL_S, _UNEQUAL = 5.0, 0.02  # by so much one leg may have less than the other

NO_AUDIO = Assurance(verdict="nothing", findings=(Finding(code="audio_missing"),))


def assure(
    document: SessionDocument, audio: FinishedAudio, ended_at: datetime, cause: str
) -> Assurance:
    """Judge a session by its document and by what is in its files.

    It is complete when nothing was found, and nothing when no stream that was to be received has
    any audio. A session in which nothing was to be received is complete.
    """
    legs = {leg.index: leg for leg in audio.legs}
    findings: list[Finding] = []
    streams: list[StreamAssurance] = []
    heard: list[tuple[StreamAssurance, FinishedLeg | None]] = []
    for stream in document.streams:
        leg = legs.get(stream.index)
        own = f"{document.session_id}-{stream.index}."
        damaged = any(name.startswith(own) for name in audio.damaged)
        expected = sum(
            (until - since).total_seconds() for since, until in stream.expected(ended_at)
        )
        found = _of_stream(stream, leg, expected, damaged)
        findings += found
        one = _stream(stream, leg, expected, found)
        streams.append(one)
        heard.append((one, leg))
    findings += _one_way(heard)
    findings += [
        Finding(code="identical_legs", label=one, detail=f"stream {other} is the same audio")
        for one, other in audio.identical
    ]
    findings += _unequal(streams)
    if cause == "bridge_restarted":
        findings.append(
            Finding(code="bridge_restarted", detail="what came after that is not recorded")
        )
    named = {one.label for one in findings}
    streams = [
        one.model_copy(update={"verdict": "incomplete"})
        if one.verdict == "complete" and one.label in named
        else one
        for one in streams
    ]
    to_come = [one for one in streams if one.expected >= _SHORTEST_S]
    nothing = bool(to_come) and all(one.verdict == "nothing" for one in to_come)
    verdict: Verdict = "nothing" if nothing else "incomplete" if findings else "complete"
    return Assurance(verdict=verdict, findings=tuple(findings), streams=tuple(streams))


def _stream(
    stream: StreamDocument, leg: FinishedLeg | None, expected: float, found: list[Finding]
) -> StreamAssurance:
    covered = leg.covered if leg is not None else None
    none = any(
        one.code == "nothing_received" or (one.code == "damaged" and leg is None) for one in found
    )
    return StreamAssurance(
        label=stream.label,
        verdict="nothing" if none else "incomplete" if found else "complete",
        expected=round(expected, 3),
        captured=round(covered.captured, 3) if covered is not None else 0.0,
        gaps=covered.gaps if covered is not None else 0,
        longest_gap=round(covered.longest_gap, 3) if covered is not None else 0.0,
        loss_ratio=stream.quality.loss_ratio if stream.quality is not None else None,
        silence=round(1 - covered.sound / covered.received, 4)
        if covered is not None and covered.received
        else None,
    )


def _of_stream(
    stream: StreamDocument, leg: FinishedLeg | None, expected: float, damaged: bool
) -> list[Finding]:
    def finding(code: FindingCode, detail: str) -> Finding:
        return Finding(code=code, label=stream.label, detail=detail)

    if damaged:
        return [finding("damaged", "its spool cannot be read")]
    if expected < _SHORTEST_S:
        return []
    covered = leg.covered if leg is not None else None
    if leg is None or covered is None or covered.captured == 0:
        refused = stream.quality.unauthenticated if stream.quality is not None else 0
        why = f", {refused} packets that no key opens" if refused else ""
        return [finding("nothing_received", f"{expected:.1f} s were expected{why}")]
    found: list[Finding] = []
    edge = _EDGE_OF_SILENT_S if covered.left_out >= _NO_SOUND_S else _EDGE_S
    if covered.late >= edge:
        found.append(finding("started_late", f"{covered.late:.1f} s after the answer"))
    if covered.early >= edge:
        found.append(finding("ended_early", f"{covered.early:.1f} s before the end"))
    if covered.longest_gap >= _GAP_S:
        found.append(finding("gap", f"{covered.longest_gap:.1f} s, {covered.gaps} in all"))
    lost = covered.expected - covered.captured - covered.late - covered.early
    if covered.longest_gap < _GAP_S and lost >= max(_LOSS * expected, _LEAST_LOSS_S):
        found.append(finding("loss", f"{lost:.1f} s of {expected:.1f} s are missing"))
    if leg.undecoded > _UNDECODED * (leg.packets + leg.undecoded):
        found.append(finding("undecoded", f"{leg.undecoded} packets that the codec refused"))
    return found


def _one_way(heard: list[tuple[StreamAssurance, FinishedLeg | None]]) -> list[Finding]:
    """Streams without a sound while somebody spoke on another one."""

    def sound(leg: FinishedLeg | None) -> float:
        return leg.covered.sound if leg is not None and leg.covered is not None else 0.0

    if not any(sound(leg) >= _SPEECH_S for _, leg in heard):
        return []
    return [
        Finding(code="one_way", label=one.label, detail=f"no sound in {one.expected:.1f} s")
        for one, leg in heard
        if one.expected >= _ONE_WAY_S and sound(leg) < _NO_SOUND_S
    ]


def _unequal(streams: list[StreamAssurance]) -> list[Finding]:
    """Of two streams, the one of which more is missing by far; what nothing came of says so itself."""
    there = [one for one in streams if one.captured > 0]
    for one, other in combinations(there, 2):
        worse, better = sorted((one, other), key=lambda it: it.captured - it.expected)
        more = (better.captured - better.expected) - (worse.captured - worse.expected)
        if more > max(_UNEQUAL_S, _UNEQUAL * worse.expected):
            detail = f"{worse.captured:.1f} s, stream {better.label} has {better.captured:.1f} s"
            return [Finding(code="unequal_legs", label=worse.label, detail=detail)]
    return []
