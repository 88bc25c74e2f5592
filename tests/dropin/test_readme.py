"""tests/README.md's lists of what users can keep doing and what needs a call: every row names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
README = TESTS / "README.md"


def rows() -> list[str]:
    section = README.read_text().split("## What you can keep doing")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith("| you do |")]


def test_there_are_rows() -> None:
    assert len(rows()) > 20


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_row_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(\w+/\w+\.py)::(\w+)`", row.split("|")[-2])
    assert named, "the last column names the test that shows it"
    for file, name in named:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), f"{file} has no {name}"
