"""What the audit says of an erasure while it goes on: what has become of each session, or that it is due.

Each session's outcome is written in the transaction that makes it so: cut off at any moment, the line is true.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from siprec_bridge.store import Database, erasure


class AuditLine:
    """One line; `due`: the sessions that are to be done."""

    def __init__(self, due: Sequence[str]) -> None:
        self._number = 0
        self._ids: dict[str, list[str]] = {"due": list(due)} if due else {}

    @property
    def detail(self) -> str:
        """JSON: sessions by what became of them."""
        return erasure.detail(self._ids)

    async def begin(self, database: Database, row: erasure.AuditRow) -> None:
        """Add it to the audit, before anything is done. Raises StoreError."""
        self._number = await database.write(lambda connection: erasure.note(connection, row))

    def note(self, connection: Connection, session_id: str, *outcomes: str) -> None:
        """Say in this transaction what becomes of a session with it."""
        erasure.tell(connection, self._number, erasure.detail(self._with(session_id, outcomes)))

    def add(self, session_id: str, *outcomes: str) -> None:
        """It was said, and committed."""
        self._ids = self._with(session_id, outcomes)

    def _with(self, session_id: str, outcomes: Sequence[str]) -> dict[str, list[str]]:
        ids = {name: list(some) for name, some in self._ids.items()}
        ids["due"] = [one for one in ids.get("due", ()) if one != session_id]
        for outcome in outcomes:
            ids[outcome] = [*ids.get(outcome, ()), session_id]
        return {name: some for name, some in ids.items() if some}
