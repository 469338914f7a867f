"""Conversations of several sessions into one: a call that was recorded in parts, in order of time. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from siprec_bridge.transcript import Conversation, Participant, Utterance, Value


class JoinedSession(Value):
    """A session of the group. `version`: of its transcript that was taken; None: there is none yet."""

    session_id: str
    sip_call_id: str
    state: str
    started_at: datetime
    ended_at: datetime | None = None
    version: int | None = None
    participants: tuple[Participant, ...] = ()


class JoinedUtterance(Utterance):
    """An utterance with its session; its times count from the start of the group's first session."""

    session_id: str


class JoinedConversation(Value):
    """What was said in all sessions of a group. `complete`: each of them has a transcript."""

    group_id: str
    started_at: datetime
    ended_at: datetime | None = None  # None: one still goes on
    complete: bool
    sessions: tuple[JoinedSession, ...]
    participants: tuple[Participant, ...] = ()
    utterances: tuple[JoinedUtterance, ...] = ()

    @property
    def lines(self) -> str:
        """All utterances, a line each with who says it, in order of start."""
        return "\n".join(one.line for one in self.utterances)


def join(
    group_id: str, sessions: Sequence[JoinedSession], said: Mapping[str, Conversation]
) -> JoinedConversation:
    """One conversation of at least one session, in order of their start; `said` is by session id."""
    origin = min(one.started_at for one in sessions)
    ends = [one.ended_at for one in sessions]
    utterances = sorted(
        (
            _moved(utterance, one.session_id, said[one.session_id].started_at - origin)
            for one in sessions
            if one.session_id in said
            for utterance in said[one.session_id].utterances
        ),
        key=lambda one: (one.starts_at, one.ends_at),
    )
    people: dict[tuple[str, str | None], Participant] = {}
    for one in (one for session in sessions for one in session.participants):
        known = people.setdefault((one.id, one.aor), one)
        if known.name is None and one.name is not None:
            people[one.id, one.aor] = one
    return JoinedConversation(
        group_id=group_id,
        started_at=origin,
        ended_at=None if None in ends else max(filter(None, ends)),
        complete=all(one.version is not None for one in sessions),
        sessions=tuple(sessions),
        participants=tuple(people.values()),
        utterances=tuple(utterances),
    )


def _moved(utterance: Utterance, session_id: str, by: timedelta) -> JoinedUtterance:
    seconds = by.total_seconds()
    words = tuple(
        word.model_copy(
            update={"start": round(word.start + seconds, 3), "end": round(word.end + seconds, 3)}
        )
        for word in utterance.words
    )
    fields = {name: getattr(utterance, name) for name in Utterance.model_fields}
    moved = {
        "start": round(utterance.start + seconds, 3),
        "end": round(utterance.end + seconds, 3),
        "words": words,
    }
    return JoinedUtterance(**(fields | moved), session_id=session_id)
