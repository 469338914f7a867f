"""The ladder of a session: its SIP messages in order, secrets masked by whoever stores them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from siprec_bridge.store.schema import sip_messages


@dataclass(frozen=True, slots=True)
class SipMessage:
    """One message as it was on the wire. `peer` is transport, address and port."""

    at: datetime
    sent: bool  # by us
    peer: str
    text: str

    @property
    def title(self) -> str:
        """Its first line, without the version."""
        return self.text.partition("\n")[0].strip().removesuffix(" SIP/2.0")


_INSERT = sip_messages.insert()


def append(connection: Connection, messages: Sequence[tuple[str, SipMessage]]) -> None:
    """Add messages to the ladders of stored sessions, whose ids come with them."""
    if messages:
        connection.execute(
            _INSERT,
            [
                {
                    "session_id": session_id,
                    "at": one.at,
                    "sent": one.sent,
                    "peer": one.peer,
                    "text": one.text,
                }
                for session_id, one in messages
            ],
        )


def of_session(connection: Connection, session_id: str, limit: int = 10_000) -> list[SipMessage]:
    """A session's messages, oldest first."""
    rows = connection.execute(
        sip_messages.select()
        .where(sip_messages.c.session_id == session_id)
        .order_by(sip_messages.c.id)
        .limit(limit)
    )
    return [SipMessage(row.at, row.sent, row.peer, row.text) for row in rows]
