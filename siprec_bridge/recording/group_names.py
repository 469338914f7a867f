"""Ids of groups that name a person, since the SRC has made them of an address: what stands in their place."""

import re
from collections.abc import Collection, Iterable

from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import SessionRow


def groups_of(document: SessionDocument) -> frozenset[str]:
    """Ids of the groups that a session says that it is of."""
    ids = {document.group_id, *(one.group_id for one in document.described_sessions)}
    return frozenset(filter(None, ids))


def stands_in(text: str, whole: str) -> bool:
    """Whether a text is in another one as a word of its own, or several."""
    return re.search(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", whole) is not None


def number_stands_in(digits: str, whole: str) -> bool:
    """The same of a telephone number, however it is written. A long one may be between letters."""
    border = r"\d" if len(digits) >= 7 else r"[^\W_]"
    number = r"[\s().-]*".join(digits)
    return re.search(rf"(?<!{border})(?:00)?{number}(?!{border})", whole) is not None


def renamed(sessions: Iterable[tuple[SessionRow, Collection[str]]]) -> dict[str, str]:
    """What each group is called from now on: after the first of its sessions, so that it stays one."""
    names: dict[str, str] = {}
    for row, groups in sorted(sessions, key=lambda one: (one[0].started_at, one[0].id)):
        for group in groups:
            names.setdefault(group, f"erased-{row.id}")
    return names
