"""Which kinds of things are taken out, and how each is named in their place."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

Kind = Literal["cards", "emails", "phones", "ids", "ibans"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

DEFAULT_REGIONS: Final = ("US", "GB", "DE", "FR", "ES")


@dataclass(frozen=True, slots=True)
class Policy:
    """Kinds to take out; none: everything stays.

    `regions`: countries (ISO 3166) whose telephone numbers are known without their country code.
    """

    kinds: frozenset[Kind] = frozenset()
    regions: tuple[str, ...] = DEFAULT_REGIONS

    def __bool__(self) -> bool:
        return bool(self.kinds)


def parse_kinds(names: Iterable[str]) -> frozenset[Kind]:
    """Read names of kinds; `all` is every kind, `off` none. Raises ValueError that names the wrong one."""
    given = [name.strip().lower() for name in names if name.strip()]
    if given == ["off"]:
        return frozenset()
    if given == ["all"]:
        return frozenset(KINDS)
    for name in given:
        if name not in KINDS:
            raise ValueError(f"{name} is no kind; there are: off, all, or of {', '.join(KINDS)}")
    return frozenset(kind for kind in KINDS if kind in given)
