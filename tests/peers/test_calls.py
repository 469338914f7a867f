"""Whole calls at a real bridge: from the INVITE to what a listener hears."""

import asyncio
import json
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.bridge import Bridge, command, eventually, listening, of_type, running_bridge
from harness.calls import SAMPLE, call, finals, tones
from harness.hosts import has_ipv6, link_local
from harness.recognisers import calls, recogniser
from harness.rtp import loudest_frequency, packets, read_wav, tone
from harness.src import OFFER, multipart, request
from siprec_bridge.caller import CallPlan, Leg, parse_target, place_call, sample_call
from siprec_bridge.sip import Response, parse, serialize
from siprec_bridge.trial import word_error_rate


@pytest.mark.parametrize(("transport", "codec"), [("udp", "pcmu"), ("tcp", "pcma")])
async def test_each_partys_voice_ends_on_its_own_wav_with_its_own_length(
    tmp_path: Path, transport: str, codec: str
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
    ):
        report = await call(bridge, transport=transport, codec=codec)
        (final,) = await finals(bridge, events)
        _, text = await bridge.get(f"/api/sessions/{final['subject']}")

    assert report.problems == ()
    data = final["data"]
    assert data["sip_call_id"] == report.call_id
    assert [(one["participant"]["name"], one["text"]) for one in data["utterances"]] == [
        ("Alice", "hello there"),
        ("Bob", "hello there"),
    ]
    folder = tmp_path / "data" / "recordings" / str(final["subject"])
    expected = {"Alice": (440, 2.0), "Bob": (1000, 2.5)}
    for leg in data["legs"]:
        frequency, seconds = expected[leg["participants"][0]["name"]]
        rate, pcm = read_wav(folder / leg["audio"])
        assert rate == 16000
        assert len(pcm) / rate == pytest.approx(seconds, abs=0.02)
        assert loudest_frequency(pcm, rate) == pytest.approx(frequency, abs=5)
    rate, both = read_wav(folder / json.loads(text)["audio"]["stereo"])
    assert loudest_frequency(both[:12000, 0], rate) == pytest.approx(440, abs=5)
    assert loudest_frequency(both[:12000, 1], rate) == pytest.approx(1000, abs=5)


async def test_nothing_that_is_kept_of_a_call_is_for_everybody_to_read(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    data = tmp_path / "data"
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        await finals(bridge, events)
        modes = {
            one.name: one.stat().st_mode
            for one in data.rglob("*")
            if one.is_file() and one != bridge.log_file
        }

    kinds = {Path(name).suffix for name in modes}
    assert {".db", ".spool", ".wav", ".json"} <= kinds
    assert [name for name, mode in modes.items() if mode & 0o007] == []


async def test_a_listener_hears_the_whole_story_in_order_and_can_resume(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks) as bridge:
        async with listening(bridge) as events:
            await call(bridge)
            (final,) = await finals(bridge, events)
        resume = f"?since={events[0]['sequence']}&type=transcript."
        async with listening(bridge, resume) as again:
            await finals(bridge, again)

    assert [one["type"] for one in events] == [
        "session.started",
        "session.ended",
        "transcript.segment",
        "transcript.segment",
        "transcript.final",
    ]
    assert [one["type"] for one in again] == [
        "transcript.segment", "transcript.segment", "transcript.final",
    ]  # fmt: skip
    assert again[-1] == final
    sequences = [one["sequence"] for one in events]
    assert sequences == sorted(sequences)
    started = of_type(events, "session.started")[0]["data"]
    assert [one["label"] for one in started["streams"]] == ["1", "2"]


async def test_silence_gives_an_empty_transcript_and_a_call_without_packets_as_well(
    tmp_path: Path,
) -> None:
    silent = recogniser(tmp_path, "is_silent")
    nothing = Leg("Alice", "sip:alice@example.com", np.zeros(0, np.int16))
    quiet = Leg("Alice", "sip:alice@example.com", np.zeros(8000, np.int16))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=str(silent)) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge, legs=(quiet, quiet))
        await finals(bridge, events, 1)
        await call(bridge, legs=(nothing, nothing))
        two = await finals(bridge, events, 2)

    assert [(one["data"]["utterances"], one["data"]["text"]) for one in two] == [([], ""), ([], "")]
    assert len(calls(silent)) == 1


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("hosts", ["127.0.0.1,::1", "0.0.0.0,::"])
async def test_src_of_both_families_call_one_bridge(tmp_path: Path, hosts: str) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks, SIP_HOST=hosts) as bridge,
        listening(bridge) as events,
    ):
        places = bridge.ready["sip_udp"]
        assert isinstance(places, list)
        for place in places:
            port = place.rpartition(":")[2]
            host = "[::1]" if "[" in place else "127.0.0.1"
            plan = CallPlan(parse_target(f"{host}:{port}", "udp"), tones(), rate=20.0)
            assert (await place_call(plan)).problems == ()
        both = await finals(bridge, events, 2)

    assert [len(one["data"]["utterances"]) for one in both] == [2, 2]


@pytest.mark.skipif(link_local() is None, reason="no link-local address here")
async def test_a_call_of_one_link_is_recorded_and_no_zone_is_told(tmp_path: Path) -> None:
    address, link = link_local() or ("", 0)
    voice = packets(tone(440, 1.0))
    async with (
        running_bridge(tmp_path / "data", SIP_HOST="::") as bridge,
        listening(bridge) as events,
    ):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as src:
            src.bind((address, 0, 0, link))
            src.setblocking(False)
            place = (address, bridge.udp[1], 0, link)
            sdp = OFFER.replace("IP4 192.0.2.10", f"IP6 {address}")
            answer = await answer_to(src, request("INVITE", body=multipart(sdp=sdp)), place)
            (tag,) = re.findall("tag=([^;]+)", answer.headers.get("To") or "")
            ports = re.findall(r"^m=audio (\d+) ", answer.body.decode(), re.M)
            for one in voice:
                src.sendto(one, (address, int(ports[0]), 0, link))
            await answer_to(src, request("BYE", number=2, branch="z9hG4bKb", to_tag=tag), place)
        await eventually(lambda: bool(of_type(events, "session.ended")), "the end", bridge)

    assert b"%" not in serialize(answer)
    assert f"IN IP6 {address}" in answer.body.decode()
    (ended,) = bridge.logged("session.ended")
    assert (ended["packets"], ended["lost"]) == (len(voice), 0)


async def test_behind_a_nat_each_listener_answers_with_its_address_outside(tmp_path: Path) -> None:
    outside = {"127.0.0.1": "203.0.113.5", "127.0.0.3": "203.0.113.6"}
    named = ",".join(f"{here}={there}" for here, there in outside.items())
    async with running_bridge(
        tmp_path / "data", SIP_HOST=",".join(outside), EXTERNAL_IP=named
    ) as bridge:
        places = bridge.ready["sip_udp"]
        assert isinstance(places, list)
        for place, (here, there) in zip(places, outside.items(), strict=True):
            port = int(place.rpartition(":")[2])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as src:
                src.bind((here, 0))
                src.setblocking(False)
                invite = request("INVITE", body=multipart(), call_id=here, branch=f"z9hG4bK{here}")
                answer = await answer_to(src, invite, (here, port))

                assert answer.status == 200
                contact = answer.headers.get("Contact") or ""
                assert contact.startswith(f"<sip:srs@{there}:{port};")
                sdp = answer.body.decode()
                assert re.findall(r"^[co]=.*IN IP4 (.*)\r$", sdp, re.M) == [there, there]
                (tag,) = re.findall("tag=([^;]+)", answer.headers.get("To") or "")
                bye = request("BYE", number=2, branch=f"z9hG4bKbye{here}", to_tag=tag, call_id=here)
                await answer_to(src, bye, (here, port))


async def answer_to(src: socket.socket, data: bytes, place: tuple[str | int, ...]) -> Response:
    """The final one."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendto(src, data, place)
    while True:
        async with asyncio.timeout(10):
            parsed = parse(await loop.sock_recv(src, 1 << 16))
        assert isinstance(parsed, Response)
        if parsed.status >= 200:
            return parsed


@pytest.mark.peer
async def test_the_stand_in_understands_the_sample_call(tmp_path: Path) -> None:
    said = json.loads((SAMPLE / "transcript.json").read_text())
    standin = str(Path(sys.executable).with_name("whisper-standin"))
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=standin, VAD="on") as bridge,
        listening(bridge) as events,
    ):
        await call(bridge, legs=sample_call(), rate=4.0)
        (final,) = await finals(bridge, events)

    data = final["data"]
    heard = [(one["participant"]["name"].lower(), one["text"]) for one in data["utterances"]]
    assert [who for who, _ in heard] == [line["speaker"] for line in said]
    for who in ("alice", "bob"):
        spoken = " ".join(line["text"] for line in said if line["speaker"] == who)
        understood = " ".join(text for name, text in heard if name == who)
        assert word_error_rate(spoken, understood) <= 0.2
    for utterance, line in zip(data["utterances"], said, strict=True):
        middle = (utterance["start"] + utterance["end"]) / 2
        assert line["start"] - 0.5 <= middle <= line["end"] + 0.5
        assert utterance["words"]
    assert data["model"] == "pocketsphinx-en-us, not Whisper"
    assert data["language"] == "en"


@pytest.mark.peer
async def test_a_recogniser_is_not_started_for_a_call_in_which_nobody_speaks(
    tmp_path: Path,
) -> None:
    speaks = recogniser(tmp_path, "speaks")
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=str(speaks), VAD="on") as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        (final,) = await finals(bridge, events)
        _, listed = await bridge.get("/api/jobs")
        _, metrics = await bridge.get("/metrics")

    assert calls(speaks) == []
    assert (final["data"]["utterances"], final["data"]["text"]) == ([], "")
    assert [leg["speech"] for leg in final["data"]["legs"]] == [0.0, 0.0]
    assert json.loads(listed)["jobs"][0]["reason"] == "no_speech"
    assert 'siprec_vad_audio_seconds_total{verdict="cut"} 4.5' in metrics


async def test_waiting_calls_share_a_run_of_the_recogniser(tmp_path: Path) -> None:
    binary = recogniser(tmp_path, "waits_for_leave")
    async with (
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=str(binary), WHISPER_MAX_CONCURRENT="1"
        ) as bridge,
        listening(bridge) as events,
    ):
        for _ in range(4):
            await call(bridge, legs=tones(0.2))
        await bridge.wait_for_log("session.archived", 4)
        binary.with_suffix(".go").touch()
        await finals(bridge, events, 4)

    arguments = [one["arguments"] for one in calls(binary)]
    files = [one.index("--model") for one in arguments if isinstance(one, list)]
    assert sum(files) == 8
    assert len(files) < 4


async def test_a_run_that_fails_is_tried_again_from_the_stored_audio_and_then_parked(
    tmp_path: Path,
) -> None:
    binary = recogniser(tmp_path, "fails_until_told")
    data = tmp_path / "data"
    async with (
        running_bridge(
            data,
            WHISPER_BINARY_PATH=str(binary),
            TRANSCRIPTION_ATTEMPTS="2",
            TRANSCRIPTION_RETRY_DELAY="100ms",
            TRANSCRIPTION_CIRCUIT="0",
        ) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        await eventually(lambda: bool(of_type(events, "transcript.failed")), "a failure", bridge)
        _, metrics = await bridge.get("/metrics")
        _, listed, _ = await command("jobs", "list", "--state", "failed", data=data)
        binary.with_suffix(".works").touch()
        code, retried, _ = await command("jobs", "retry", "--all", data=data)
        (final,) = await finals(bridge, events)

    (failed,) = of_type(events, "transcript.failed")
    assert (failed["data"]["reason"], failed["data"]["attempts"]) == ("exit_code", 2)
    assert "exit_code (exit code 3)" in listed
    assert (code, retried) == (0, "1 queued\n")
    assert len(final["data"]["utterances"]) == 2
    assert 'siprec_whisper_cli_duration_seconds_count{model="base",status="error"} 2.0' in metrics
    assert 'siprec_jobs_total{outcome="failed"} 1.0' in metrics


async def test_a_recogniser_that_is_missing_leaves_the_bridge_recording_until_it_appears(
    tmp_path: Path,
) -> None:
    missing = tmp_path / "speaks"
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=str(missing)) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        await bridge.wait_for_log("session.archived")
        status, ready = await bridge.get("/health/ready")
        metrics = await bridge.wait_for_metric("siprec_jobs_backlog 1.0")
        assert bridge.logged("recogniser.unavailable")

        recogniser(tmp_path, "speaks")
        (final,) = await finals(bridge, events)
        status_after, _ = await bridge.get("/health/ready")

    assert (status, json.loads(ready)["degraded"]) == (200, True)  # calls are taken all the same
    assert json.loads(ready)["facts"]["recogniser"] == f"{missing} does not exist"
    assert "siprec_recogniser_available 0.0" in metrics
    assert len(final["data"]["utterances"]) == 2
    assert status_after == 200


async def test_only_who_knows_the_password_is_recorded(tmp_path: Path) -> None:
    silent = str(recogniser(tmp_path, "is_silent"))
    users = tmp_path / "users"
    users.write_text("sbc:let me in\nother:x\n")
    async with running_bridge(
        tmp_path / "data", WHISPER_BINARY_PATH=silent, SIP_AUTH_USERS_FILE=str(users)
    ) as bridge:
        host, port = bridge.udp
        target = parse_target(f"{host}:{port}")
        reports = [
            await place_call(CallPlan(target, tones(0.1), rate=20.0, credentials=credentials))
            for credentials in (None, ("sbc", "guess"), ("sbc", "let me in"))
        ]
        await bridge.wait_for_log("session.archived")

    assert [one.status for one in reports] == [401, 401, 200]
    assert reports[2].bye_status == 200
    assert len(bridge.logged("session.started")) == 1
    assert "let me in" not in bridge.log_file.read_text()


async def test_a_bridge_that_is_told_to_stop_lets_the_call_end_and_keeps_everything(
    tmp_path: Path,
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    long_call = (Leg("Alice", "sip:alice@example.com", tone(440, 60.0)),)
    async with running_bridge(
        tmp_path / "data", WHISPER_BINARY_PATH=speaks, SHUTDOWN_TIMEOUT="500ms"
    ) as bridge:
        talking = asyncio.create_task(call(bridge, legs=long_call, rate=1.0))
        await bridge.wait_for_log("stream.started")
        code = await bridge.stop()
        report = await talking
    async with (
        running_bridge(tmp_path / "data", WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge, "?since=0") as events,
    ):
        (final,) = await finals(bridge, events)

    assert code == 0
    assert report.hung_up_by == "them"
    assert len(final["data"]["utterances"]) == 1


async def final_status(bridge: Bridge, data: bytes) -> int:
    """What the bridge answers to a request over UDP, at last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.sendto(data, bridge.udp)
        async with asyncio.timeout(10):
            while True:
                answer = await asyncio.get_running_loop().sock_recv(one, 65536)
                if (status := int(answer.split()[1])) >= 200:
                    return status


async def test_what_is_turned_away_is_as_the_settings_say(tmp_path: Path) -> None:
    settings = {"NON_SIPREC_CALLS": "refuse", "SIP_CALL_RATE": "0.01", "CODECS": "PCMA"}
    settings["SHUTDOWN_TIMEOUT"] = "200ms"  # nobody acknowledges or hangs up
    plain = request("INVITE", call_id="plain", branch="z9hG4bKp", body=OFFER.encode(),
                    content_type="application/sdp").replace(b";+sip.src", b"")  # fmt: skip
    siprec = [
        request("INVITE", call_id=f"c{number}", branch=f"z9hG4bK{number}", body=multipart())
        for number in range(2)
    ]
    async with running_bridge(tmp_path / "data", **settings) as bridge:
        statuses = [await final_status(bridge, data) for data in (plain, *siprec)]
        started = await bridge.wait_for_log("session.started")
        async with asyncio.timeout(10):
            while "siprec_loop_lag_seconds 0.0\n" in (metrics := (await bridge.get("/metrics"))[1]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # until somebody has looked

    assert statuses == [421, 200, 503]
    assert started["streams"] == 1  # the other one is PCMU
    assert 'siprec_calls_turned_away_total{reason="rate"} 1.0' in metrics
