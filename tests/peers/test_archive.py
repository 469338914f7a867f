"""A real bridge, a real S3 server and the real `age`: recordings elsewhere, and under lock."""

import json
import subprocess
from pathlib import Path

import aiohttp
import numpy as np

from harness.bridge import (
    Bridge,
    command,
    eventually,
    listening,
    running_bridge,
    start_bridge,
)
from harness.calls import call, finals, tones
from harness.recognisers import recogniser
from harness.s3 import S3, gate
from siprec_bridge.doctor import examine_archive
from siprec_bridge.settings import load


def files_of(data: Path) -> dict[str, bytes]:
    """What a session's folder holds, by name."""
    return {one.name: one.read_bytes() for one in (data / "recordings").glob("*/*")}


async def test_killed_in_mid_upload_it_is_sent_whole_and_heard_from_the_store(
    tmp_path: Path, s3: S3
) -> None:
    data, bucket = tmp_path / "data", s3.new_bucket()
    settings = {"WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks"))}
    async with gate(s3.port) as way:
        way.room = 150_000  # that is a file or two of the eight or so
        settings |= s3.settings(bucket, way.port)
        bridge = await start_bridge(data, **settings)
        async with listening(bridge) as events:
            await call(bridge)
            (final,) = await finals(bridge, events)
        await eventually(lambda: way.passed > 100_000, "an upload", bridge)
        await bridge.kill()
        before = s3.keys(bucket)
        local = files_of(data)
        way.open()
        settings["ARCHIVE_KEEP_LOCAL"] = "1ms"

        async with running_bridge(data, **settings) as bridge:
            await bridge.wait_for_log("archive.local_deleted")
            stored = s3.objects(bucket)
            id = str(final["subject"])
            day = final["data"]["started_at"][:10].replace("-", "/")

            assert not [key for key in before if key.endswith("manifest.json")]
            assert stored.pop(f"calls/{day}/{id}/manifest.json") == local.pop(f"{id}.manifest.json")
            assert {key.rpartition("/")[2]: one for key, one in stored.items()} == local
            assert {one.partition(".")[2] for one in local} >= {"wav", "spool", "audio.json"}
            assert files_of(data) == {}
            listed = await command("archive", "list", data=data, **settings)
            assert f"{id}  done      in s3://{bucket}/calls/{day}/{id} since" in listed[1]
            assert "0 pending (0 octets)" in listed[1]
            await hears_it_from_the_store(bridge, id, local)
            verified = await command("recordings", "verify", "--stored", data=data, **settings)
            assert (verified[0], "0 sessions damaged" in verified[1]) == (0, True)
            async with (
                aiohttp.ClientSession() as http,
                http.delete(f"{bridge.http}/api/sessions/{id}") as answer,
            ):
                assert answer.status == 204
            await bridge.wait_for_log("archive.deleted")
            assert s3.keys(bucket) == []


async def hears_it_from_the_store(bridge: Bridge, id: str, local: dict[str, bytes]) -> None:
    """Whole, in parts, and refused, as from a file."""
    wav = local[f"{id}-stereo.wav"]
    url = f"{bridge.http}/api/sessions/{id}"
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/audio/{id}-stereo.wav") as answer:
            assert (answer.status, answer.content_type) == (200, "audio/wav")
            assert await answer.read() == wav
        size = len(wav)
        for wanted, start, end in (
            ("bytes=100-199", 100, 200),
            (f"bytes={size - 10}-", size - 10, size),
            ("bytes=-44", size - 44, size),
        ):
            async with http.get(
                f"{url}/audio/{id}-stereo.wav", headers={"Range": wanted}
            ) as answer:
                assert answer.status == 206
                assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
                assert await answer.read() == wav[start:end]
        beyond = {"Range": f"bytes={size}-"}
        async with http.get(f"{url}/audio/{id}-stereo.wav", headers=beyond) as answer:
            assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
        async with http.get(f"{url}/audio/{id}-0.spool") as answer:
            assert answer.status == 404
        async with http.get(url) as answer:
            archive = (await answer.json())["archive"]
        assert (archive["here"], archive["encrypted"], archive["reason"]) == (False, False, None)
        async with http.post(f"{url}/transcriptions", json={}) as answer:
            assert answer.status == 409
            assert f"archive fetch {id}" in (await answer.json())["error"]


def age(*arguments: object) -> bytes:
    """What age's own programs say."""
    return subprocess.run([*map(str, arguments)], check=True, capture_output=True).stdout


async def test_a_person_is_erased_from_encrypted_audio_in_the_store_while_the_bridge_runs(
    tmp_path: Path, s3: S3
) -> None:
    data, bucket, key = tmp_path / "data", s3.new_bucket(), tmp_path / "key.txt"
    age("age-keygen", "-o", key)
    settings = s3.settings(bucket) | {
        "WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks")),
        "RECORDINGS_RECIPIENTS": age("age-keygen", "-y", key).decode().strip(), "ARCHIVE_KEEP_LOCAL": "1ms",
    }  # fmt: skip
    erase = ("erase", "--participant", "sip:alice@example.com", "--json", "--yes")
    async with running_bridge(data, **settings) as bridge, listening(bridge) as events:
        await call(bridge, legs=tones(0.3))
        await finals(bridge, events)
        await bridge.wait_for_log("archive.local_deleted")
        before = s3.objects(bucket)
        done = await command(*erase, "--identity", str(key), data=data, **settings)
        await bridge.wait_for_log("archive.local_deleted", 2)
        await eventually(
            lambda: any(one["type"] == "session.erased" for one in events), "the event", bridge
        )

    assert done[0] == 0, done
    (erased,) = json.loads(done[1])
    assert (erased["outcome"], erased["treatment"]) == ("erased", "sealed_again")
    assert files_of(data) == {}
    after = s3.objects(bucket)
    assert {one for one in before if one not in after} == {
        one for one in before if one.endswith("-0.spool.age")
    }
    (name,) = (one for one in after if one.endswith("-stereo.wav.age"))
    (tmp_path / "stereo.age").write_bytes(after[name])
    wav = age("age", "-d", "-i", key, tmp_path / "stereo.age")
    samples = np.frombuffer(wav[44:], "<i2").reshape(-1, 2)
    assert not samples[:, 0].any()
    assert samples[:, 1].any()


async def test_encrypted_recordings_are_for_those_who_hold_the_key(tmp_path: Path) -> None:
    data, store, key = tmp_path / "data", tmp_path / "store", tmp_path / "key.txt"
    store.mkdir()
    settings = {
        "WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks")),
        "RECORDINGS_RECIPIENTS": keygen(key),
        "ARCHIVE_URL": str(store),
        "ARCHIVE_LAYOUT": "{peer}/{session}",
        "ARCHIVE_KEEP_LOCAL": "1ms",
    }
    async with (
        running_bridge(data, **settings) as bridge,
        listening(bridge) as events,
        aiohttp.ClientSession() as http,
    ):
        await call(bridge)
        (final,) = await finals(bridge, events)
        id = str(final["subject"])
        await bridge.wait_for_log("archive.local_deleted")
        url = f"{bridge.http}/api/sessions/{id}"
        async with http.get(f"{url}/audio/{id}-0.wav") as answer:
            refused = answer.status, (await answer.json())["error"]
        async with http.get(f"{url}/audio/{id}-0.wav.age") as answer:
            sealed = await answer.read()
        async with http.post(f"{url}/transcriptions", json={}) as answer:
            again = answer.status, (await answer.json())["error"]
        async with http.get(url) as answer:
            archive = (await answer.json())["archive"]
        store.rename(tmp_path / "unmounted")
        async with http.get(f"{url}/audio/{id}-0.wav.age") as answer:
            away = answer.status, (await answer.json())["error"]
    kept = tmp_path / "unmounted" / "127.0.0.1" / id
    decrypt = ("recordings", "decrypt", "--identity", str(key), str(kept), "--out", str(tmp_path))
    opened = await command(*decrypt, data=data)
    (kept / f"{id}-1.wav.age").write_bytes(b"forged")
    broken = await command(*decrypt, data=data)

    assert refused[0] == 409
    assert "only those who hold a key" in refused[1]
    assert again == (409, refused[1].partition(" (siprec")[0])
    assert away == (503, "the archive does not answer")
    assert (archive["encrypted"], archive["readable_here"], archive["here"]) == (True, False, False)
    assert not list((data / "recordings").glob("*/*"))
    assert not list(kept.glob("*.wav"))
    wav = by_age(key, sealed)
    assert wav[:4] == b"RIFF"
    assert wav == (tmp_path / f"{id}-0.wav").read_bytes()
    sealed_files = len(list(kept.glob("*.age")))
    assert (opened[0], opened[1].count("octets, as recorded")) == (0, sealed_files)
    assert (broken[0], f"{id}-1.wav.age" in broken[1]) == (1, True)


def keygen(path: Path) -> str:
    """A key pair by age's own program: the secret one goes to a file, the public one comes back."""
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
    shown = subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


def by_age(key: Path, sealed: bytes) -> bytes:
    """What age's own program finds in it."""
    return subprocess.run(
        ["age", "-d", "-i", key], input=sealed, check=True, capture_output=True
    ).stdout


def test_doctor_writes_reads_and_deletes_an_object(s3: S3) -> None:
    bucket = s3.new_bucket()

    good, missing, extra = [
        examine_archive(load(one))
        for one in (
            s3.settings(bucket),
            s3.settings("there-is-none-of-that-name"),
            {"ARCHIVE_URL": "gs://calls"},
        )
    ]

    assert (good.ok, good.part) == (True, "archive")
    assert good.text == f"s3://{bucket}/calls: an object was written, read and deleted"
    assert s3.keys(bucket) == []
    assert (missing.ok, "no such bucket or container" in missing.text) == (False, True)
    assert (extra.ok, "siprec-bridge[gcs]" in extra.text) == (False, True)
