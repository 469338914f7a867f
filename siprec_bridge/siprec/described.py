"""What the SRC says of its communication sessions, put together from one document after the other."""

from collections.abc import Iterable, Mapping

from siprec_bridge.siprec.document import Attendance, CommunicationSession
from siprec_bridge.siprec.metadata import Attendance as Stated
from siprec_bridge.siprec.metadata import Metadata, SessionData

_MAX_SESSIONS = 500  # the newest ones of a recording session that never ends
_MAX_ATTENDANCES = 500  # the newest ones of a session


def described(
    known: Mapping[str, CommunicationSession], metadata: Metadata
) -> dict[str, CommunicationSession]:
    """The sessions by their ids, in the order in which they were first named.

    What a document leaves out stays: also a complete one does not mention what is over.
    """
    found = dict(known)
    for one in metadata.sessions[-_MAX_SESSIONS:]:
        found[one.id] = _with(found.get(one.id), one)
    found = dict(list(found.items())[-_MAX_SESSIONS:])
    stated: dict[str, list[Stated]] = {}
    for attendance in metadata.attendances:
        if attendance.session_id in found and attendance.participant_id:
            stated.setdefault(attendance.session_id, []).append(attendance)
    for id, attendances in stated.items():
        participants = _attended(found[id].participants, attendances)
        found[id] = found[id].model_copy(update={"participants": participants})
    return found


def _with(old: CommunicationSession | None, new: SessionData) -> CommunicationSession:
    old = old or CommunicationSession(id=new.id)
    return old.model_copy(
        update={
            "sip_session_ids": tuple(dict.fromkeys(old.sip_session_ids + new.sip_session_ids)),
            "group_id": new.group_id or old.group_id,
            "reason": new.reason or old.reason,
            "started_at": new.started_at or old.started_at,
            "ended_at": new.ended_at or old.ended_at,
        }
    )


def _attended(known: tuple[Attendance, ...], stated: Iterable[Stated]) -> tuple[Attendance, ...]:
    """With these; a participant who comes back has one for each time."""
    found = list(known)
    last = {one.participant_id: index for index, one in enumerate(found)}
    for one in stated:
        since, until = one.since, one.until
        index = last.get(one.participant_id)
        if index is not None and since in (None, found[index].since):
            since, until = found[index].since, until or found[index].until
        else:
            index = last[one.participant_id] = len(found)
            found.append(Attendance(participant_id=one.participant_id))
        found[index] = Attendance(participant_id=one.participant_id, since=since, until=until)
    return tuple(found[-_MAX_ATTENDANCES:])
