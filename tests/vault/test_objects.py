"""Stores: what is put is there whole, proven, and can be read in parts; a directory and S3."""

import hashlib
import threading
from pathlib import Path

import pytest

from harness.s3 import S3
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.vault import (
    Damaged,
    Interrupted,
    NotThere,
    ObjectError,
    ObjectStore,
    objects,
    open_store,
    sums_of,
)
from siprec_bridge.vault.objects import BLOCK, RemoteStore


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "directory":
        (tmp_path / "store").mkdir()
        return open_store((tmp_path / "store").as_uri())
    server: S3 = request.getfixturevalue("s3")
    return open_store(f"s3://{server.new_bucket()}/calls", server.options())


@pytest.fixture
def go_on() -> threading.Event:
    """Nobody wants us to stop."""
    return threading.Event()


PART = 5 << 20  # the least that S3 takes as a part of a multipart upload


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1])
def test_a_file_is_there_as_it_was_and_the_store_can_be_asked(
    store: ObjectStore,
    go_on: threading.Event,
    tmp_path: Path,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "BLOCK", PART)
    data = hashlib.shake_128(b"x").digest(1 << 16) * (size // (1 << 16) + 1)
    source = tmp_path / "a.wav"
    source.write_bytes(data[:size])

    sums = store.put("2026/05/s1/a.wav", source, go_on)

    assert sums == sums_of(source)
    assert (sums.size, sums.sha256) == (size, hashlib.sha256(data[:size]).hexdigest())
    store.check("2026/05/s1/a.wav", sums, go_on)
    assert store.size("2026/05/s1/a.wav") == size
    assert store.read("2026/05/s1/a.wav", size // 2, size) == data[size // 2 : size]
    # Then nothing has to be read back to know it.
    assert store.proves("2026/05/s1/a.wav", sums) is (isinstance(store, RemoteStore))


def test_what_is_not_what_was_sent_is_noticed(
    store: ObjectStore, go_on: threading.Event, tmp_path: Path
) -> None:
    good, same_size, short = (tmp_path / name for name in ("good", "same_size", "short"))
    good.write_bytes(b"0123456789" * 1000)
    same_size.write_bytes(b"012345678X" * 1000)
    short.write_bytes(b"0123")
    wanted = sums_of(good)
    store.put("changed", same_size, go_on)
    store.put("short", short, go_on)

    for key in ("changed", "short"):
        assert not store.proves(key, wanted)
        with pytest.raises(Damaged, match=key):
            store.check(key, wanted, go_on)
    with pytest.raises(NotThere, match="missing"):
        store.check("missing", wanted, go_on)
    with pytest.raises(NotThere):
        store.size("missing")
    assert not store.proves("missing", wanted)


def test_an_upload_that_is_broken_off_leaves_no_object(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "long"
    source.write_bytes(bytes(2 * BLOCK))
    stop = threading.Event()
    stop.set()

    with pytest.raises(Interrupted):
        store.put("s1/long", source, stop)

    with pytest.raises(NotThere):
        store.size("s1/long")


def test_what_was_deleted_is_gone_and_can_be_deleted_again(
    store: ObjectStore, go_on: threading.Event, tmp_path: Path
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"a")
    for key in ("2026/s1/a", "2026/s2/a"):
        store.put(key, source, go_on)

    for _ in range(2):
        store.delete("2026/s1/a")

    with pytest.raises(NotThere):
        store.size("2026/s1/a")
    assert store.size("2026/s2/a") == 1


def test_a_directory_that_is_not_mounted_is_no_empty_one(
    go_on: threading.Event, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "mount"))
    source = tmp_path / "a"
    source.write_bytes(b"a")

    with pytest.raises(ObjectError, match="is no directory"):
        store.put("s1/a", source, go_on)
    with pytest.raises(ObjectError, match="is no directory"):
        store.delete("s1/a")
    with pytest.raises(ObjectError, match="is no directory"):
        store.size("s1/a")

    assert not (tmp_path / "mount").exists()


def test_a_directory_has_no_folders_left_of_what_was_deleted(
    go_on: threading.Event, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    store = open_store(f"file://{tmp_path}/store")
    source = tmp_path / "a"
    source.write_bytes(b"a")
    for key in ("2026/05/s1/a", "2026/04/s2/a"):
        store.put(key, source, go_on)

    store.delete("2026/05/s1/a")

    assert sorted(one.name for one in (tmp_path / "store").rglob("*")) == ["04", "2026", "a", "s2"]


def test_a_bucket_that_is_not_there_and_a_server_that_is_not_are_told_apart_in_a_line(
    s3: S3, go_on: threading.Event, tmp_path: Path
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"a")

    with pytest.raises(ObjectError, match=r"(?i)bucket"):
        open_store("s3://none-of-that-name/x", s3.options()).put("a", source, go_on)
    with pytest.raises(ObjectError, match=r"(?i)connect") as refused:
        open_store("s3://a/x", s3.options(port=1)).put("a", source, go_on)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://store.example.com/x", "s3://, gs://, az://, file:// or a directory is needed"),
        ("s3:///x", "names no bucket"),
        ("file://host/x", "write file:///folder"),
        ("/", "write file:///folder"),
        # Not installed for the tests: they are hundreds of megabytes.
        ("gs://bucket/x", "needs: pip install 'siprec-bridge[gcs]'"),
        ("az://container/x", "needs: pip install 'siprec-bridge[azure]'"),
    ],
)
def test_a_url_that_cannot_be_used_stops_the_start_and_says_why(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(url)

    assert told in str(refused.value)
    assert "ARCHIVE_URL" in str(refused.value)
