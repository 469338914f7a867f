"""What the farm is doing: from the queues' counts and from what its workers leave in the store."""

import json
import time
from dataclasses import asdict, dataclass

from siprec_wrappers.farm.broker import Broker
from siprec_wrappers.farm.settings import Settings
from siprec_wrappers.farm.store import Store

_ALIVE_S = 30.0  # a worker that has not written its note for so long is gone


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker's own counts since its child began."""

    name: str
    busy: bool
    done: int
    failed: int
    dead: int
    audio_seconds: float
    busy_seconds: float
    clock_ahead: float = 0.0  # of the store's clock; negative: behind


@dataclass(frozen=True, slots=True)
class Status:
    """`open` jobs wait or run; times in seconds. `eta`: until they are done, None: unknown."""

    queued: int
    open: int
    open_audio_seconds: float
    oldest: float
    consumers: int
    dead: int
    eta: float | None
    workers: tuple[WorkerState, ...]

    def to_json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """For people."""
        eta = "unknown" if self.eta is None else f"{self.eta:.0f} s"
        lines = [
            f"queued   {self.queued}",
            f"open     {self.open} ({self.open_audio_seconds:.0f} s of audio, "
            f"oldest {self.oldest:.0f} s), done in {eta}",
            f"dead     {self.dead}",
            f"workers  {self.consumers}",
        ]
        for one in self.workers:
            state = "busy" if one.busy else "idle"
            lines.append(
                f"  {one.name} {state}: {one.done} done, {one.failed} failed, {one.dead} dead, "
                f"{one.audio_seconds:.0f} s of audio in {one.busy_seconds:.0f} s"
            )
            if one.clock_ahead:
                way = "ahead of" if one.clock_ahead > 0 else "behind"
                lines.append(f"    its clock is {abs(one.clock_ahead):.0f} s {way} the store's")
        return "\n".join(lines)


def read_status(settings: Settings, store: Store, broker: Broker) -> Status:
    """A look at queues and store. Raises BrokerError, StoreError."""
    now = time.time()
    store.check()  # a missing mount would look like an idle farm
    queued, consumers = broker.depth(settings.queue)
    dead, _ = broker.depth(settings.dead_queue)
    waiting = store.entries("waiting")
    audio_seconds = sum(_seconds(one.name) for one in waiting)
    workers = _workers(settings, store, now)
    return Status(
        queued=queued,
        open=len(waiting),
        open_audio_seconds=audio_seconds,
        oldest=max((now - one.modified for one in waiting), default=0.0),
        consumers=consumers,
        dead=dead,
        eta=_eta(len(waiting), audio_seconds, consumers, workers),
        workers=workers,
    )


def _seconds(name: str) -> float:
    try:
        return int(name.rpartition("~")[2]) / 1000
    except ValueError:
        return 0.0


def _workers(settings: Settings, store: Store, now: float) -> tuple[WorkerState, ...]:
    found = []
    for entry in store.entries("workers"):
        if now - entry.modified > _ALIVE_S:
            continue
        try:
            note = json.loads(store.get(f"workers/{entry.name}"))
            if note["pool"] != settings.pool:
                continue
            found.append(
                WorkerState(
                    name=entry.name.removesuffix(".json"),
                    busy=bool(note["busy"]),
                    done=int(note["done"]),
                    failed=int(note["failed"]),
                    dead=int(note["dead"]),
                    audio_seconds=float(note["audio_seconds"]),
                    busy_seconds=float(note["busy_seconds"]),
                    clock_ahead=float(note.get("clock_ahead", 0.0)),
                )
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # it left while we looked
    return tuple(sorted(found, key=lambda one: one.name))


def _eta(
    jobs: int, audio_seconds: float, consumers: int, workers: tuple[WorkerState, ...]
) -> float | None:
    """By the workers' speed so far: in audio where its length is known, else in jobs."""
    if not jobs:
        return 0.0
    busy = sum(one.busy_seconds for one in workers)
    heard = sum(one.audio_seconds for one in workers)
    done = sum(one.done for one in workers)
    if not consumers or not busy or not done:
        return None
    work = audio_seconds * busy / heard if heard and audio_seconds else jobs * busy / done
    return work / consumers
