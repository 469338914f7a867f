"""What was put off by a clock that was ahead, once it was set back: due now, not when it was said."""

from datetime import datetime

from sqlalchemy import Connection

from siprec_bridge.store.deposits import LEASE
from siprec_bridge.store.dialect import common_time
from siprec_bridge.store.schema import deliveries, deposits, jobs


def rewind(connection: Connection, now: datetime) -> int:
    """Let all be tried that was put off to a time after `now`; returns how much that was.

    What was put off since is tried too early by its back-off, once. Files that are to be deleted
    here later are looked at, and stay.
    """
    count = 0
    for table in (jobs, deliveries, deposits):
        query = table.update().where(table.c.not_before > now).values(not_before=now)
        count += connection.execute(query).rowcount
    shorten_leases(connection, now)
    return count


def shorten_leases(connection: Connection, now: datetime) -> None:
    """Let no lease last longer than one that is given now: who has it is alive, and renews it, or dead."""
    until = common_time(connection, now) + LEASE
    for table in (jobs, deposits):
        connection.execute(
            table.update().where(table.c.lease_until > until).values(lease_until=until)
        )
