"""Where a session's objects lie."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from siprec_bridge.vault import Layout

AT = datetime(2026, 5, 4, 1, 30, tzinfo=timezone(timedelta(hours=2)))
FACTS = {
    "session": "s1",
    "call_id": "a/../b@h;x",
    "group": None,
    "tenant": "acme",
    "peer": "2001:db8::1",
    "node": ".",
}


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{year}/{month}/{day}/{session}", "2026/05/03/s1"),
        ("{peer}/{year}-{month}-{day}T{hour}/{session}", "2001_db8_1/2026-05-03T23/s1"),
        # What a stranger has chosen makes no folders of its own and leads nowhere else.
        ("{call_id}/{session}", "a_.._b@h_x/s1"),
        ("{node}/{session}", "_/s1"),
        ("{group}/{tenant}/{session}", "none/acme/s1"),
    ],
)
def test_a_key_can_be_read_and_leads_nowhere_else(template: str, key: str) -> None:
    assert Layout(template).key(AT.astimezone(UTC), FACTS) == key


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{year}/{month}", "needs {session}"),
        ("{trunk}/{session}", "these are known: year"),
        ("/{session}", "folder/folder"),
        ("a/../{session}", "folder/folder"),
        ("a b/{session}", "only letters"),
        ("{session}/{", "these are known"),
    ],
)
def test_a_template_that_makes_no_place_for_each_session_is_refused(
    template: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Layout(template)
