"""Keeps the SIP messages of each session, so that an operator sees what was said on the wire.

Messages come before their session is stored, and after it has ended: they wait for it for a
while. What belongs to no session (OPTIONS, refused calls, scanners) is forgotten.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import structlog

from siprec_bridge.sip import Peer
from siprec_bridge.store import Database, SipMessage, StoreError, ladder
from siprec_bridge.telemetry import masked

log = structlog.get_logger()

_CALL_ID = re.compile(rb"^(?:call-id|i)[ \t]*+:([^\r\n]*+)", re.I | re.M)
_FLUSH_S = 1.0
_PATIENCE_S = 60.0
_MOST_OF_A_CALL = 500  # waiting at once; a call that sends more is not one to look at
_MOST_CALLS = 10_000
_AT_ONCE = 1000  # messages of one write: others want to write too


@dataclass(slots=True)
class _Waiting:
    since: float
    messages: list[SipMessage] = field(default_factory=list)


class LadderKeeper:
    """`note` every message that is received or sent; `run` stores them."""

    def __init__(
        self,
        database: Database,
        *,
        session_of: Callable[[str], str | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._session_of = session_of  # SIP Call-ID to session id, once the session is stored
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}

    def note(self, data: bytes, peer: Peer, *, sent: bool) -> None:
        """Take a whole message; never blocks."""
        found = _CALL_ID.search(data)
        if found is None:
            return
        call_id = found.group(1).strip().decode("utf-8", "replace")
        waiting = self._waiting.get(call_id)
        if waiting is None:
            if len(self._waiting) >= _MOST_CALLS:
                return
            waiting = self._waiting[call_id] = _Waiting(time.monotonic())
        if len(waiting.messages) < _MOST_OF_A_CALL:
            text = masked(data.decode("utf-8", "replace"))
            where = f"{peer.transport}:{peer.host}:{peer.port}"
            waiting.messages.append(SipMessage(self._clock(), sent, where, text))

    async def run(self) -> None:
        """Store what waits, until cancelled, and then a last time."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_S)
                await self.flush()
        finally:
            await asyncio.shield(self.flush())

    async def flush(self) -> None:
        """Store the messages of known sessions; forget those that nobody wanted in time."""
        now = time.monotonic()
        known: list[tuple[str, SipMessage]] = []
        for call_id, waiting in list(self._waiting.items()):
            session_id = self._session_of(call_id)
            if session_id is not None:
                del self._waiting[call_id]
                known += [(session_id, one) for one in waiting.messages]
            elif now - waiting.since > _PATIENCE_S:
                del self._waiting[call_id]
        for start in range(0, len(known), _AT_ONCE):
            part = known[start : start + _AT_ONCE]
            try:
                await self._database.write(partial(ladder.append, messages=part))
            except StoreError as error:  # it is there to look at, not worth a retry
                log.warning("ladder.not_stored", messages=len(part), cause=str(error))
