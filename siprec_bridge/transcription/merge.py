"""Each party's transcript into one conversation, on the wall clock. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from siprec_bridge.transcript import (
    Conversation,
    KeyPress,
    Leg,
    Participant,
    RunFacts,
    Segment,
    Suppressed,
    Transcript,
    Utterance,
    Word,
)

Speaker = Callable[[str, datetime], Participant | None]


@dataclass(frozen=True, slots=True)
class RecordedLeg:
    """A stream's audio file: the time of its first sample, and its length in seconds.

    `keys` were pressed at these seconds of the file.
    """

    label: str
    started_at: datetime
    duration: float
    audio: str | None = None
    participants: tuple[Participant, ...] = ()
    keys: tuple[KeyPress, ...] = ()


def merge(
    legs: Sequence[RecordedLeg],
    heard: Mapping[str, Transcript],
    speaker: Speaker,
    *,
    session_id: str,
    sip_call_id: str,
    group_id: str | None,
    participants: Sequence[Participant],
    started_at: datetime,
    ended_at: datetime,
    facts: RunFacts,
    call_ids: Mapping[str, str] | None = None,
) -> Conversation:
    """Place what was heard on each leg in the session; utterances come in order of their start.

    `heard` is by label; a leg that is not in it was silent. `speaker` tells who was on a label
    at a time: where it changes within a segment, the segment is cut between two words.
    """
    utterances = sorted(
        (
            utterance
            for leg in legs
            for utterance in _utterances(leg, heard.get(leg.label), speaker, started_at)
        ),
        key=lambda one: (one.start, one.end, one.label),
    )
    spoken = {
        heard[leg.label].language for leg in legs if leg.label in heard and heard[leg.label].text
    }
    return Conversation(
        session_id=session_id,
        sip_call_id=sip_call_id,
        group_id=group_id,
        call_ids=dict(call_ids or {}),
        started_at=started_at,
        ended_at=ended_at,
        duration=max(0.0, (ended_at - started_at).total_seconds()),
        participants=tuple(participants),
        legs=tuple(
            Leg(
                label=leg.label,
                participants=leg.participants,
                offset=_seconds(leg.started_at - started_at),
                duration=leg.duration,
                audio=leg.audio,
                language=heard[leg.label].language if leg.label in heard else None,
                speech=heard[leg.label].speech if leg.label in heard else None,
                keys=tuple(
                    key.model_copy(
                        update={
                            "start": round(key.start + _seconds(leg.started_at - started_at), 3)
                        }
                    )
                    for key in leg.keys
                ),
            )
            for leg in legs
        ),
        utterances=tuple(utterances),
        suppressed=tuple(
            sorted(
                (one for leg in legs for one in _suppressed(leg, heard, started_at)),
                key=lambda one: (one.start, one.end),
            )
        ),
        language=spoken.pop() if len(spoken) == 1 else None,
        provider=facts.provider,
        model=next((one.model for one in heard.values() if one.model), facts.model),
        run=facts,
    )


def _utterances(
    leg: RecordedLeg, transcript: Transcript | None, speaker: Speaker, origin: datetime
) -> Iterator[Utterance]:
    for segment in transcript.segments if transcript is not None else ():
        if not segment.text.strip():
            continue
        for part, who in _by_speaker(leg, segment, speaker):
            starts_at = leg.started_at + timedelta(seconds=part.start)
            ends_at = leg.started_at + timedelta(seconds=max(part.start, part.end))
            offset = leg.started_at - origin
            yield Utterance(
                label=leg.label,
                participant=who,
                start=_seconds(starts_at - origin),
                end=_seconds(ends_at - origin),
                starts_at=starts_at,
                ends_at=ends_at,
                text=part.text.strip(),
                language=transcript.language if transcript is not None else None,
                words=tuple(_shifted(word, offset) for word in part.words),
                avg_logprob=part.avg_logprob,
                no_speech_prob=part.no_speech_prob,
                compression_ratio=part.compression_ratio,
                doubt=part.doubt,
            )


def _suppressed(
    leg: RecordedLeg, heard: Mapping[str, Transcript], origin: datetime
) -> Iterator[Suppressed]:
    seconds = (leg.started_at - origin).total_seconds()
    for one in heard[leg.label].suppressed if leg.label in heard else ():
        start, end = round(one.start + seconds, 3), round(one.end + seconds, 3)
        yield one.model_copy(update={"label": leg.label, "start": start, "end": end})


def _by_speaker(
    leg: RecordedLeg, segment: Segment, speaker: Speaker
) -> Iterator[tuple[Segment, Participant | None]]:
    """The segment, cut where another participant takes the stream over."""

    def at(seconds: float) -> Participant | None:
        return speaker(leg.label, leg.started_at + timedelta(seconds=seconds))

    runs: list[tuple[Participant | None, list[Word]]] = []
    for word in segment.words:
        who = at((word.start + word.end) / 2)
        if not runs or runs[-1][0] != who:
            runs.append((who, []))
        runs[-1][1].append(word)
    if len(runs) < 2:
        yield segment, at((segment.start + segment.end) / 2)
        return
    for who, words in runs:
        text = " ".join(word.text.strip() for word in words)
        cut = {"text": text, "start": words[0].start, "end": words[-1].end, "words": tuple(words)}
        yield segment.model_copy(update=cut), who


def _shifted(word: Word, offset: timedelta) -> Word:
    """The word on the session's clock instead of its file's."""
    seconds = offset.total_seconds()
    start, end = round(word.start + seconds, 3), round(max(word.start, word.end) + seconds, 3)
    return word.model_copy(update={"start": start, "end": end})


def _seconds(span: timedelta) -> float:
    return round(span.total_seconds(), 3)
