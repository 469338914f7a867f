"""Where in the store a session's objects lie, by a template that an operator can read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

FIELDS = (
    "year", "month", "day", "hour", "session", "call_id", "group", "tenant", "peer", "node",
)  # fmt: skip
_FIELD = re.compile(r"\{([^{}]*)\}")
_ODD = re.compile(r"[^\w.@+=-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Layout:
    """A template such as `{year}/{month}/{day}/{session}`. Raises ValueError for one that is wrong."""

    template: str

    def __post_init__(self) -> None:
        unknown = [name for name in _FIELD.findall(self.template) if name not in FIELDS]
        rest = _FIELD.sub("", self.template)
        if unknown or "{" in rest or "}" in rest:
            raise ValueError(f"of {{…}}, these are known: {', '.join(FIELDS)}")
        if "{session}" not in self.template:
            raise ValueError("needs {session}: each session has objects of its own")
        if _ODD.search(rest.replace("/", "")):
            raise ValueError("only letters, digits and . @ + = - _ / may stand in it")
        if any(part in ("", ".", "..") for part in self.template.split("/")):
            raise ValueError("is to be folder/folder, without / at its ends")

    def __str__(self) -> str:
        return self.template

    def key(self, started_at: datetime, facts: Mapping[str, str | None]) -> str:
        """The folder of a session; times are UTC, and what is not known is `none`.

        What strangers have chosen (a Call-ID, say) cannot lead elsewhere.
        """
        at = started_at.astimezone(UTC)
        times = {
            "year": f"{at:%Y}",
            "month": f"{at:%m}",
            "day": f"{at:%d}",
            "hour": f"{at:%H}",
        }

        def fill(found: re.Match[str]) -> str:
            value = times.get(found[1]) or facts.get(found[1]) or "none"
            return _ODD.sub("_", value)[:200]

        parts = [_FIELD.sub(fill, part) for part in self.template.split("/")]
        return "/".join("_" if part.strip(".") == "" else part for part in parts)
