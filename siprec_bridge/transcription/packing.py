"""Short legs side by side in one file, and what was heard in it, leg by leg.

Whisper computes windows of 30 s, full or not. Legs that fit into one are sent as one file, with a seam
of silence between two of them. Nobody's words may become another's: what does not clearly lie in one
leg is not guessed at, and such legs are to be heard again alone.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Literal

import structlog

from siprec_bridge.provider import AudioFile, Job, Provider, ProviderError, Run
from siprec_bridge.transcript import Segment, Transcript, Word
from siprec_bridge.transcription.guard import doubtful
from siprec_bridge.transcription.speech import texts_of

log = structlog.get_logger()

PackingPolicy = Literal["off", "call", "calls"]

WINDOW_S: Final = 30.0  # that Whisper computes at once
SEAM_S: Final = 1.0  # longer than pauses within a sentence, and legs begin and end with padding
_STRAY_S = 0.3  # less than that padding: a segment's ends may stray so far into another leg


@dataclass(frozen=True, slots=True)
class Seat:
    """A leg's place in a file: of which job, and from when on, in seconds."""

    job: str
    audio: AudioFile
    start: float

    @property
    def end(self) -> float:
        """Where its last sample is over."""
        return self.start + self.audio.duration


async def transcribe_packed(
    provider: Provider,
    jobs: Sequence[Job],
    policy: PackingPolicy,
    join: Callable[[Sequence[Sequence[Seat]]], Awaitable[list[AudioFile]]],
) -> tuple[Run, int, int]:
    """As `provider.transcribe`, with legs side by side; and how many were so, and how many again alone.

    `jobs` agree on language, model and prompt. `join` writes the files; where it cannot, each leg is
    sent alone.
    """
    files = seat(jobs, policy)
    shared = [file for file in files if len(file) > 1]
    if not shared:
        return await provider.transcribe(jobs), 0, 0
    try:
        sent = _Sent(jobs, files, await join(shared))
    except OSError as error:
        log.warning("jobs.not_packed", cause=str(error), effect="each leg has a file of its own")
        return await provider.transcribe(jobs), 0, 0
    run = await provider.transcribe(sent.jobs)
    outcomes, torn = sent.take_apart(run)
    again = [
        replace(job, audio=tuple(one for one in job.audio if (job.id, one.key) in torn))
        for job in jobs
        if any(id == job.id for id, _ in torn)
    ]
    if again:
        second = await provider.transcribe(again)
        for job in again:
            alone = second.outcomes.get(job.id, ProviderError("no_outcome"))
            first = outcomes[job.id]
            if not isinstance(first, ProviderError):
                outcomes[job.id] = alone if isinstance(alone, ProviderError) else {**first, **alone}
        told = second.facts if run.facts.status == "success" else run.facts
        both = {
            "duration": run.facts.duration + second.facts.duration,
            "temp_bytes": max(run.facts.temp_bytes, second.facts.temp_bytes),
            "files": run.facts.files + second.facts.files,
        }
        run = replace(run, facts=told.model_copy(update=both))
    return replace(run, outcomes=outcomes), sum(map(len, shared)), len(torn)


class _Sent:
    """What is sent instead of the jobs, and the way back. A file of several jobs is the first one's."""

    def __init__(
        self, jobs: Sequence[Job], files: Sequence[Sequence[Seat]], joined: Sequence[AudioFile]
    ) -> None:
        self._ids = [job.id for job in jobs]
        self._seats: dict[tuple[str, str], Sequence[Seat]] = {}
        written = iter(joined)
        audio: dict[str, list[AudioFile]] = {id: [] for id in self._ids}
        for number, file in enumerate(files):
            one = next(written) if len(file) > 1 else file[0].audio
            named = replace(one, key=f"{number}")  # legs of two jobs may have the same
            self._seats[file[0].job, named.key] = file
            audio[file[0].job].append(named)
        self.jobs = [replace(job, audio=tuple(audio[job.id])) for job in jobs if audio[job.id]]

    def take_apart(
        self, run: Run
    ) -> tuple[dict[str, Mapping[str, Transcript] | ProviderError], set[tuple[str, str]]]:
        """The outcomes of the jobs, and the legs that are to be heard again alone."""
        heard: dict[str, dict[str, Transcript]] = {id: {} for id in self._ids}
        failed: dict[str, ProviderError] = {}
        torn: set[tuple[str, str]] = set()
        for (owner, key), file in self._seats.items():
            outcome = run.outcomes.get(owner, ProviderError("no_outcome"))
            if isinstance(outcome, ProviderError):
                failed |= dict.fromkeys((one.job for one in file), outcome)
                continue
            whole = outcome.get(key)
            parts = [None] * len(file) if whole is None else unseat(file, whole)
            for one, part in zip(file, parts, strict=True):
                if part is None:
                    torn.add((one.job, one.audio.key))
                else:
                    heard[one.job][one.audio.key] = part
        torn = {leg for leg in torn if leg[0] not in failed}
        return {**heard, **failed}, torn


def seat(jobs: Sequence[Job], policy: PackingPolicy) -> list[list[Seat]]:
    """The legs of the jobs by file, all of them, longest first; a file of one leg is that leg's own.

    `call`: only legs of one job share a file.
    """
    rooms: dict[str, list[list[Seat]]] = {}
    legs = [(job.id, audio) for job in jobs for audio in job.audio]
    for job_id, audio in sorted(legs, key=lambda one: -one[1].duration):
        files = rooms.setdefault(job_id if policy == "call" else "", [])
        for file in files if policy != "off" else ():
            start = file[-1].end + SEAM_S
            if start + audio.duration <= WINDOW_S:
                file.append(Seat(job_id, audio, start))
                break
        else:
            files.append([Seat(job_id, audio, 0.0)])
    return [file for files in rooms.values() for file in files]


def unseat(file: Sequence[Seat], heard: Transcript) -> list[Transcript | None]:
    """What was heard in a file, by seat and in its time; None: that leg is to be heard again alone.

    That is where a segment or a word lies in two legs, where nothing was heard at all, and where
    something is doubtful: Whisper's figures are those of a window, so others' noise may be the reason.
    """
    if len(file) == 1:
        return [heard]
    parts: list[list[Segment]] = [[] for _ in file]
    torn: set[int] = set()
    for segment in heard.segments:
        if not segment.text.strip():
            continue
        found = list(_split(file, segment) if segment.words else _whole(file, segment))
        if any(part is None for _, part in found):
            torn.update(place for place, _ in found)
            continue
        for place, part in found:
            if part is not None:
                parts[place].append(_moved(part, file[place]))
    torn.update(place for place, segments in enumerate(parts) if not segments or doubtful(segments))
    return [
        None
        if place in torn
        else heard.model_copy(update={"segments": tuple(segments), "suppressed": ()})
        for place, segments in enumerate(parts)
    ]


_Parts = Iterator[tuple[int, Segment | None]]  # by seat; None: no telling what of it is that leg's


def _whole(file: Sequence[Seat], segment: Segment) -> _Parts:
    """A segment without words is one leg's, or nobody knows whose."""
    under = [min(one.end, segment.end) - max(one.start, segment.start) for one in file]
    most = max(under)
    near = [place for place, one in enumerate(under) if one > 0 and one >= min(_STRAY_S, most / 2)]
    for place in near or range(len(file)):
        yield place, segment if len(near) == 1 else None


def _split(file: Sequence[Seat], segment: Segment) -> _Parts:
    """A segment with words is cut where its words go over from one leg to another."""
    places = [_places_of(file, word) for word in segment.words]
    if any(len(one) > 1 for one in places):
        for place in sorted({place for one in places for place in one}):
            yield place, None
        return
    placed = [(one[0], word) for one, word in zip(places, segment.words, strict=True)]
    runs = [(place, tuple(word for _, word in run)) for place, run in groupby(placed, _first)]
    texts = texts_of(segment.text, [[word.text for word in words] for _, words in runs])
    for number, ((place, words), text) in enumerate(zip(runs, texts, strict=True)):
        start = segment.start if number == 0 else words[0].start
        end = segment.end if number == len(runs) - 1 else words[-1].end
        cut = {"text": text, "start": start, "end": end, "words": words}
        yield place, segment.model_copy(update=cut)


def _first(placed: tuple[int, Word]) -> int:
    return placed[0]


def _places_of(file: Sequence[Seat], word: Word) -> range:
    """The legs that a word may be of: it lies ahead of the middle of a seam, behind it or across."""
    seams = [one.start - SEAM_S / 2 for one in file[1:]]
    start, end = sorted((word.start, word.end))
    ends = bisect_right(seams, start), bisect_left(seams, end)
    return range(min(ends), max(ends) + 1)


def _moved(segment: Segment, seat: Seat) -> Segment:
    """In the leg's own time, and within it."""

    def at(seconds: float) -> float:
        return round(min(max(seconds - seat.start, 0.0), seat.audio.duration), 3)

    words = tuple(
        word.model_copy(update={"start": at(word.start), "end": at(word.end)})
        for word in segment.words
    )
    times = {"start": at(segment.start), "end": at(segment.end)}
    return segment.model_copy(update=times | {"words": words})
