"""The farm's other commands: their arguments, and what they print."""

import argparse
import contextlib
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from siprec_wrappers.farm.clock import seconds_ahead
from siprec_wrappers.farm.settings import SettingError, Settings, parse_duration, read_settings
from siprec_wrappers.farm.store import Store, open_store, tidy


def run_part(argv: Sequence[str]) -> int:
    """Exit code 0; 1: it failed; 2: wrong arguments or settings; 127: broker or store are away."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except SettingError as error:
        return _complain(error, 2)
    except OSError as error:  # BrokerError and StoreError among them
        return _complain(error, 127)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("whisper-farm", allow_abbrev=False)
    parts = parser.add_subparsers(required=True, metavar="PART")

    worker = parts.add_parser("worker", help="take jobs from the broker")
    worker.add_argument("--log-level", default="info", choices=("debug", "info", "warning"))
    worker.set_defaults(run=_worker)

    status = parts.add_parser("status", help="queue, workers, when it will be done")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    dead = parts.add_parser("dead", help="jobs that nobody could do")
    dead.add_argument("what", choices=("list", "retry"))
    dead.set_defaults(run=_dead)

    exporter = parts.add_parser("exporter", help="metrics for Prometheus")
    exporter.add_argument("--host", default="127.0.0.1")
    exporter.add_argument("--port", type=int, default=9808)
    exporter.set_defaults(run=_exporter)

    old = parts.add_parser("tidy", help="remove what is old from the store")
    old.add_argument("--older-than", type=_duration, help="default: WHISPER_FARM_KEEP")
    old.set_defaults(run=_tidy)

    dispatcher = parts.add_parser("dispatcher", help="hand jobs to nodes over HTTP")
    dispatcher.add_argument("--host", default="127.0.0.1")
    dispatcher.add_argument("--port", type=int, default=9809)
    dispatcher.add_argument("--lease", type=_duration, default=60.0, help="default: 60s")
    dispatcher.add_argument("--key", type=Path, help="secret (HS256) or public JWK (EdDSA)")
    dispatcher.add_argument("--tls-cert", type=Path)
    dispatcher.add_argument("--tls-key", type=Path)
    dispatcher.add_argument("--client-ca", type=Path, help="ask nodes for a certificate of it")
    dispatcher.set_defaults(run=_dispatcher)

    node = parts.add_parser("node", help="take jobs from a dispatcher")
    node.add_argument("--dispatcher", required=True, metavar="URL")
    node.add_argument("--token", type=Path, help="file with the token")
    node.add_argument("--ca", type=Path, help="authority of the dispatcher's certificate")
    node.add_argument("--tls-cert", type=Path)
    node.add_argument("--tls-key", type=Path)
    node.set_defaults(run=_node)

    token = parts.add_parser("token", help="write a node's token to stdout")
    token.add_argument("name")
    token.add_argument("--key", type=Path, required=True, help="secret, or private JWK")
    token.add_argument("--valid", type=_duration, default=30 * 86400.0, help="default: 30d")
    token.set_defaults(run=_token)
    return parser


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _complain(error: Exception, code: int) -> int:
    print(f"whisper-farm: {error}", file=sys.stderr)
    return code


def _farm() -> tuple[Settings, Store]:
    settings = read_settings(os.environ)
    store = open_store(settings.store)
    store.check()
    return settings, store


def _worker(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.worker import run_worker

    return run_worker(read_settings(os.environ), arguments.log_level)


def _status(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.broker import Broker
    from siprec_wrappers.farm.status import read_status

    settings, store = _farm()
    broker = Broker(settings)
    broker.declare()
    status = read_status(settings, store, broker)
    broker.close()
    print(status.to_json() if arguments.json else status.to_text())
    return 0


def _dead(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.broker import Broker
    from siprec_wrappers.farm.job import read_failure

    settings, store = _farm()
    broker = Broker(settings)
    broker.declare()
    try:
        for tag, job, reason in broker.dead():
            if job is None:
                print(f"- {reason}: no job of ours")
                continue
            if arguments.what == "list":
                with contextlib.suppress(FileNotFoundError):
                    reason, _ = read_failure(store.get(job.failure))
                print(f"{job.request} {job.audio} {job.model} {job.seconds:.1f} s: {reason}")
                continue
            again = replace(job, deadline=time.time() + settings.timeout)
            store.delete(job.failure)
            store.delete(job.cancelled)
            store.put(again.waiting, b"")
            broker.revive(tag, again)
            print(f"{job.request} queued again")
    finally:
        broker.close()
    return 0


def _tidy(arguments: argparse.Namespace) -> int:
    settings, store = _farm()
    note = f"workers/tidy-{secrets.token_hex(8)}.json"
    ahead = seconds_ahead(store, note, b"{}")
    store.delete(note)
    removed = tidy(store, arguments.older_than or settings.keep, ahead)
    print(f"{removed} removed")
    return 0


def _exporter(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.exporter import run_exporter

    return run_exporter(*_farm(), arguments.host, arguments.port)


def _dispatcher(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.dispatcher import Doors, run_dispatcher

    doors = Doors(
        arguments.host, arguments.port, arguments.key, arguments.tls_cert, arguments.tls_key,
        arguments.client_ca,
    )  # fmt: skip
    return run_dispatcher(*_farm(), doors, arguments.lease)


def _node(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.node import run_node

    return run_node(
        arguments.dispatcher, arguments.token, arguments.ca, arguments.tls_cert, arguments.tls_key
    )


def _token(arguments: argparse.Namespace) -> int:
    from siprec_wrappers.farm.tokens import issue, read_key

    print(issue(read_key(arguments.key), arguments.name, arguments.valid))
    return 0
