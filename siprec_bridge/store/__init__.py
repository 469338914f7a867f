"""What must survive a crash: sessions, transcription jobs, transcripts, and events to deliver.

Refuses to know what an event says, how audio is made and who listens; callers hand it plain
values and get frozen rows. Audio itself lies in files beside the database.
"""

from siprec_bridge.store import (
    deposits,
    erasure,
    groups,
    jobs,
    ladder,
    outbox,
    recordings,
    retention,
    search,
    transcripts,
)
from siprec_bridge.store.database import Database
from siprec_bridge.store.deposits import DepositBacklog, DepositRow
from siprec_bridge.store.errors import StoreError
from siprec_bridge.store.jobs import Backlog, JobRow, Waiting
from siprec_bridge.store.ladder import SipMessage
from siprec_bridge.store.nodes import node_id
from siprec_bridge.store.outbox import Event, PendingEvent, SinkBacklog
from siprec_bridge.store.recordings import SessionRow
from siprec_bridge.store.search import Found, Hit
from siprec_bridge.store.transcripts import TranscriptRow

__all__ = [
    "Backlog",
    "Database",
    "DepositBacklog",
    "DepositRow",
    "Event",
    "Found",
    "Hit",
    "JobRow",
    "PendingEvent",
    "SessionRow",
    "SinkBacklog",
    "SipMessage",
    "StoreError",
    "TranscriptRow",
    "Waiting",
    "deposits",
    "erasure",
    "groups",
    "jobs",
    "ladder",
    "node_id",
    "outbox",
    "recordings",
    "retention",
    "search",
    "transcripts",
]
