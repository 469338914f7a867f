"""Erasing a person and exporting a session over HTTP and from the command line."""

import asyncio
import io
import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.test_access import desk
from harness.tokens import given
from siprec_bridge.cli import app

DPO = given("dpo", "erase")
READER = given("reader", "read")
SALES = given("sales", "read,erase", "participant=sip:*@sales.example.com")
WHOM = {"participant": "sip:agent@sales.example.com"}


async def test_nothing_is_erased_unless_it_is_said_so(tmp_path: Path) -> None:
    async with desk(tmp_path, DPO, READER) as place:
        seen = await place.ask("POST /api/erasures", DPO.headers, body=WHOM)
        still = await place.ask("GET /api/sessions", READER.headers)
        done = await place.ask(
            "POST /api/erasures", DPO.headers, body=WHOM | {"dry_run": False, "reason": "Art. 17"}
        )
        after = await place.ask("GET /api/sessions", READER.headers)
        lines = await place.ask("GET /api/erasures", DPO.headers)

    def aors(answer: tuple[int, object]) -> list[object]:
        assert isinstance(answer[1], dict)
        return [one["participants"][0]["aor"] for one in answer[1]["sessions"]]

    assert [one["outcome"] for one in seen[1]["sessions"]] == ["due", "due"]
    assert aors(still) == ["sip:agent@sales.example.com", "sip:agent@example.com",
                           "sip:agent@sales.example.com"]  # fmt: skip
    assert [one["outcome"] for one in done[1]["sessions"]] == ["erased", "erased"]
    assert aors(after) == [None, "sip:agent@example.com", None]
    (line,) = lines[1]["erasures"]
    assert (line["by"], line["reason"]) == ("dpo", "Art. 17")
    assert line["sessions"] == {"erased": ["s1", "s3"]}


async def test_what_is_asked_is_checked_and_limited_tokens_erase_nobody(tmp_path: Path) -> None:
    async with desk(tmp_path, DPO, SALES) as place:
        wrong = await place.ask("POST /api/erasures", DPO.headers, body={"participant": "agent"})
        unknown = await place.ask("POST /api/erasures", DPO.headers, body=WHOM | {"all": True})
        limited = await place.ask("POST /api/erasures", SALES.headers, body=WHOM)

    assert wrong == (400, {"error": "participant: sip:user@host, tel:+number or +number is needed"})
    assert unknown[0] == 400
    assert limited[0] == 403


async def test_an_export_is_a_zip_file_for_those_who_may_see_the_session(tmp_path: Path) -> None:
    async with desk(tmp_path, READER, SALES) as place:
        url = f"{place.url}/api/sessions/s1/export"
        async with place.http.get(url, headers=READER.headers) as answer:
            data, headers = await answer.read(), answer.headers
        async with place.http.head(url, headers=READER.headers) as head:
            only = head.headers["Content-Type"]
        hidden = await place.ask("GET /api/sessions/{id}/export", SALES.headers, id="s2")

    assert headers["Content-Disposition"] == 'attachment; filename="s1.zip"'
    assert only == "application/zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("s1/session.json"))["id"] == "s1"
    assert hidden[0] == 404


async def test_the_command_line_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, DPO):
        pass
    (tmp_path / "bridge.db").rename(tmp_path / "siprec-bridge.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))

    async def run(*arguments: str) -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        return result.exit_code, result.output

    exported = await run("sessions", "export", "s1")
    again = await run("sessions", "export", "s1")
    shown = await run("erase", "--participant", WHOM["participant"])
    no_key = await asyncio.to_thread(
        CliRunner().invoke, app, ["erase", "--participant", "+4930901820", "--identity", "none.key"]
    )
    held = await run("sessions", "hold", "s3")
    done = await run(
        "erase", "--participant", WHOM["participant"], "--by", "dpo", "--yes", "--json"
    )

    assert exported == (0, "s1.zip is written; without a.wav\n")
    assert zipfile.is_zipfile(tmp_path / "s1.zip")
    assert again[0] == 1
    assert shown[0] == 0
    assert shown[1].endswith("2 sessions; nothing was changed: say --yes\n")
    assert "--identity none.key" in str(no_key.exception)
    assert held[0] == 0
    assert done[0] == 1  # one was left
    assert [one["outcome"] for one in json.loads(done[1])] == ["erased", "held"]
