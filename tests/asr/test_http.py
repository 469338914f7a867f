"""The OpenAI API, the resident clients' route and the operators' routes, over real connections."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from harness.asr import PatientLoader, Running, serving, wav
from siprec_asr.errors import Refused

SAID = "Good morning how can I help you"


@dataclass(frozen=True, slots=True)
class Client:
    """A server with a client of it."""

    server: Running
    session: aiohttp.ClientSession

    async def openai(self, audio: bytes, **fields: str) -> tuple[int, Any, Any]:
        """Status, headers, JSON or text of a transcription."""
        form = aiohttp.FormData()
        form.add_field("file", audio, filename="audio.wav")
        for name, value in fields.items():
            form.add_field(name.replace("granularities", "granularities[]"), value)
        return await self.read(self.session.post("/v1/audio/transcriptions", data=form))

    async def resident(self, order: dict[str, Any], *audio: bytes) -> tuple[int, Any, Any]:
        """Status, headers, JSON of the resident clients' route."""
        body = json.dumps(order).encode() + b"\n" + b"".join(audio)
        return await self.read(self.session.post("/transcribe", data=body))

    @staticmethod
    async def read(asking: Any) -> tuple[int, Any, Any]:
        async with asking as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json"
            return answer.status, answer.headers, json.loads(text) if is_json else text

    def value(self, name: str, **labels: str) -> float | None:
        registry = self.server.server.metrics.registry
        return registry.get_sample_value(f"siprec_asr_{name}", labels)

    async def until(self, name: str, value: float, **labels: str) -> None:
        async with asyncio.timeout(10):
            while self.value(name, **labels) != value:  # noqa: ASYNC110 - metrics have no event
                await asyncio.sleep(0.01)


@pytest.fixture
async def asr(tmp_path: Path, models_dir: Path) -> AsyncIterator[Client]:
    async with (
        serving(tmp_path, models_dir, preload="tiny", beam_size="1") as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        yield Client(server, session)


@pytest.fixture
async def patient(tmp_path: Path, loader: PatientLoader) -> AsyncIterator[Client]:
    async with (
        serving(tmp_path, loader=loader, model="base", queue_limit="1") as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        yield Client(server, session)


@pytest.fixture
def loader() -> PatientLoader:
    return PatientLoader()


async def test_openai_every_format(asr: Client) -> None:
    audio = wav(3)

    _, _, plain = await asr.openai(audio, model="whisper-1")
    _, _, text = await asr.openai(audio, model="tiny", response_format="text", language="en-US")
    _, _, srt = await asr.openai(audio, response_format="srt")
    _, _, vtt = await asr.openai(audio, response_format="vtt")
    _, _, verbose = await asr.openai(audio, response_format="verbose_json")

    assert plain == {"text": SAID}
    assert text == f"{SAID}\n"
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert (verbose["text"], verbose["language"], verbose["duration"]) == (SAID, "en", 3.0)
    assert verbose["segments"][0]["text"] == f" {SAID}"
    assert "words" not in verbose
    assert asr.value("requests_total", front="openai", status="200") == 5
    assert asr.value("audio_seconds_total", model="tiny") == 15
    assert asr.value("realtime_factor_count", model="tiny") == 5


async def test_openai_words_when_they_are_asked_for(asr: Client) -> None:
    _, _, heard = await asr.openai(
        wav(3), response_format="verbose_json", timestamp_granularities="word"
    )

    assert [word["word"] for word in heard["words"]] == SAID.split()
    assert "segments" not in heard


@pytest.mark.parametrize(
    ("fields", "status", "cause"),
    [
        ({"model": "gpt-5"}, 404, "no model 'gpt-5'"),
        ({"model": "../../etc"}, 404, "no model"),
        ({"response_format": "docx"}, 400, "response_format"),
        ({"timestamp_granularities": "letter"}, 400, "letter"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"language": "klingon"}, 400, "klingon"),
    ],
)
async def test_openai_says_what_is_wrong(
    asr: Client, fields: dict[str, str], status: int, cause: str
) -> None:
    got, _, answer = await asr.openai(wav(1), **fields)

    assert got == status
    assert cause in answer["error"]["message"]
    assert asr.value("requests_total", front="openai", status=str(status)) == 1


@pytest.mark.parametrize("language", ["en", "EN", "en-US", "English", " english", "auto", "AUTO"])
async def test_a_language_goes_by_code_tag_or_name(asr: Client, language: str) -> None:
    status, _, answer = await asr.openai(wav(1), language=language, response_format="verbose_json")

    assert (status, answer["language"]) == (200, "en")


async def test_what_is_no_audio_is_refused_and_no_speech_is_not(asr: Client) -> None:
    status, _, answer = await asr.openai(b"no audio at all " * 100)
    assert (status, answer["error"]["code"]) == (415, "not_audio")

    status, _, answer = await asr.openai(wav(0))
    assert (status, answer) == (200, {"text": ""})

    truncated = wav(3)[:-40000]
    status, _, answer = await asr.openai(truncated)
    assert (status, answer["text"]) == (200, SAID)


async def test_a_form_without_a_file_and_a_body_that_is_no_form(asr: Client) -> None:
    form = aiohttp.FormData({"model": "tiny"})
    for data in (form(), b"RIFF"):
        status, _, answer = await asr.read(asr.session.post("/v1/audio/transcriptions", data=data))
        assert (status, answer["error"]["code"]) == (400, "bad_request")


async def test_too_large_and_too_long(tmp_path: Path, models_dir: Path) -> None:
    async with (
        serving(tmp_path, models_dir, max_upload="64KiB", max_audio="1s") as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        client = Client(server, session)

        large, _, larger = await client.openai(wav(10))
        long, _, longer = await client.openai(wav(1.5))

    assert (large, larger["error"]["code"]) == (413, "too_large")
    assert (long, longer["error"]["code"]) == (413, "too_long")


async def test_models_are_those_of_the_folder_and_of_the_settings(asr: Client) -> None:
    _, _, listed = await asr.read(asr.session.get("/v1/models"))
    assert [one["id"] for one in listed["data"]] == ["tiny", "tuned"]
    assert (await asr.read(asr.session.get("/v1/models/tuned")))[0] == 200
    assert (await asr.read(asr.session.get("/v1/models/none")))[0] == 404

    _, _, heard = await asr.openai(wav(1), model="tuned")
    assert heard["text"] == "We call from Fine Tuning"


async def test_a_model_that_cannot_be_fetched_is_unavailable_not_unknown(
    tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    async with (
        serving(tmp_path, models_dir, download="false") as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        status, headers, answer = await Client(server, session).openai(wav(1), model="large-v3")

    assert (status, answer["error"]["code"]) == (503, "model_unavailable")
    assert headers["Retry-After"] == "60"


async def test_several_files_in_one_request_each_with_its_outputs(asr: Client) -> None:
    one, two = wav(1), wav(2, rate=8000)
    files = [{"name": "alice", "size": len(one)}, {"name": "bob", "size": len(two)}]

    status, _, answer = await asr.resident({"files": files, "formats": ["json", "txt"]}, one, two)

    assert status == 200
    assert [each["name"] for each in answer["outputs"]] == ["alice", "bob"]
    document = json.loads(answer["outputs"][1]["json"])
    assert (document["text"], document["language"], document["model"]) == (SAID, "en", "tiny")
    assert [word["word"] for word in document["segments"][0]["words"]] == [
        f" {word}" for word in SAID.split()
    ]
    assert answer["outputs"][0]["txt"] == f"{SAID}\n"


async def test_paths_are_for_the_unix_sockets_peers(asr: Client, tmp_path: Path) -> None:
    audio = tmp_path / "alice.wav"
    audio.write_bytes(wav(1))
    order = {"files": [{"name": "alice", "path": str(audio)}]}

    status, _, answer = await asr.resident(order)
    assert (status, answer["error"]["code"]) == (403, "no_paths")

    connector = aiohttp.UnixConnector(str(asr.server.socket))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        near = Client(asr.server, session)
        status, _, answer = await near.resident(order)
        assert status == 200
        for path in ("/dev/zero", "alice.wav", str(tmp_path / "none.wav")):
            status, _, _ = await near.resident({"files": [{"name": "alice", "path": path}]})
            assert status == 400


@pytest.mark.parametrize(
    ("order", "audio", "status", "cause"),
    [
        ({}, b"", 400, "files"),
        ({"files": [{"name": "a"}]}, b"", 400, "size or path"),
        ({"files": [{"name": "a", "size": 5}]}, b"1234", 400, "5 octets"),
        ({"files": [{"name": "a", "size": 4}]}, b"1234", 415, "a: not audio"),
        ({"files": [{"name": "a", "size": 4}], "model": "x"}, b"1234", 404, "no model"),
        ({"files": [{"name": "a", "size": 4}], "formats": ["docx"]}, b"1234", 400, "formats"),
    ],
)
async def test_an_order_that_is_wrong_is_told_how(
    asr: Client, order: dict[str, Any], audio: bytes, status: int, cause: str
) -> None:
    got, _, answer = await asr.resident(order, audio)

    assert got == status
    assert cause in answer["error"]["message"]


async def test_one_bad_file_ends_the_work_of_the_others(
    patient: Client, loader: PatientLoader
) -> None:
    good = wav(1)
    files = [{"name": "good", "size": len(good)}, {"name": "bad", "size": 3}]

    status, _, answer = await patient.resident({"files": files}, good, b"abc")

    assert (status, answer["error"]["message"][:8]) == (415, "bad: not")
    await patient.until("runs_active", 0)


async def test_who_closes_the_connection_frees_the_worker(
    patient: Client, loader: PatientLoader
) -> None:
    audio = wav(1)
    body = json.dumps({"files": [{"name": "a", "size": len(audio)}]}).encode() + b"\n" + audio
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(patient.server.socket))
    client.sendall(
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    engine = await asyncio.to_thread(loader.first)

    client.close()

    assert await asyncio.to_thread(engine.cancelled.wait, 10)
    await patient.until("runs_active", 0)
    await patient.until("requests_total", 1, front="resident", status="499")
    assert patient.value("runs_cancelled_total") == 1


async def test_a_full_queue_answers_429_with_retry_after(
    patient: Client, loader: PatientLoader
) -> None:
    running = asyncio.ensure_future(patient.openai(wav(1)))
    engine = await asyncio.to_thread(loader.first)
    waiting = asyncio.ensure_future(patient.openai(wav(1)))
    await patient.until("queue_depth", 1)

    status, headers, answer = await patient.openai(wav(1))

    assert (status, answer["error"]["code"]) == (429, "queue_full")
    assert int(headers["Retry-After"]) >= 1
    engine.let_go.set()
    assert [one[0] for one in await asyncio.gather(running, waiting)] == [200, 200]


async def test_a_request_of_more_files_than_may_wait_is_done_all_the_same(
    patient: Client, loader: PatientLoader
) -> None:
    order = {"files": [{"name": f"{n}", "size": len(wav(1))} for n in range(6)]}

    asking = asyncio.create_task(patient.resident(order, *[wav(1)] * 6))
    await patient.until("queue_depth", 5)
    loader.first().let_go.set()
    status, _, answer = await asking

    assert status == 200, answer
    assert [one["name"] for one in answer["outputs"]] == list("012345")


async def test_the_clients_deadline_holds(patient: Client, loader: PatientLoader) -> None:
    audio = wav(1)

    status, _, answer = await patient.resident(
        {"files": [{"name": "a", "size": len(audio)}], "deadline": 0.2}, audio
    )

    assert (status, answer["error"]["code"]) == (504, "deadline")
    assert await asyncio.to_thread(loader.first().cancelled.wait, 10)


async def test_the_token_is_asked_of_tcp_peers_but_not_of_probes(
    tmp_path: Path, models_dir: Path
) -> None:
    async with serving(tmp_path, models_dir, token="s3cret") as server:
        async with aiohttp.ClientSession(server.url) as session:
            client = Client(server, session)
            for headers in ({}, {"Authorization": "Bearer wröng"}, {"Authorization": "s3cret"}):
                status, got, _ = await client.read(session.get("/v1/models", headers=headers))
                assert (status, got["WWW-Authenticate"]) == (401, "Bearer")
            good = {"Authorization": "Bearer s3cret"}
            assert (await client.read(session.get("/v1/models", headers=good)))[0] == 200
            for path in ("/health", "/ready", "/metrics"):
                assert (await client.read(session.get(path)))[0] == 200
            _, _, config = await client.read(session.get("/admin/config", headers=good))
            assert "s3cret" not in json.dumps(config)
        connector = aiohttp.UnixConnector(str(server.socket))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
            status, _, _ = await Client(server, session).read(session.get("/v1/models"))
            assert status == 200


async def test_a_token_that_is_no_text_is_wrong_not_a_failure(
    tmp_path: Path, models_dir: Path
) -> None:
    async with serving(tmp_path, models_dir, token="s3cret") as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
        )
        async with asyncio.timeout(10):
            status = await reader.readline()
        writer.close()

    assert status.startswith(b"HTTP/1.1 40")


async def test_operators_load_unload_and_reload(asr: Client) -> None:
    async def act(action: str, model: str) -> tuple[int, list[str]]:
        status, _, answer = await asr.read(
            asr.session.post(f"/admin/models/{action}", json={"model": model})
        )
        return status, [one["name"] for one in answer.get("models", [])]

    assert await act("load", "tuned") == (200, ["tiny", "tuned"])
    assert await act("reload", "tiny") == (200, ["tuned", "tiny"])
    assert await act("unload", "tuned") == (200, ["tiny"])
    assert (await act("unload", "tuned"))[0] == 404
    assert (await act("load", "nonsense"))[0] == 404
    assert asr.value("models_loaded") == 1


async def test_operators_change_settings_while_it_runs(
    patient: Client, loader: PatientLoader
) -> None:
    loader.answers_at_once = True

    status, _, answer = await patient.read(
        patient.session.patch("/admin/config", json={"beam_size": 2, "cache_ttl": "10m"})
    )
    await patient.openai(wav(1))

    assert (status, answer["settings"]["cache_ttl"]) == (200, 600)
    assert loader.engines[0].heard[0][1].beam_size == 2
    assert patient.server.server.cache.limits.ttl == 600
    for wrong, cause in (
        ({"port": 1}, "port"), ({"beam_size": 0}, "ASR_BEAM_SIZE"), ({"model": "x"}, "'x'"),
    ):  # fmt: skip
        status, _, answer = await patient.read(patient.session.patch("/admin/config", json=wrong))
        assert status in (400, 404)
        assert cause in answer["error"]["message"]
    status, _, _ = await patient.read(patient.session.patch("/admin/config", data=b"{}"))
    assert status == 415


async def test_a_failing_model_is_503_and_the_server_lives(
    patient: Client, loader: PatientLoader
) -> None:
    loader.failure = Refused(503, "model_failed", "CUDA failed with error out of memory")
    status, _, answer = await patient.openai(wav(1))
    assert (status, answer["error"]["code"]) == (503, "model_failed")

    loader.failure, loader.answers_at_once = None, True
    status, _, answer = await patient.openai(wav(1))
    assert (status, answer["text"]) == (200, "base")


async def test_an_error_of_ours_is_500_without_its_inside(
    patient: Client, loader: PatientLoader
) -> None:
    loader.failure = KeyError("somebody's name")

    status, _, answer = await patient.openai(wav(1))

    assert (status, answer["error"]["code"]) == (500, "internal")
    assert "name" not in json.dumps(answer)
    assert patient.value("requests_total", front="openai", status="500") == 1
