"""The farm's pieces that need no broker: settings, jobs, store, tokens."""

import base64
import hashlib
import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OKPKey

from siprec_wrappers.farm.cli import _PARTS, main
from siprec_wrappers.farm.clock import ClockWatch
from siprec_wrappers.farm.engine import Command, RunFailed, check_result
from siprec_wrappers.farm.exporter import _metrics
from siprec_wrappers.farm.job import Job, MalformedJob, audio_key, job_of, read_failure
from siprec_wrappers.farm.settings import SettingError, read_settings
from siprec_wrappers.farm.status import Status, WorkerState, _eta
from siprec_wrappers.farm.store import (
    DirectoryStore,
    RemoteStore,
    Store,
    StoreError,
    open_store,
    tidy,
)
from siprec_wrappers.farm.tokens import Refused, issue, node_of, read_key

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
REQUIRED = {"WHISPER_FARM_BROKER": "amqp://broker/", "WHISPER_FARM_STORE": "/srv/farm"}
JOB = Job(
    audio=audio_key("0" * 64, ".WAV"), model="base", language=None, task="transcribe",
    extra=("--beam_size", "5"), request="a" * 32, deadline=1e9, seconds=1.5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"WHISPER_FARM_BROKER": ""}, "WHISPER_FARM_BROKER is not set"),
        ({"WHISPER_FARM_STORE_FILE": "/no/such"}, "WHISPER_FARM_STORE_FILE=/no/such"),
        ({"WHISPER_FARM_TIMEOUT": "soon"}, "WHISPER_FARM_TIMEOUT=soon: a duration"),
        ({"WHISPER_FARM_TIMEOUT": "0s"}, "longer than nothing"),
        ({"WHISPER_FARM_KEEP": "30m"}, "at least twice WHISPER_FARM_TIMEOUT"),
        ({"WHISPER_FARM_POOL": "a.b"}, "WHISPER_FARM_POOL=a.b"),
        ({"WHISPER_FARM_ATTEMPTS": "0"}, "WHISPER_FARM_ATTEMPTS=0: a number from 1 to 100"),
        ({"WHISPER_FARM_ENGINE": "magic"}, "command or faster-whisper"),
        ({"WHISPER_FARM_COMMAND": "whisper 'x"}, "WHISPER_FARM_COMMAND=whisper 'x: "),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingError, match="WHISPER_FARM_") as raised:
        read_settings(REQUIRED | wrong)

    assert complaint in str(raised.value)


class _Asked(dict[str, str]):
    """An environment that notes what is looked for."""

    names: ClassVar[set[str]] = set()

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)


def test_every_setting_is_told_of_and_none_that_is_not() -> None:
    asked = _Asked(REQUIRED)
    read_settings(asked)
    read = {name for name in asked.names if not name.endswith("_FILE")}

    for file in (CONFIG / "farm" / "farm.env", ROOT / "docs" / "farm.md"):
        told = set(re.findall(r"WHISPER_FARM_[A-Z]+\b(?!_)", file.read_text()))
        assert told == read, file


def test_the_examples_ask_for_metrics_and_programs_that_there_are() -> None:
    keda = yaml.safe_load((CONFIG / "keda" / "whisper-farm.yaml").read_text())
    compose = yaml.safe_load((CONFIG / "farm" / "compose.yml").read_text())
    unit = (CONFIG / "farm" / "whisper-farm-worker@.service").read_text()
    status = Status(1, 2, 3.0, 4.0, 1, 0, 5.0, ())
    exported = {one.name for one in _metrics(status)}

    rules = (CONFIG / "prometheus" / "alerts.yml").read_text()
    alerted = set(re.findall(r"\bwhisper_farm_\w+", rules))

    assert len(alerted) == 5
    assert alerted <= exported | {"whisper_farm_up"}
    asked = [one["metadata"]["query"] for one in keda["spec"]["triggers"]]
    assert {re.sub(r"sum\((\w+)\)", r"\1", query) for query in asked} <= exported
    parts = [compose["services"][one]["command"][1] for one in ("worker", "exporter")]
    assert set(parts) <= set(_PARTS)
    assert "whisper-farm worker\n" in unit
    # Who is not in it hands jobs in by these.
    assert compose["services"]["broker"]["ports"] == ["127.0.0.1:5672:5672"]
    assert compose["x-farm"]["volumes"][0]["source"].startswith("${FARM_STORE:-/")
    # A store that is no directory has none for systemd to find.
    assert "ReadWritePaths=-" in unit


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (REQUIRED | {"WHISPER_FARM_STORE": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "amqp", None)
    monkeypatch.delitem(sys.modules, "siprec_wrappers.farm.broker", raising=False)

    code = main(["status"])

    assert code == 127
    assert capsys.readouterr().err == (
        "whisper-farm: amqp is missing: siprec-bridge[farm] has it\n"
    )


def test_secrets_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("amqps://me:secret@broker/\n")

    settings = read_settings(REQUIRED | {"WHISPER_FARM_BROKER_FILE": str(tmp_path / "url")})

    assert settings.broker == "amqps://me:secret@broker/"
    assert (settings.timeout, settings.attempts) == (1200.0, 3)


def test_equal_wishes_have_one_result_and_each_client_its_own_request() -> None:
    again = replace(JOB, request="b" * 32, deadline=2e9)
    others = [
        replace(JOB, model="large-v3"), replace(JOB, language="en"), replace(JOB, extra=()),
        replace(JOB, task="translate"), replace(JOB, audio=audio_key("1" * 64, ".wav")),
    ]  # fmt: skip

    assert JOB.audio == f"audio/{'0' * 64}.wav"
    assert (again.result, again.failure != JOB.failure) == (JOB.result, True)
    assert len({one.result for one in [JOB, *others]}) == 6
    assert Job.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB


@pytest.mark.parametrize(
    "change",
    [
        {"audio": "audio/../../etc/passwd"},
        {"audio": f"audio/{'0' * 64}.a/b"},
        {"audio": f"results/{'0' * 64}"},
        {"request": "../" + "a" * 29},
        {"request": "A" * 32},
        {"task": "delete"},
        {"extra": [1]},
        {"deadline": "now"},
        {"deadline": float("nan")},
        {"deadline": 10**400},
        {"seconds": float("inf")},
    ],
)
def test_a_message_that_names_other_files_or_no_times_is_no_job(change: dict[str, object]) -> None:
    with pytest.raises(MalformedJob):
        Job.from_json(JOB.to_json() | change)

    assert job_of(json.dumps([[JOB.to_json() | change], {}, {}])) is None


def test_what_is_nested_without_end_is_no_job_no_reason_and_no_result() -> None:
    nested = 100_000 * b"["

    assert job_of(nested) is None
    assert read_failure(nested)[0].startswith("failed")
    with pytest.raises(ValueError, match="nested"):
        check_result(nested)


@pytest.mark.parametrize("model", ["\0", "\ud800"])
def test_arguments_that_no_program_can_be_given_fail_their_job_alone(
    tmp_path: Path, model: str
) -> None:
    with pytest.raises(RunFailed, match="its arguments cannot be passed on"):
        Command(["true"]).transcribe(tmp_path / "a.wav", replace(JOB, model=model), lambda: False)


@given(st.binary(max_size=200))
def test_no_bytes_of_a_message_or_a_failure_raise(data: bytes) -> None:
    assert job_of(data) is None
    text, _ = read_failure(data)
    assert text


@pytest.fixture(params=["directory", "file-url", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    folder = tmp_path / "a store"
    folder.mkdir()
    if request.param == "directory":
        return open_store(str(folder))
    if request.param == "file-url":
        return open_store(f"file://{tmp_path}/a%20store")
    return RemoteStore(f"local://{folder}")


def test_a_store_keeps_whole_objects_and_nothing_else(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"sound")
    store.check()
    before = store.entries("audio")
    key = store.add_audio(tmp_path / "a.wav")
    store.put("audio/b", b"1")
    store.put("audio/b", b"22")
    (tmp_path / "local").mkdir()

    assert before == []
    assert key == audio_key(hashlib.sha256(b"sound").hexdigest(), "wav")
    assert store.fetch(key, tmp_path / "local").read_bytes() == b"sound"
    assert store.get("audio/b") == b"22"
    assert [store.exists(key) for key in ("audio/b", "audio/c")] == [True, False]
    listed = sorted((one.name, one.size) for one in store.entries("audio"))
    assert listed == [("b", 2), (key.removeprefix("audio/"), 5)]
    store.delete("audio/b")
    store.delete("audio/b")
    for read in (lambda: store.get("audio/b"), lambda: store.fetch("audio/b", tmp_path)):
        with pytest.raises(FileNotFoundError):
            read()


def test_what_is_old_goes_and_what_is_young_stays(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for key in ("audio/old", "results/old", "waiting/old", "audio/young"):
        store.put(key, b"")
        if key.endswith("old"):
            os.utime(tmp_path / key, (time.time() - 3600,) * 2)

    removed = tidy(store, 1800)

    assert removed == 3
    assert store.entries("results") == store.entries("waiting") == []
    assert [one.name for one in store.entries("audio")] == ["young"]


@pytest.mark.parametrize(
    ("root", "folder", "file"), [(0o2770, 0o2770, 0o640), (0o700, 0o700, 0o600)]
)
def test_who_may_use_a_store_is_for_its_directory_to_say_not_for_a_umask(
    tmp_path: Path, root: int, folder: int, file: int
) -> None:
    (tmp_path / "a.wav").write_bytes(b"sound")
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(root)
    before = os.umask(0o077)
    try:
        open_store(str(store)).put("waiting/one", b"")
        key = open_store(str(store)).add_audio(tmp_path / "a.wav")
    finally:
        os.umask(before)

    modes = [
        (store / one).stat().st_mode & 0o7777 for one in ("waiting", "audio", "waiting/one", key)
    ]
    assert modes == [folder, folder, file, file]


class _Elsewhere(DirectoryStore):
    """A directory of a server whose clock is `ahead` of ours; None: it tells no times."""

    ahead: float | None = 0.0

    def modified(self, key: str) -> float | None:
        ours = super().modified(key)
        return None if ours is None or self.ahead is None else ours + self.ahead


@pytest.mark.parametrize(
    ("stores", "complaint"),
    [
        (-90.0, "clock is 89 s ahead of the store's: jobs are dropped as over"),
        (90.0, "clock is 90 s behind the store's: jobs are done that nobody waits for"),
    ],
)
def test_a_clock_that_is_not_the_stores_is_told_once_and_so_is_its_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stores: float, complaint: str
) -> None:
    caplog.set_level("INFO", "whisper-farm")
    store = _Elsewhere(tmp_path)
    watch = ClockWatch(store, "workers/w.json")
    told = []

    for store.ahead in (0.0, 4.0, -4.0, None, stores, stores, 0.5, None):
        watch.write(b"{}")
        told.append((watch.ahead != 0, [record.getMessage() for record in caplog.records]))
        caplog.clear()

    assert [wrong for wrong, _ in told] == [False] * 4 + [True] * 2 + [False] * 2
    assert [len(lines) for _, lines in told] == [0, 0, 0, 0, 1, 0, 1, 0]
    assert complaint in told[4][1][0]
    assert "agree again" in told[6][1][0]


def test_what_is_old_is_so_by_the_stores_clock_not_by_a_wrong_one_of_ours(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for key, age in (("results/young", 3600), ("results/old", 3 * 86400)):
        store.put(key, b"")
        os.utime(tmp_path / key, (time.time() - 30 * 86400 - age,) * 2)

    removed = tidy(store, 86400, clock_ahead=30 * 86400)

    assert removed == 1
    assert [one.name for one in store.entries("results")] == ["young"]


def test_a_mount_that_is_missing_is_no_empty_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "mount"))

    with pytest.raises(StoreError, match="is no directory"):
        store.check()
    with pytest.raises(StoreError, match="is no directory"):
        store.put("results/a", b"")
    with pytest.raises(StoreError):
        open_store("nosuch://bucket/farm")
    assert not (tmp_path / "mount").exists()


def test_a_pair_of_keys_signs_tokens_where_the_dispatcher_cannot(tmp_path: Path) -> None:
    pair = OKPKey.generate_key("Ed25519")
    (tmp_path / "private").write_text(json.dumps(pair.as_dict(private=True)))
    (tmp_path / "public").write_text(json.dumps(pair.as_dict(private=False)))
    private, public = read_key(tmp_path / "private"), read_key(tmp_path / "public")
    (tmp_path / "secret").write_text(json.dumps(pair.as_dict(private=False))[1:])

    token = issue(private, "gpu-3", 60)
    # A public key taken for a shared secret: the way to forge where the token chooses.
    confused = issue(read_key(tmp_path / "secret"), "gpu-3", 60)

    assert node_of(public, token) == "gpu-3"
    with pytest.raises(SettingError, match="public key signs nothing"):
        issue(public, "gpu-3", 60)
    with pytest.raises(Refused):
        node_of(public, confused)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"5", b"{}", b'{"alg": null}', b'{"alg": "none"}', b'{"alg": "HS256", "crit": 5}',
     b'{"alg": "HS256", "crit": ["x"]}', b'{"alg": ["HS256"]}', b"\xff", b"[" * 10_000],
)  # fmt: skip
def test_a_token_of_any_header_is_refused_not_tripped_over(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "key").write_bytes(b"k" * 40)
    key = read_key(tmp_path / "key")
    _, claims, signature = issue(key, "node-1", 60).split(".")
    forged = base64.urlsafe_b64encode(header).rstrip(b"=").decode()

    with pytest.raises(Refused):
        node_of(key, f"{forged}.{claims}.{signature}")


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate(("short", "{}", '{"kty": "RSA"}', "{")):
        (tmp_path / str(number)).write_text(text)
        with pytest.raises(SettingError):
            read_key(tmp_path / str(number))


def test_the_end_is_estimated_by_the_workers_speed_so_far() -> None:
    worker = WorkerState("w", True, 10, 0, 0, audio_seconds=100.0, busy_seconds=50.0)

    assert _eta(0, 0.0, 0, ()) == 0.0
    assert _eta(4, 80.0, 2, (worker,)) == 20.0
    assert _eta(4, 0.0, 2, (worker,)) == 10.0
    assert _eta(4, 80.0, 0, (worker,)) is None
    assert _eta(4, 80.0, 2, ()) is None
