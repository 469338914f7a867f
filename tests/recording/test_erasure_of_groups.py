"""A person whose number the SRC has put into the ids of groups is erased from there, too."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from recording.test_erasure import BOB, CAROL, START, Desk, desk, document, everything, rows_refused
from siprec_bridge.delivery import envelope
from siprec_bridge.recording import Identifier
from siprec_bridge.siprec import CommunicationSession
from siprec_bridge.store import erasure, groups, outbox, recordings
from siprec_bridge.vault import Layout

NUMBER = "4930901820"
BOBS = Identifier.parse(f"tel:+{NUMBER}")
GROUP = f"call-+{NUMBER}-77"


async def add(here: Desk, id: str, minutes: int, *, with_bob: bool, group: str = GROUP) -> None:
    """A session of the group; of Bob, or of Carol alone after he has gone."""
    said = document(id).model_copy(
        update={
            "group_id": group,
            "communication_sessions": (f"cs-{NUMBER}", "cs-1"),
            "described_sessions": (CommunicationSession(id=f"cs-{NUMBER}", group_id=group),),
        }
    )
    if not with_bob:
        said = said.model_copy(update={"participants": (CAROL,), "streams": said.streams[:1]})
    await here.add(
        id, document=said.model_dump_json(), group_id=group,
        started_at=START + timedelta(minutes=minutes),
    )  # fmt: skip
    event = envelope.group_transcribed(
        id, f"c-{id}", group_id=group, call_ids={}, sessions=[(id, 1)], at=START
    )
    await here.database.write(lambda c: outbox.append(c, [event], ["amqp"]))


async def joined(here: Desk, group: str) -> list[str]:
    rows = await here.database.read(lambda c: groups.sessions_of(c, group))
    return [row.id for row in rows]


async def test_the_number_is_nowhere_and_the_group_is_still_one(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.database.write(lambda c: recordings.update(c, "s-1", held="{}"))
        await add(here, "s-3", 3, with_bob=True)
        await add(here, "s-2", 2, with_bob=False)
        await add(here, "s-4", 4, with_bob=False, group="another")

        found = await here.eraser.erase(BOBS, by=None, reason=None)

        sessions = [await here.row(id) for id in ("s-2", "s-3", "s-4")]
        events = await here.events()
        left = await joined(here, GROUP)
        group = await joined(here, "erased-s-2")
    content = everything(tmp_path)

    outcomes = {one.session_id: (one.outcome, one.participant_ids) for one in found}
    assert outcomes == {
        "s-1": ("held", (BOB.id,)),
        "s-2": ("erased", ()),
        "s-3": ("erased", (BOB.id,)),
    }
    assert (left, group) == ([], ["s-2", "s-3"])
    documents = [json.loads(row.document) for row in sessions if row is not None]
    assert [one["group_id"] for one in documents] == ["erased-s-2", "erased-s-2", "another"]
    assert NUMBER not in json.dumps(documents[:2])
    # Carol's voice stays in the session that Bob was not in.
    assert documents[0]["participants"][0]["aor"] == CAROL.aor
    told = [json.loads(one.body) for one in events if one.session_id in ("s-2", "s-3")]
    assert {one.get("group_id") for one in told} == {None, "erased-s-2"}
    assert NUMBER not in json.dumps(told)
    assert GROUP.encode() not in content


async def test_cut_off_the_same_request_gives_the_rest_the_same_name(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        for minutes, id in enumerate(("s-2", "s-3", "s-4"), 2):
            await add(here, id, minutes, with_bob=id == "s-3")
        hold = {"held": "{}"}
        await here.database.write(lambda c: recordings.update(c, "s-3", **hold))  # type: ignore[arg-type]

        first = await here.eraser.erase(BOBS, by=None, reason=None)
        await here.database.write(lambda c: recordings.update(c, "s-3", held=None))
        with rows_refused(tmp_path):
            cut_off = await here.eraser.erase(BOBS, by=None, reason=None)
        again = await here.eraser.erase(BOBS, by=None, reason=None)
        nothing = await here.eraser.erase(BOBS, by=None, reason=None)
        left = [await joined(here, name) for name in (GROUP, "erased-s-2", "erased-s-3")]
        lines = await here.database.read(lambda c: erasure.lines(c, 9))

    def outcomes(found: Any) -> dict[str, str]:
        return {one.session_id: one.outcome for one in found}

    assert outcomes(first) == {
        "s-1": "erased", "s-4": "erased", "s-3": "held", "s-2": "erased",
    }  # fmt: skip
    assert (outcomes(cut_off), outcomes(again), nothing) == (
        {"s-3": "failed"}, {"s-3": "erased"}, [],
    )  # fmt: skip
    # What was under hold when its group was renamed cannot know by what.
    assert left == [[], ["s-2", "s-4"], ["s-3"]]
    assert [json.loads(line.detail) for line in lines] == [
        {}, {"erased": ["s-3"]}, {"failed": ["s-3"]},
        {"erased": ["s-1", "s-4", "s-2"], "held": ["s-3"]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("whom", "group", "names"),
    [
        ("+4930901820", "49-30-901820", True),
        ("+4930901820", "x4930901820y", True),
        ("+4930901820", "cisco-StandAloneCluster-24930901820", False),
        ("+101", "4f101a07-11e4", False),
        ("+101", "101-7", True),
        ("sip:anna@example.com", "sip:anna@example.com;7", True),
        ("sip:anna@example.com", "joanna@example.com", False),
        ("sip:anna@example.com", "anna-7", False),
    ],
)
def test_a_group_is_made_of_an_address_that_stands_in_it_whole(
    whom: str, group: str, names: bool
) -> None:
    assert Identifier.parse(whom).names(group) is names


async def test_no_folder_of_the_archive_is_named_after_who_is_in_the_call(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await add(here, "s-2", 2, with_bob=True)
        await add(here, "s-3", 3, with_bob=True, group="another")
        await here.add(
            "s-4", started_at=START + timedelta(minutes=4), sip_call_id=f"{NUMBER}-1@pbx"
        )
        await here.keep(layout=Layout("{group}/{call_id}/{session}"))

        folders = {
            str(path.parent.relative_to(tmp_path / "store"))
            for path in (tmp_path / "store").rglob("manifest.json")
        }

    assert folders == {"none/c-s-1/s-1", "none/c-s-2/s-2", "another/c-s-3/s-3", "none/none/s-4"}
