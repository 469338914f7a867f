"""Taking out of a stored session, over HTTP, what the policy names."""

from pathlib import Path

from api.test_access import desk
from harness.tokens import given

DPO = given("dpo", "erase,read")
READER = given("reader", "read")
SALES = given("sales", "erase", "participant=sip:*@sales.example.com")
PATH = "POST /api/sessions/{id}/redaction"


async def test_nothing_is_taken_out_unless_it_is_said_so_and_then_with_a_line_in_the_audit(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, DPO) as place:
        shown = await place.ask(PATH, DPO.headers, body={})
        before = await place.ask("GET /api/sessions/{id}", DPO.headers)
        done = await place.ask(PATH, DPO.headers, body={"dry_run": False, "reason": "card in it"})
        audio = await place.ask("GET /api/sessions/{id}/audio/{name}", DPO.headers)
        again = await place.ask(PATH, DPO.headers, body={"dry_run": False})
        lines = await place.ask("GET /api/erasures", DPO.headers)

    assert (shown[1]["dry_run"], shown[1]["outcome"], done[1]["outcome"]) == (
        True, "due", "redacted",
    )  # fmt: skip
    assert before[1]["audio"]["withheld"] is False
    # Nobody has transcribed it, so nobody can tell what is in it.
    assert (done[1]["withheld"], audio[0]) == (True, 409)
    assert again[1]["outcome"] == "clean"
    (line,) = lines[1]["erasures"]
    assert (line["action"], line["by"], line["reason"]) == ("redact", "dpo", "card in it")
    assert line["sessions"] == {"audio_withheld": ["s1"], "redacted": ["s1"]}


async def test_only_sessions_that_a_token_may_see_and_wishes_that_are_known_are_heard(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, DPO, SALES, READER) as place:
        hidden = await place.ask(PATH, SALES.headers, id="s2", body={})
        seen = await place.ask(PATH, SALES.headers, id="s1", body={})
        reader = await place.ask(PATH, READER.headers, body={})
        unknown = await place.ask(PATH, DPO.headers, body={"all": True})

    assert (hidden[0], seen[0], reader[0], unknown[0]) == (404, 200, 403, 400)
