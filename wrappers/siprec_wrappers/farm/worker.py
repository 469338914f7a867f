"""`whisper-farm worker`: a Celery worker with one child, which alone loads the model.

A message is acknowledged when its result is in the store. A child or a machine that dies gives it
back to the broker, which hands it to another, WHISPER_FARM_ATTEMPTS times.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from celery import Celery, signals
from celery.exceptions import Reject
from celery.worker.consumer import Consumer
from kombu import Exchange, Queue

from siprec_wrappers.farm.broker import Broker, BrokerError, queue_arguments
from siprec_wrappers.farm.clock import ClockWatch
from siprec_wrappers.farm.engine import (
    Cancelled,
    Engine,
    RunFailed,
    check_engine,
    die_with_parent,
    make_engine,
)
from siprec_wrappers.farm.job import TASK, Job, MalformedJob
from siprec_wrappers.farm.settings import Settings
from siprec_wrappers.farm.store import StoreError, open_store, tidy
from siprec_wrappers.farm.work import Work

log = logging.getLogger("whisper-farm")

HEARTBEAT_S = 5.0
_NEWS_WAIT_S = 0.2  # short jobs are not disturbed by their own news
_TIDY_S = 3600.0
_MODEL_LOAD_S = 600.0
_LOOK_AGAIN_S = 1.0
_T = TypeVar("_T")


class LeanConsumer(Consumer):  # type: ignore[misc]
    """Celery's, without the 28 quorum queues that it makes for delayed tasks: there are none."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """The steps that are left."""

        default_steps: ClassVar[list[str]] = [
            step for step in Consumer.Blueprint.default_steps if "DelayedDelivery" not in str(step)
        ]


def run_worker(settings: Settings, log_level: str) -> int:
    """Work until TERM, which lets the job in hand end. Exit code 127 when it cannot begin."""
    try:
        open_store(settings.store).check()
        check_engine(settings.engine)
        broker = Broker(settings)
        broker.declare()
        broker.close()
    except (StoreError, BrokerError, RunFailed) as error:
        print(f"whisper-farm worker: {error}", file=sys.stderr)
        return 127
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    app = make_app(settings, name)
    app.worker_main(
        [
            "worker", "--hostname", f"{name}@whisper-farm", "--pool", "prefork",
            "--concurrency", "1", "--queues", settings.queue, "--loglevel", log_level,
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ]
    )  # fmt: skip
    return 0


def make_app(settings: Settings, name: str) -> Celery:
    """The Celery application. Its child opens the store and loads the engine."""
    app = Celery("whisper-farm", broker=settings.broker, set_as_current=False)
    jobs = Exchange(settings.jobs_exchange, "topic", durable=True)
    app.conf.update(
        task_queues=[
            Queue(
                settings.queue,
                jobs,
                routing_key=f"{settings.pool}.#",
                durable=True,
                queue_arguments=queue_arguments(settings),
            )
        ],
        task_default_queue=settings.queue,
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # What a job raises that we did not foresee goes to the dead letters, not into nothing.
        task_acks_on_failure_or_timeout=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        accept_content=["json"],
        worker_consumer=f"{__name__}:LeanConsumer",
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=_MODEL_LOAD_S,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_detect_quorum_queues=True,
        # A job goes on when the broker goes away: its result counts, its message comes again and
        # finds it done.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"confirm_publish": True, "confirm_timeout": 10},
        broker_heartbeat=30,
    )
    child: list[_Child] = []

    def transcribe(task: Any, document: object) -> None:
        child[0].work(document, deliveries=int(task.request.get("x-delivery-count") or 0))

    app.task(transcribe, name=TASK, bind=True, serializer="json")

    def started(**_: object) -> None:
        die_with_parent()
        child.append(_Child(settings, name, lambda job: _signal(app, settings, job)))

    def stopping(**_: object) -> None:
        if child:
            child[0].leave()

    signals.worker_process_init.connect(started, weak=False)
    signals.worker_process_shutdown.connect(stopping, weak=False)
    return app


def _signal(app: Celery, settings: Settings, job: Job) -> None:
    """Tell the client that it may look. Should that fail, it looks by itself a little later."""
    try:
        with app.producer_or_acquire() as producer:
            producer.publish(
                b"",
                exchange=settings.done_exchange,
                routing_key=settings.routing_key(job.request),
                delivery_mode=1,
                content_type="application/octet-stream",
                content_encoding="binary",
                retry=True,
                retry_policy={"max_retries": 1, "interval_start": 0},
            )
    except Exception as error:  # noqa: BLE001 - kombu raises what the transport under it raises
        log.warning("no signal for %s: %s", job.request, error)


class _Child:
    """The pool's one process: store, engine, and the note that it lives."""

    def __init__(self, settings: Settings, name: str, signal: Callable[[Job], None]) -> None:
        self._settings = settings
        self._key = f"workers/{name}.json"
        self._signal = signal
        self._store = open_store(settings.store)
        self._clock = ClockWatch(self._store, self._key)
        self._engine: Engine = make_engine(settings.engine)
        self._work = Work(settings, self._store, name)
        self._scratch = tempfile.TemporaryDirectory(prefix="whisper-farm-")
        self._note: dict[str, Any] = {
            "pool": settings.pool, "busy": False, "done": 0, "failed": 0, "dead": 0,
            "audio_seconds": 0.0, "busy_seconds": 0.0, "clock_ahead": 0.0,
        }  # fmt: skip
        self._gone = threading.Event()
        self._news = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()

    def leave(self) -> None:
        """Take the note away: this worker is no more."""
        self._gone.set()
        self._news.set()
        self._pulse.join(2)
        self._scratch.cleanup()
        with contextlib.suppress(StoreError):
            self._store.delete(self._key)

    def _beat(self) -> None:
        tidy_at = time.monotonic() + secrets.randbelow(int(_TIDY_S))
        while not self._gone.is_set():
            try:
                self._clock.write(json.dumps(self._note).encode())
                if self._note["clock_ahead"] != self._clock.ahead:
                    self._note["clock_ahead"] = self._clock.ahead
                    self._news.set()
                if time.monotonic() > tidy_at:
                    tidy_at = time.monotonic() + _TIDY_S
                    removed = tidy(self._store, self._settings.keep, self._clock.ahead)
                    log.info("removed %d old objects", removed)
            except StoreError as error:
                log.warning("heartbeat: %s", error)
            self._news.wait(HEARTBEAT_S)
            self._gone.wait(_NEWS_WAIT_S)
            self._news.clear()

    def work(self, document: object, deliveries: int) -> None:
        """Do one message's job, or find that it is done. Raises Reject for what nobody can do."""
        try:
            job = Job.from_json(document)
        except MalformedJob as error:
            raise Reject(f"no job of ours: {error}", requeue=False) from error
        begun = time.monotonic()
        self._note["busy"] = True
        self._news.set()
        try:
            settled = self._patiently(job, lambda: self._work.settled(job))
            if settled is None:
                return  # the store stayed away until the job's time was over
            if settled:
                log.info("%s needs no work", job.request)
                self._patiently(job, lambda: self._work.drop(job))
                self._signal(job)
                return
            reason = self._work.exhausted(deliveries)
            if reason is not None:
                self._note["dead"] += 1
                self._patiently(job, lambda: self._work.fail(job, reason))
                raise Reject(reason, requeue=False)
            self._transcribe(job)
        finally:
            self._note["busy"] = False
            self._note["busy_seconds"] += time.monotonic() - begun
            self._news.set()

    def _transcribe(self, job: Job) -> None:
        scratch = Path(self._scratch.name)
        try:
            audio = self._patiently(job, lambda: self._store.fetch(job.audio, scratch))
        except FileNotFoundError as error:
            # This machine may see another directory than the others: one of them has it.
            log.error("%s: its audio is not in the store as this machine sees it", job.request)
            time.sleep(_LOOK_AGAIN_S)
            raise Reject("no audio", requeue=True) from error
        if audio is None:
            return  # its time is over
        try:
            data = self._engine.transcribe(audio, job, lambda: self._work.cancelled(job))
        except Cancelled as reason:
            log.info("%s: %s", job.request, reason)
            self._patiently(job, lambda: self._work.drop(job))
            return
        except RunFailed as error:
            text, unavailable = str(error), error.unavailable
            log.warning("%s failed: %s", job.request, text)
            self._note["failed"] += 1
            self._patiently(job, lambda: self._work.fail(job, text, unavailable=unavailable))
            self._signal(job)
            return
        except OSError as error:  # our disk is full, say
            log.error("%s: %s", job.request, error)
            time.sleep(_LOOK_AGAIN_S)  # not before all others: whoever is free takes it
            raise Reject(str(error), requeue=True) from error
        finally:
            if audio.parent == scratch:
                audio.unlink(missing_ok=True)
        self._patiently(job, lambda: self._work.succeed(job, data))
        self._note["done"] += 1
        self._note["audio_seconds"] += job.seconds
        self._signal(job)

    def _patiently(self, job: Job, act: Callable[[], _T]) -> _T | None:
        """Do it, and again while the store is away; None when the job's time is over."""
        pause, told = 0.2, False
        while True:
            try:
                return act()
            except FileNotFoundError:
                raise
            except StoreError as error:
                if not told:
                    log.error("%s waits for the store: %s", job.request, error)
                    told = True
                if time.time() > job.deadline:
                    return None
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
