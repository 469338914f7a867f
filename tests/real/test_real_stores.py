"""gs:// and az:// through Google's and Microsoft's own clients, against servers of their protocols.

`make test-stores` installs them (scripts/setup-stores) and runs this: Azurite, which Microsoft keeps,
and an emulator of Google's JSON API.
"""

import hashlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest

from harness.bridge import eventually, listening, running_bridge
from harness.calls import call, finals
from harness.recognisers import recogniser
from siprec_bridge.doctor import examine_archive
from siprec_bridge.settings import load
from siprec_bridge.vault import (
    Damaged,
    Interrupted,
    NotThere,
    ObjectError,
    ObjectStore,
    open_store,
    sums_of,
)
from siprec_bridge.vault.objects import BLOCK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peer,
    pytest.mark.timeout(180),
    # gcsfs', of blocks of our size; they are sent from a thread of its own.
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
]

# The account that every Azurite has.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURITE = Path(__file__).parents[2] / "build/stores/azurite/node_modules/.bin/azurite-blob"


@dataclass(frozen=True)
class Place:
    """A bucket or container of its own, and how it is reached."""

    url: str
    options: dict[str, object]

    @property
    def store(self) -> ObjectStore:
        return open_store(self.url, self.options)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def server(log: Path, port: int, *command: object) -> Iterator[None]:
    """A server process, once it listens."""
    with log.open("wb") as sink:
        process = subprocess.Popen([*map(str, command)], stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield
    finally:
        process.kill()  # Azurite would wait for our connections to end
        process.wait(10)


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Azurite: what fsspec is to be told."""
    if importlib.util.find_spec("adlfs") is None or not AZURITE.exists():
        pytest.skip("Azurite is not installed: make test-stores")
    port = free_port()
    reached = f"http://127.0.0.1:{port}/{ACCOUNT}"
    connection = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={reached};"
    log = tmp_path_factory.mktemp("azurite") / "log"
    # It knows the versions of the protocol of its day; the client is newer.
    options = ("--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort", port)
    with server(log, port, AZURITE, *options):
        yield {"connection_string": connection}


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """The emulator of Google's store: what fsspec is to be told."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("the emulator is not installed: make test-stores")
    port = free_port()
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    where = ("start", "--host", "127.0.0.1", "--port", port, "--in-memory")
    with server(tmp_path_factory.mktemp("google") / "log", port, program, *where):
        yield {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon"}


@pytest.fixture(params=["google", "azure"])
def place(request: pytest.FixtureRequest) -> Place:
    """An empty bucket or container."""
    options: dict[str, object] = request.getfixturevalue(request.param)
    name = f"t{uuid4().hex[:20]}"
    if request.param == "google":
        wanted = urllib.request.Request(
            f"{options['endpoint_url']}/storage/v1/b?project=p",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(wanted).close()
        return Place(f"gs://{name}/calls", options)
    from azure.storage.blob import BlobServiceClient  # type: ignore[import-not-found]

    with BlobServiceClient.from_connection_string(options["connection_string"]) as client:
        client.create_container(name)
    return Place(f"az://{name}/calls", options)


@pytest.fixture
def go_on() -> threading.Event:
    """Nobody wants us to stop."""
    return threading.Event()


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2 * BLOCK + 7])
def test_a_file_is_there_as_it_was_in_parts_too(
    place: Place, go_on: threading.Event, tmp_path: Path, size: int
) -> None:
    data = hashlib.shake_128(b"x").digest(1 << 16) * (size // (1 << 16) + 1)
    source = tmp_path / "a.wav"
    source.write_bytes(data[:size])
    store, key = place.store, "2026/05/s1/a.wav"

    sums = store.put(key, source, go_on)

    assert sums == sums_of(source)
    store.check(key, sums, go_on)
    assert store.size(key) == size
    assert store.read(key, size // 2, size) == data[size // 2 : size]
    # Google's store knows an MD5 of what it has; of Azure's it is read back.
    assert store.proves(key, sums) is place.url.startswith("gs://")


def test_what_is_not_what_was_sent_is_noticed_and_replaced(
    place: Place, go_on: threading.Event, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(b"0123456789" * 1000)
    bad.write_bytes(b"012345678X" * 1000)
    store = place.store
    store.put("s1/a", bad, go_on)

    assert not store.proves("s1/a", sums_of(good))
    with pytest.raises(Damaged, match="s1/a"):
        store.check("s1/a", sums_of(good), go_on)
    store.put("s1/a", good, go_on)
    store.check("s1/a", sums_of(good), go_on)


def test_what_was_deleted_or_never_there_is_told_as_such(
    place: Place, go_on: threading.Event, tmp_path: Path
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"a")
    store = place.store
    for key in ("2026/s1/a", "2026/s2/a"):
        store.put(key, source, go_on)

    for _ in range(2):
        store.delete("2026/s1/a")

    for look in (lambda: store.size("2026/s1/a"), lambda: store.read("none", 0, 5)):
        with pytest.raises(NotThere):
            look()
    with pytest.raises(NotThere):
        store.check("none", sums_of(source), go_on)
    assert store.size("2026/s2/a") == 1


def test_an_upload_that_is_broken_off_leaves_no_object(place: Place, tmp_path: Path) -> None:
    class Soon(threading.Event):
        """Wants us to stop once a block is sent."""

        looked = 0

        def is_set(self) -> bool:
            self.looked += 1
            return self.looked > 1

    source = tmp_path / "long"
    source.write_bytes(bytes(2 * BLOCK))

    with pytest.raises(Interrupted):
        place.store.put("s1/long", source, Soon())

    with pytest.raises(NotThere):
        place.store.size("s1/long")


def test_a_bucket_that_is_not_there_is_told_in_a_line(
    place: Place, go_on: threading.Event, tmp_path: Path
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"a")
    nowhere = Place(place.url.replace("://t", "://n"), place.options)

    with pytest.raises(ObjectError, match=r"(?i)bucket|container") as refused:
        nowhere.store.put("s1/a", source, go_on)

    assert "\n" not in str(refused.value)


def test_the_doctor_tries_it(place: Place) -> None:
    settings = load({"ARCHIVE_URL": place.url, "ARCHIVE_OPTIONS": json.dumps(place.options)})

    found = examine_archive(settings)

    assert found.ok, found.text


async def test_a_call_is_archived_and_heard_from_there_and_deleted(
    place: Place, tmp_path: Path
) -> None:
    settings = {
        "WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks")),
        "ARCHIVE_URL": place.url, "ARCHIVE_OPTIONS": json.dumps(place.options),
        "ARCHIVE_KEEP_LOCAL": "1ms",
    }  # fmt: skip
    async with running_bridge(tmp_path / "data", **settings) as bridge:
        async with listening(bridge) as events:
            await call(bridge)
            (final,) = await finals(bridge, events)
        await bridge.wait_for_log("archive.local_deleted")
        id = str(final["subject"])
        day = final["data"]["started_at"][:10].replace("-", "/")
        store = place.store
        octets = store.size(f"{day}/{id}/{id}-stereo.wav")
        url = f"{bridge.http}/api/sessions/{id}"
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/audio/{id}-stereo.wav") as answer:
                heard = await answer.read()
            async with http.delete(url) as answer:
                assert answer.status == 204
        await bridge.wait_for_log("archive.deleted")

        assert (len(heard), heard[:4]) == (octets, b"RIFF")
        await eventually(lambda: _is_gone(store, f"{day}/{id}/manifest.json"), "deletion", bridge)


def _is_gone(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except NotThere:
        return True
    return False
