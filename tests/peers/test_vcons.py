"""A call of our caller at a real bridge, as a vCon by event, API and command."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.bridge import command, eventually, listening, of_type, running_bridge
from harness.calls import call, tones
from harness.database import opened
from harness.recognisers import recogniser
from harness.rtp import tone
from harness.vcons import checked, self_signed
from siprec_bridge.caller import Leg
from siprec_bridge.cli.commands import app
from siprec_bridge.provider import ConfigurationError

PUBLIC = "https://bridge.example.com"


async def test_a_call_is_the_same_vcon_by_event_api_and_command(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    data = tmp_path / "data"
    _, bob = tones(1.0)
    zoe = Leg("Zoë 李", "sip:+4930123456@pbx.example.com", tone(440, 1.0))
    settings = {"HTTP_PUBLIC_URL": PUBLIC, "VCON_EVENTS": "url"}
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks, **settings) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge, legs=(zoe, bob))
        await eventually(lambda: bool(of_type(events, "session.vcon")), "a vCon", bridge)
        (event,) = of_type(events, "session.vcon")
        id = event["subject"]
        asked = [
            await bridge.get(f"/api/sessions/{id}/vcon?audio={one}") for one in ("url", "inline")
        ]
        legs = await bridge.get(f"/api/sessions/{id}/vcon?files=legs")
        out = tmp_path / "call.vcon"
        wrote = await command(
            "sessions", "vcon", id, "--out", str(out), "--audio", "inline", data=data, **settings
        )

    assert [one["type"] for one in events][-2:] == ["transcript.final", "session.vcon"]
    told = checked(json.dumps(event["data"]["vcon"]))
    assert [status for status, _ in asked] == [200, 200]
    assert checked(asked[0][1]) == told
    along = checked(asked[1][1])
    assert wrote[:2] == (0, f"{out}: {out.stat().st_size:,} octets\n")
    assert checked(out.read_bytes()) == along
    assert [one.get("name") for one in told["parties"][:2]] == ["Zoë 李", "Bob"]
    assert told["parties"][0]["tel"] == "tel:+4930123456"
    said = told["analysis"][0]["body"]["utterances"]
    assert {(one["party"], one["dialog"], one["text"]) for one in said} == {
        (0, 0, "hello there"), (1, 0, "hello there"),
    }  # fmt: skip
    assert legs[0] == 200
    parties = [one["parties"] for one in checked(legs[1])["dialog"]]
    assert parties == [[0], [1], [0, 1]]
    for by_url, inline in zip(told["dialog"], along["dialog"], strict=True):
        assert by_url["parties"] == [0, 1]
        octets = (data / "recordings" / id / by_url["filename"]).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha512(octets).digest()).decode().rstrip("=")
        assert by_url["url"] == f"{PUBLIC}/api/sessions/{id}/audio/{by_url['filename']}"
        assert by_url["content_hash"] == f"sha512-{digest}"
        assert base64.urlsafe_b64decode(inline["body"] + "==") == octets
    assert told["attachments"][0]["body"]["sip_call_id"] == event["data"]["sip_call_id"]


async def _make_database(file: Path) -> None:
    async with opened(f"sqlite:///{file}"):
        pass


def test_the_command_says_what_it_cannot_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    asyncio.run(_make_database(tmp_path / "siprec-bridge.db"))

    unknown = CliRunner().invoke(app, ["sessions", "vcon", "none"])
    nowhere = CliRunner().invoke(app, ["sessions", "vcon", "none", "--audio", "url"])
    keyless = CliRunner().invoke(app, ["sessions", "vcon", "none", "--form", "signed"])
    self_signed(tmp_path)
    (tmp_path / "other").mkdir()
    self_signed(tmp_path / "other")
    monkeypatch.setenv("VCON_SIGN_CERT_PATH", str(tmp_path / "signer.pem"))
    monkeypatch.setenv("VCON_SIGN_KEY_PATH", str(tmp_path / "other" / "signer.key"))
    another = CliRunner().invoke(app, ["sessions", "vcon", "none"])

    assert (unknown.exit_code, unknown.stderr) == (1, "siprec-bridge: there is no session none\n")
    assert isinstance(nowhere.exception, ConfigurationError)
    assert "HTTP_PUBLIC_URL is needed" in str(nowhere.exception)
    assert "--form signed: VCON_SIGN_CERT_PATH is needed" in str(keyless.exception)
    assert "the key is not that of the first certificate" in str(another.exception)
