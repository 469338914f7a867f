"""Rules, further versions, a broken recogniser and the next vendor, at a real bridge."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from harness.bridge import Bridge, command, eventually, listening, of_type, running_bridge
from harness.calls import call, finals
from harness.recognisers import calls, recogniser

RULES = """
[[rule]]
name = "Alice's calls"
aor = "sip:alice@*"
language = "de"
prompt = "Storno, 'Kundennummer'"

[[rule]]
name = "this trunk"
peer = "127.0.0.0/8"
model = "large-v3"
priority = "urgent"
"""


def given(arguments: object, name: str) -> str | None:
    """The value of an option that a recogniser was called with."""
    assert isinstance(arguments, list)
    return str(arguments[arguments.index(name) + 1]) if name in arguments else None


async def asked(bridge: Bridge, path: str) -> Any:
    status, text = await bridge.get(path)
    assert status == 200, text
    return json.loads(text)


async def test_rules_decide_what_the_recogniser_is_told_and_can_be_tried(tmp_path: Path) -> None:
    speaks = recogniser(tmp_path, "speaks")
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    data = tmp_path / "data"
    setting = {"TRANSCRIPTION_RULES": str(rules)}
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=str(speaks), **setting) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        (final,) = await finals(bridge, events)
        (job,) = (await asked(bridge, "/api/jobs"))["jobs"]
        code, told, _ = await command("rules", "test", str(final["subject"]), data=data, **setting)
        unknown, _, why = await command("rules", "test", "nobody", data=data, **setting)

    (run,) = calls(speaks)
    assert given(run["arguments"], "--model") == "large-v3"
    assert given(run["arguments"], "--language") == "de"
    assert given(run["arguments"], "--initial_prompt") == "Storno, 'Kundennummer'"
    assert (final["data"]["model"], final["data"]["version"]) == ("large-v3", 1)
    assert (job["priority"], job["source"], job["model"]) == ("urgent", "127.0.0.1", "large-v3")
    assert code == 0
    assert told.splitlines() == [
        "vendor    as without rules",
        "model     large-v3  (this trunk)",
        "language  de  (Alice's calls)",
        "prompt    Storno, 'Kundennummer'  (Alice's calls)",
        "priority  urgent  (this trunk)",
        "redact    as without rules",
        "live      as without rules",
    ]
    assert (unknown, why) == (1, "siprec-bridge: there is no session nobody\n")


async def test_a_wrong_rule_stops_the_start_with_one_line(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nname = 'x'\nvendor = 'acme'\n")

    code, _, err = await command("serve", data=tmp_path, TRANSCRIPTION_RULES=str(rules))

    assert code == 2
    last = err.splitlines()[-1]
    assert f"TRANSCRIPTION_RULES={rules}: rule 1 (x): vendor: acme is not among" in last
    assert "Traceback" not in err


async def test_a_session_is_transcribed_again_and_both_versions_stay(tmp_path: Path) -> None:
    speaks = recogniser(tmp_path, "speaks")
    data = tmp_path / "data"
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=str(speaks)) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        (first,) = await finals(bridge, events)
        id = str(first["subject"])
        again = f"/api/sessions/{id}/transcriptions"
        status, answer = await bridge.post(again, {"model": "large-v3", "language": "fr"})
        (_, second) = await finals(bridge, events, 2)
        code, out, err = await command(
            "sessions", "transcribe", id, "--model", "tiny", "--prompt", "Basel", data=data
        )
        (_, _, third) = await finals(bridge, events, 3)
        newest = await asked(bridge, f"/api/sessions/{id}/transcript")
        oldest = await asked(bridge, f"/api/sessions/{id}/transcript?version=1")
        listed = (await asked(bridge, again))["transcriptions"]
        _, shown, _ = await command("sessions", "show", id, "--version", "2", data=data)
        refused = [
            (await bridge.post(again, body))[0]
            for body in (
                {"vendor": "acme"}, {"model": "/etc/passwd"}, {"model": "--help"},
                {"language": "x; y"}, {"priority": "high"}, {"other": 1},
            )
        ]  # fmt: skip
        nobody, _ = await bridge.post("/api/sessions/nobody/transcriptions", {})
        no_such = [
            (await bridge.get(f"/api/sessions/{id}/transcript?version={version}"))[0]
            for version in ("4", "0", "x")
        ]
        wrong_vendor = await command("sessions", "transcribe", id, "--vendor", "acme", data=data)

    assert (status, json.loads(answer)) == (202, {"job": f"{id}.2", "version": 2})
    assert (code, out, err) == (0, f"{id}.3 is queued\n", "")
    told = [
        tuple(given(run["arguments"], name) for name in ("--model", "--language"))
        for run in calls(speaks)
    ]
    assert told == [("base", None), ("large-v3", "fr"), ("tiny", None)]
    assert [one["data"]["version"] for one in (first, second, third)] == [1, 2, 3]
    assert len({one["id"] for one in (first, second, third)}) == 3
    assert (newest["model"], oldest["model"]) == ("tiny", "base")
    assert [(one["version"], one["default"], one["job"]["priority"]) for one in listed] == [
        (1, False, "normal"),
        (2, False, "low"),
        (3, True, "low"),
    ]
    assert "transcript 2 by whisper, large-v3" in shown
    assert (refused, nobody, no_such) == ([400] * 6, 404, [404, 400, 400])
    assert wrong_vendor[0] == 2
    assert "vendor must be one of: whisper" in wrong_vendor[2]


async def test_what_cannot_be_transcribed_again_is_said(tmp_path: Path) -> None:
    waits = recogniser(tmp_path, "waits_for_leave")
    data = tmp_path / "data"
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=str(waits), KEEP_AUDIO="1s") as bridge,
        listening(bridge) as events,
    ):
        calling = asyncio.create_task(call(bridge, rate=1.0))
        await eventually(lambda: bool(of_type(events, "session.started")), "a call", bridge)
        path = f"/api/sessions/{events[0]['subject']}/transcriptions"
        while_recording, why = await bridge.post(path, {})
        await calling
        waits.with_suffix(".go").touch()
        await finals(bridge, events)
    async with running_bridge(data, WHISPER_BINARY_PATH=str(waits), KEEP_AUDIO="1s") as bridge:
        await bridge.wait_for_log("retention.audio_deleted")
        deleted, since = await bridge.post(path, {})
        code, _, err = await command("sessions", "transcribe", str(events[0]["subject"]), data=data)

    assert (while_recording, json.loads(why)["error"]) == (
        409,
        "the session is recording, its audio not finished",
    )
    assert deleted == 410
    assert "the audio was deleted at" in since
    assert (code, "the audio was deleted at" in err) == (1, True)


async def test_jobs_survive_a_broken_recogniser_and_are_done_when_it_works(
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
            TRANSCRIPTION_CIRCUIT="1",
        ) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        line = await bridge.wait_for_log("recogniser.broken")
        status, ready = await bridge.get("/health/ready")
        async with asyncio.timeout(60):
            while True:  # it runs, too, while the recogniser is probed
                (job,) = (await asked(bridge, "/api/jobs"))["jobs"]
                backlog = await asked(bridge, "/api/backlog")
                _, listed, _ = await command("jobs", "list", data=data)
                if job["state"] == "queued" and backlog["jobs"] and "number 1 in" in listed:
                    break
        _, metrics = await bridge.get("/metrics")
        binary.with_suffix(".works").touch()
        (final,) = await finals(bridge, events)
        after = await asked(bridge, "/api/backlog")
        healthy, _ = await bridge.get("/health/ready")

    assert (line["vendor"], line["cause"]) == ("whisper", "exit_code: exit code 3")
    assert (status, json.loads(ready)["degraded"]) == (200, True)
    assert json.loads(ready)["facts"]["recogniser"] == "broken: exit_code: exit code 3"
    assert (job["state"], job["attempts"], job["position"]) == ("queued", 0, 1)
    assert (backlog["jobs"], backlog["eta_seconds"]) == (1, None)
    (vendor,) = backlog["vendors"]
    assert (vendor["state"], vendor["waiting"]) == ("broken", 1)
    assert 'siprec_vendor_circuit_open{vendor="whisper"} 1.0' in metrics
    assert of_type(events, "transcript.failed") == []
    assert len(final["data"]["utterances"]) == 2
    assert (after["jobs"], after["eta_seconds"], healthy) == (0, 0.0, 200)
    assert bridge.logged("recogniser.works_again")


SECOND = """
from siprec_providers.whisper import WhisperCli

class Second(WhisperCli):
    name = "second"

    @classmethod
    def from_options(cls, options):
        return super().from_options(dict(options) | {"WHISPER_BINARY_PATH": options["SECOND_PATH"]})
"""


async def test_the_next_vendor_gets_what_the_first_gives_up_from_the_stored_audio(
    tmp_path: Path,
) -> None:
    installed = tmp_path / "installed"
    about = installed / "second-1.0.dist-info"
    about.mkdir(parents=True)
    (installed / "second_vendor.py").write_text(SECOND)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[siprec_bridge.providers]\nsecond = second_vendor:Second\n"
    )
    poisoned = recogniser(tmp_path, "fails_at_calls")
    speaks = recogniser(tmp_path, "speaks")
    async with (
        running_bridge(
            tmp_path / "data",
            PYTHONPATH=os.pathsep.join(
                filter(None, (str(installed), os.environ.get("PYTHONPATH")))
            ),
            SUPPORTED_VENDORS="whisper,second",
            WHISPER_BINARY_PATH=str(poisoned),
            SECOND_PATH=str(speaks),
            TRANSCRIPTION_ATTEMPTS="2",
            TRANSCRIPTION_RETRY_DELAY="100ms",
            TRANSCRIPTION_FALLBACK_AFTER="1h",
        ) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        (final,) = await finals(bridge, events)
        (job,) = (await asked(bridge, "/api/jobs"))["jobs"]
        _, metrics = await bridge.get("/metrics")

    assert final["data"]["provider"] == "second"
    assert (job["vendor"], job["tried"], job["state"]) == ("second", "whisper", "done")
    assert 'siprec_fallbacks_total{to="second",vendor="whisper"} 1.0' in metrics
    assert 'siprec_vendor_circuit_open{vendor="whisper"} 0.0' in metrics
    # Twice the call, and once a tone that it could do: so the call is to blame.
    assert len(calls(poisoned)) == 3
