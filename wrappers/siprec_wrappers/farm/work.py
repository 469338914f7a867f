"""What a job's end leaves in the store."""

import contextlib
import time

from siprec_wrappers.farm.job import Job, failure_document
from siprec_wrappers.farm.settings import Settings
from siprec_wrappers.farm.store import Store, StoreError


class Work:
    """What a job's end leaves in the store, be it a worker's or a dispatcher's."""

    def __init__(self, settings: Settings, store: Store, host: str) -> None:
        self._settings = settings
        self._store = store
        self._host = host

    def settled(self, job: Job) -> bool:
        """Whether nothing is to be done: there is a result, or nobody wants it. Raises StoreError."""
        return (
            time.time() > job.deadline
            or self._store.exists(job.cancelled)
            or self._store.exists(job.result)
        )

    def cancelled(self, job: Job) -> bool:
        """Whether the client has withdrawn it; False also while the store is away."""
        try:
            return self._store.exists(job.cancelled)
        except StoreError:
            return False

    def succeed(self, job: Job, data: bytes) -> None:
        """Keep the result. Raises StoreError."""
        self._store.put(job.result, data, durable=True)
        self._close(job)

    def fail(self, job: Job, error: str, *, unavailable: bool = False) -> None:
        """Keep why there is none. Raises StoreError."""
        document = failure_document(error, unavailable=unavailable, host=self._host)
        self._store.put(job.failure, document, durable=True)
        self._close(job)

    def drop(self, job: Job) -> None:
        """It was settled before. Raises StoreError."""
        self._close(job)

    def exhausted(self, deliveries: int) -> str | None:
        """Why it is not tried once more after this many deliveries before, or None."""
        if deliveries < self._settings.attempts:
            return None
        return f"given up: {deliveries} workers that took it were lost with it"

    def _close(self, job: Job) -> None:
        with contextlib.suppress(StoreError):  # it only counts
            self._store.delete(job.waiting)
