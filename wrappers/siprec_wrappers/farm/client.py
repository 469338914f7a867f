"""`whisper-farm AUDIO…`: the CLI contract, done by whichever worker is free."""

import contextlib
import json
import os
import secrets
import signal
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from siprec_wrappers.contract import (
    Arguments,
    Failure,
    Segment,
    Word,
    check_audio,
    parse_arguments,
    write_outputs,
)
from siprec_wrappers.farm.job import Job, read_failure
from siprec_wrappers.farm.settings import SettingError, Settings, read_settings
from siprec_wrappers.farm.store import Store, StoreError, open_store

if TYPE_CHECKING:
    from siprec_wrappers.farm.broker import Broker

FAILED, UNAVAILABLE = 1, 127
_FIRST_LOOK_S = 0.25  # then further apart: the signal is the fast way, the store the sure one
_LAST_LOOK_S = 3.0
_RECONNECT_S = 2.0
_EPILOG = """\
Further options go to the workers' program as they are.

environment (docs/farm.md tells all; each also as ..._FILE):
  WHISPER_FARM_BROKER   amqp://user:password@host:port/vhost, or amqps:// (needed)
  WHISPER_FARM_STORE    a directory that all see, or an fsspec URL such as s3://bucket/folder (needed)
  WHISPER_FARM_NAME     one farm (default: whisper-farm)
  WHISPER_FARM_POOL     one queue with its workers (default: default)
  WHISPER_FARM_TIMEOUT  longest time of a job, waiting included (default: 20m)

exit codes: 1 when a job failed; 2 for wrong arguments; 127 when a variable is wrong, or broker or
store are not to be had.
"""


class _Stopped(BaseException):
    """TERM or INT came."""


@dataclass(slots=True)
class _Order:
    """One audio of this call and the job that it became."""

    audio: Path
    job: Job
    open: bool = True


@dataclass(slots=True)
class _Outcome:
    errors: list[str] = field(default_factory=list)
    unavailable: bool = True  # all that failed never ran

    def failed(self, error: str, *, unavailable: bool) -> None:
        self.errors.append(error)
        self.unavailable = self.unavailable and unavailable


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1: failed; 2: wrong arguments; 127: broker or store are not to be had."""
    arguments = parse_arguments(
        "whisper-farm", "The CLI contract, done by a farm.", argv, epilog=_EPILOG
    )
    try:
        settings = read_settings(os.environ)
        store = open_store(settings.store)
        store.check()
    except (SettingError, StoreError) as error:
        return _say(str(error), UNAVAILABLE)
    orders: list[_Order] = []
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGHUP, _stop)
    try:
        return _run(settings, store, arguments, orders)
    except _Stopped:
        _cancel(store, orders)
        return _say("stopped; its jobs are cancelled", FAILED)


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # once is enough: what follows cancels the jobs
    raise _Stopped


def _run(settings: Settings, store: Store, arguments: Arguments, orders: list[_Order]) -> int:
    deadline = time.time() + settings.timeout
    outcome = _Outcome()
    try:
        check_audio(arguments.audio)
    except Failure as failure:
        return _say(str(failure), FAILED)
    try:
        for audio in arguments.audio:
            order = _Order(audio, _job(store, audio, arguments, deadline))
            orders.append(order)
            _look(store, arguments, order, outcome)
            if order.open:
                store.put(order.job.waiting, b"")
    except OSError as error:
        _cancel(store, orders)
        return _say(str(error), UNAVAILABLE)
    missing = [one for one in orders if one.open]
    if missing:
        # Here, so that an answer that is there already costs no more than looking.
        from siprec_wrappers.farm.broker import Broker, BrokerError

        try:
            broker = Broker(settings)
            ended: dict[str, bool] = {}
            broker.declare()
            broker.listen([one.job.request for one in missing], ended)
            for order in missing:
                broker.publish(order.job)
        except BrokerError as error:
            _cancel(store, orders)
            return _say(str(error), UNAVAILABLE)
        _wait(settings, store, arguments, missing, outcome, broker, ended)
        _expire(settings, store, missing, outcome)
    for error_text in outcome.errors:
        _say(error_text, FAILED)
    if not outcome.errors:
        return 0
    return UNAVAILABLE if outcome.unavailable else FAILED


def _job(store: Store, audio: Path, arguments: Arguments, deadline: float) -> Job:
    return Job(
        audio=store.add_audio(audio),
        model=arguments.model,
        language=arguments.language,
        task=arguments.task,
        extra=arguments.ignored,
        request=secrets.token_hex(16),
        deadline=deadline,
        seconds=_length(audio),
    )


def _length(audio: Path) -> float:
    """Seconds of a WAV, 0 for anything else: only the farm's estimates need it."""
    try:
        with wave.open(str(audio), "rb") as file:
            return file.getnframes() / (file.getframerate() or 1)
    except (OSError, EOFError, wave.Error):
        return 0.0


def _wait(
    settings: Settings,
    store: Store,
    arguments: Arguments,
    orders: list[_Order],
    outcome: _Outcome,
    broker: "Broker",
    ended: dict[str, bool],
) -> None:
    """Until all are done or the time is over. Nothing that happens to the broker ends it."""
    from siprec_wrappers.farm.broker import Broker, BrokerError

    connection: Broker | None = broker
    deadline = time.monotonic() + settings.timeout
    look_every = _FIRST_LOOK_S
    next_look = time.monotonic() + look_every
    reconnect_at = 0.0
    while any(one.open for one in orders) and (now := time.monotonic()) < deadline:
        pause = max(0.001, min(next_look, deadline) - now)
        if connection is None and now >= reconnect_at:
            reconnect_at = now + _RECONNECT_S
            try:
                connection = Broker(settings)
                connection.listen([one.job.request for one in orders if one.open], ended)
                next_look = now  # what ended meanwhile gave its signal to nobody
                continue
            except BrokerError:
                connection = None
        if connection is None:
            time.sleep(min(pause, _RECONNECT_S))
        else:
            try:
                connection.wait(pause)
            except BrokerError:
                connection.close()
                connection = None
        due = time.monotonic() >= next_look
        for order in orders:
            if order.open and (due or order.job.request in ended):
                _try_look(store, arguments, order, outcome, ended)
        if due:
            look_every = min(1.5 * look_every, _LAST_LOOK_S)
            next_look = time.monotonic() + look_every
    if connection is not None:
        connection.leave()


def _try_look(
    store: Store, arguments: Arguments, order: _Order, outcome: _Outcome, ended: dict[str, bool]
) -> None:
    try:
        _look(store, arguments, order, outcome)
    except StoreError:
        return  # it comes back, or our time is over
    if order.open and ended.pop(order.job.request, False):
        order.open = False
        error = f"{order.audio.name}: given up by the broker: each worker that took it was lost"
        outcome.failed(error, unavailable=False)
        _forget(store, order.job)


def _look(store: Store, arguments: Arguments, order: _Order, outcome: _Outcome) -> None:
    """See whether a job is over, and write its output if it is done. Raises StoreError."""
    try:
        data = store.get(order.job.result)
    except FileNotFoundError:
        try:
            error, unavailable = read_failure(store.get(order.job.failure))
        except FileNotFoundError:
            return
        order.open = False
        outcome.failed(f"{order.audio.name}: {error}", unavailable=unavailable)
        return
    order.open = False
    try:
        _write(arguments, order.audio, data)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        outcome.failed(f"{order.audio.name}: {problem}", unavailable=False)


def _expire(settings: Settings, store: Store, orders: Sequence[_Order], outcome: _Outcome) -> None:
    """Cancel what is still open. Where nobody works the job never ran, and may wait."""
    late = [one for one in orders if one.open]
    if not late:
        return
    from siprec_wrappers.farm.broker import Broker, BrokerError
    from siprec_wrappers.farm.clock import complaint, seconds_ahead

    _cancel(store, late)
    try:
        broker = Broker(settings)
        _, workers = broker.depth(settings.queue)
        broker.close()
        error = "no worker is there" if not workers else "not done"
    except BrokerError as problem:
        workers, error = 0, str(problem)
    with contextlib.suppress(StoreError):
        told = complaint(seconds_ahead(store, late[0].job.cancelled, b""))
        if told is not None:
            _say(told, FAILED)
    for order in late:
        text = f"{order.audio.name}: {error}, after {settings.timeout:g} s"
        outcome.failed(text, unavailable=not workers)


def _cancel(store: Store, orders: Sequence[_Order]) -> None:
    for order in orders:
        if order.open:
            try:
                store.put(order.job.cancelled, b"")
            except OSError as error:
                _say(f"not cancelled: {error}", FAILED)
            _forget(store, order.job)


def _forget(store: Store, job: Job) -> None:
    with contextlib.suppress(OSError):  # it grows old and is removed
        store.delete(job.waiting)


def _write(arguments: Arguments, audio: Path, data: bytes) -> None:
    """The JSON as it is; other formats are made of its segments."""
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    if "json" in arguments.output_formats:
        target = arguments.output_dir / f"{audio.stem}.json"
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(data)
        part.replace(target)
    others = tuple(one for one in arguments.output_formats if one != "json")
    if others:
        document = json.loads(data)
        segments = [
            Segment(
                text=str(one["text"]).strip(),
                start=float(one["start"]),
                end=float(one["end"]),
                words=tuple(
                    Word(str(word["word"]), word["start"], word["end"], word.get("probability", 0))
                    for word in one.get("words", ())
                ),
            )
            for one in document["segments"]
        ]
        write_outputs(
            Arguments(
                audio=arguments.audio,
                model=arguments.model,
                output_dir=arguments.output_dir,
                output_formats=others,
                task=arguments.task,
                language=arguments.language,
                ignored=arguments.ignored,
            ),
            audio,
            segments,
            language=str(document.get("language", "")),
            model=str(document.get("model", arguments.model)),
        )


def _say(text: str, code: int) -> int:
    print(f"whisper-farm: {text}", file=sys.stderr)
    return code
