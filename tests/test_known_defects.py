"""Every defect that was found in the five older systems has a test that names it, and the page that says so is true."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "older-systems.md"
FOUND = {"000": 12, "001": 6, "002": 7, "003": 10, "004": 8}
"""How many defects each system had."""
ROW = re.compile(r"\| (00[0-4]-\d+) \| [^|]+ \| ([^|]+) \|")
ROWS = dict(ROW.findall(PAGE.read_text(encoding="utf-8")))
LATER = {"001-3"}
"""Defects of what this project does not have yet: scripts that deploy."""


@cache
def words_of(test: str) -> str:
    """The name and the promise of a test, given as FILE::NAME."""
    path, name = test.split("::")
    tree = ast.parse((Path(__file__).parent / path).read_text(encoding="utf-8"))
    found = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return next(f"{name} {ast.get_docstring(one)}" for one in found if one.name == name)


def test_the_page_has_a_row_for_every_defect() -> None:
    """None is left out, and none is made up."""
    assert [f"{system}-{number}" for system, count in FOUND.items() for number in range(1, count + 1)] == list(ROWS)


@pytest.mark.parametrize("defect", sorted(ROWS.keys() - LATER))
def test_a_test_names_the_defect(defect: str) -> None:
    """Each test of the row exists, and one of them has the defect's number in its name or in its promise."""
    tests = re.findall(r"`([^`]+)`", ROWS[defect])
    numbers = re.compile(rf"\b{defect}\b|_{defect.replace('-', '_')}_")

    assert any(numbers.search(words) for words in map(words_of, tests))


@pytest.mark.parametrize("defect", sorted(LATER))
def test_what_cannot_be_tested_yet_says_so(defect: str) -> None:
    """With the reason; a row of this kind never looks like a test."""
    assert ROWS[defect].startswith("none: ")
