"""docs/conformance.md: each line there is shown by tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
IDS = [
    f"{kind}{number:02}"
    for kind, last in (("C", 44), ("M", 9), ("O", 5))
    for number in range(1, last + 1)
]


def rows() -> list[list[str]]:
    """The cells of every row that begins with an id."""
    lines = (ROOT / "docs" / "conformance.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if re.fullmatch(r"[A-Z]\d\d", row[0])]


@cache
def known_tests(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    )


def test_every_line_of_the_list_is_there_once_and_in_order() -> None:
    assert [row[0] for row in rows()] == IDS


def test_every_line_has_a_state_and_tests_that_exist() -> None:
    for id, requirement, state, shown in rows():
        assert requirement
        assert state in ("yes", "partly", "later", "no"), id
        named = re.findall(r"`([^`]+)`", shown)
        assert bool(named) is (state in ("yes", "partly")), id
        assert ("Missing:" in requirement) is (state == "partly"), id
        for one in named:
            file, _, name = one.partition("::")
            assert name in known_tests(file), f"{id}: {one}"
