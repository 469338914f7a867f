"""A call that was recorded in several sessions, as one conversation."""

import json
from collections.abc import Callable

from pydantic import TypeAdapter
from sqlalchemy import Connection

from siprec_bridge.store import SessionRow, groups
from siprec_bridge.transcript import Conversation, Participant
from siprec_bridge.transcription import JoinedConversation, JoinedSession, join

_PEOPLE = TypeAdapter(tuple[Participant, ...])


def read_group(
    connection: Connection,
    group_id: str,
    sees: Callable[[SessionRow], bool],
    *,
    with_text: bool = True,
) -> JoinedConversation | None:
    """What was said in a group's sessions that may be seen; None: there is none of these.

    Without text only the sessions are told, and which of them have a transcript. Raises
    groups.TooLarge.
    """
    rows = [row for row in groups.sessions_of(connection, group_id) if sees(row)]
    if not rows:
        return None
    ids = [row.id for row in rows]
    found = groups.latest_transcripts(connection, ids) if with_text else {}
    versions = {id: one.version for id, one in found.items()}
    if not with_text:
        versions = groups.latest_versions(connection, ids)
    sessions = [
        JoinedSession(
            session_id=row.id,
            sip_call_id=row.sip_call_id,
            state=row.state,
            started_at=row.started_at,
            ended_at=row.ended_at,
            version=versions.get(row.id),
            participants=_PEOPLE.validate_python(json.loads(row.document).get("participants", ())),
        )
        for row in rows
    ]
    said = {id: Conversation.model_validate_json(one.document) for id, one in found.items()}
    return join(group_id, sessions, said)
