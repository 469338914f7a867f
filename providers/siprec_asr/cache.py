"""Models in memory: loaded once, shared by all, dropped by use, age and memory.

Thread-safe. Loading blocks the thread that asks, and those that ask for the same model meanwhile.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from siprec_asr.engine import Engine
from siprec_asr.errors import Refused
from siprec_asr.metrics import Metrics

log = structlog.get_logger()


class Loader(Protocol):
    """Where models come from; see `models.ModelShelf`."""

    def size(self, name: str) -> int:
        """Memory that it will need, in octets."""
        ...

    def load(self, name: str) -> Engine:
        """Load it; raises Refused."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """`ttl` in seconds and `memory` in octets; 0: none."""

    size: int
    ttl: float
    memory: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the cache tells of a model."""

    name: str
    memory: int
    owners: tuple[str, ...]
    loading: bool
    idle_seconds: float


@dataclass(eq=False)
class _Entry:
    name: str
    engine: Future[Engine] = field(default_factory=Future)
    owners: Counter[str] = field(default_factory=Counter)
    memory: int = 0
    last_used: float = 0.0


class ModelCache:
    """One a process. Who leases a model keeps it in; only idle ones make room for others."""

    def __init__(
        self,
        loader: Loader,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._loader = loader
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._retired: list[_Entry] = []  # replaced or unloaded, still somebody's

    @contextmanager
    def lease(self, name: str, owner: str) -> Iterator[Engine]:
        """The model for as long as the block runs, loaded if need be.

        Raises Refused: 503 when it cannot be loaded, or all memory is in use; 507 when it would
        not fit even alone.
        """
        with self._lock:
            self._drop_expired()
            entry = self._entries.get(name)
            first = entry is None
            if entry is None:
                entry = self._entries[name] = _Entry(name)
            entry.owners[owner] += 1
        self._metrics.cache_lookups_total.labels("miss" if first else "hit").inc()
        try:
            yield self._load(entry) if first else entry.engine.result()
        finally:
            with self._lock:
                self._give_back(entry, owner)

    def load(self, name: str) -> None:
        """Have it in memory, for nobody yet. Raises Refused."""
        with self.lease(name, "load"):
            pass

    def unload(self, name: str) -> None:
        """Drop it. Raises Refused: 404 when it is not loaded, 409 while it is used."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                raise Refused(404, "not_loaded", f"{name} is not loaded")
            if entry.owners:
                raise Refused(409, "in_use", f"{name} is used by {', '.join(sorted(entry.owners))}")
            self._drop(entry, "unloaded")

    def reload(self, name: str) -> None:
        """Load it anew, then put it in the old one's place; runs under way end with the old one.

        Raises Refused when it cannot be loaded: the old one stays.
        """
        fresh = _Entry(name)
        fresh.owners["reload"] += 1
        with self._lock:
            old = self._entries.get(name)
        try:
            self._fill(fresh, replaces=old)
        except BaseException:
            with self._lock:
                self._retired = [one for one in self._retired if one is not fresh]
            raise
        with self._lock:
            self._retired = [one for one in self._retired if one is not fresh]
            old = self._entries.pop(name, None)
            self._entries[name] = fresh
            if old is not None and old.owners:
                self._retired.append(old)
            elif old is not None:
                old.engine.result().close()
            self._give_back(fresh, "reload")

    def sweep(self) -> None:
        """Drop what nobody has used for the TTL; to be called now and then."""
        with self._lock:
            self._drop_expired()

    def loaded(self) -> list[Loaded]:
        """What is in memory, or on its way there."""
        now = self._clock()
        with self._lock:
            return [
                Loaded(
                    name=one.name,
                    memory=one.memory,
                    owners=tuple(sorted(one.owners)),
                    loading=not one.engine.done(),
                    idle_seconds=0.0 if one.owners else now - one.last_used,
                )
                for one in [*self._entries.values(), *self._retired]
            ]

    def close(self) -> None:
        """Drop all that is idle."""
        with self._lock:
            for entry in [one for one in self._entries.values() if not one.owners]:
                self._drop(entry, "closed")

    def _load(self, entry: _Entry) -> Engine:
        try:
            return self._fill(entry, replaces=None)
        except BaseException:
            with self._lock:
                if self._entries.get(entry.name) is entry:
                    del self._entries[entry.name]
                self._tell()
            raise

    def _fill(self, entry: _Entry, replaces: _Entry | None) -> Engine:
        try:
            size = self._loader.size(entry.name)
            with self._lock:
                self._make_room(entry, size, replaces)
            begun = self._clock()
            engine = self._loader.load(entry.name)
        except BaseException as error:
            result = "refused" if isinstance(error, Refused) else "failed"
            self._metrics.model_loads_total.labels(result).inc()
            log.warning("model.load_failed", model=entry.name, cause=str(error))
            # Those who wait for it hear of it, too.
            entry.engine.set_exception(error)
            entry.engine.exception()
            raise
        with self._lock:
            entry.memory = max(size, engine.memory)
            entry.engine.set_result(engine)
            self._metrics.model_loads_total.labels("loaded").inc()
            self._metrics.model_load_seconds.observe(self._clock() - begun)
            self._tell()
        return engine

    def _make_room(self, entry: _Entry, size: int, replaces: _Entry | None) -> None:
        """Reserve memory for the entry, dropping idle models, the longest unused first."""
        limits = self.limits
        if limits.memory and size > limits.memory:
            raise Refused(
                507, "model_too_large",
                f"{entry.name} needs {size} octets, ASR_CACHE_MEMORY_LIMIT is {limits.memory}",
            )  # fmt: skip
        if replaces is not None:
            self._retired.append(entry)  # counted from now on
        while True:
            others = [one for one in [*self._entries.values(), *self._retired] if one is not entry]
            count = sum(one is not replaces for one in others) + 1
            memory = sum(one.memory for one in others) + size
            if count <= limits.size and not (limits.memory and memory > limits.memory):
                break
            idle = [
                one
                for one in self._entries.values()
                if one is not entry and one is not replaces and not one.owners
            ]
            if not idle:
                names = ", ".join(sorted(one.name for one in others))
                raise Refused(
                    503, "no_room", f"no room for {entry.name} while {names} are in use",
                    retry_after=10,
                )  # fmt: skip
            self._drop(min(idle, key=lambda one: one.last_used), "room")
        entry.memory = size
        self._tell()

    def _drop_expired(self) -> None:
        if not self.limits.ttl:
            return
        oldest = self._clock() - self.limits.ttl
        for entry in list(self._entries.values()):
            if not entry.owners and entry.last_used <= oldest:
                self._drop(entry, "unused")

    def _drop(self, entry: _Entry, reason: str) -> None:
        del self._entries[entry.name]
        entry.engine.result().close()
        self._metrics.models_dropped_total.labels(reason).inc()
        log.info("model.dropped", model=entry.name, reason=reason)
        self._tell()

    def _give_back(self, entry: _Entry, owner: str) -> None:
        entry.owners -= Counter({owner: 1})
        entry.last_used = self._clock()
        if not entry.owners and entry in self._retired:
            self._retired.remove(entry)
            entry.engine.result().close()
        self._tell()

    def _tell(self) -> None:
        held = [*self._entries.values(), *self._retired]
        self._metrics.models_loaded.set(sum(one.engine.done() for one in held))
        self._metrics.models_memory_bytes.set(sum(one.memory for one in held))
