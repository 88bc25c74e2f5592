"""flatvars/REFERENCE.md says what the tests show: every row has a test or a reason, and every place exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([A-Z]+(?:-[A-Z]+)?-\d+) \| (.+?) \| (.+?) \| (.+) \|$")


def page() -> dict[str, tuple[str, str]]:
    """Row to (where, how)."""
    lines = (ROOT / "flatvars" / "REFERENCE.md").read_text(encoding="utf-8").splitlines()
    found = [match.groups() for match in map(ROW.match, lines) if match]
    rows = {row: (where, how) for row, _, where, how in found}
    assert len(rows) == len(found), "a row comes twice"
    return rows


def marked() -> dict[str, list[str]]:
    """Row to the tests that carry it, read from the source: `@pytest.mark.row("T-VS-01", ...)`."""
    rows: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{path}:{node.lineno} names a row that is no literal"
                    rows.setdefault(argument.value, []).append(f"{path.name}:{node.lineno}")
    return rows


def test_every_row_is_shown_or_refused_with_a_reason() -> None:
    tests = marked()
    silent = [row for row, (_, how) in page().items() if row not in tests and not how.startswith("refused")]
    assert not silent


def test_every_row_a_test_names_is_on_the_page() -> None:
    known = page()
    assert not {row: where for row, where in marked().items() if row not in known}


def test_every_place_exists() -> None:
    for row, (where, _) in page().items():
        for place in re.findall(r"`([^`]+)`", where):
            assert (ROOT / "flatvars" / place).exists(), f"{row} lives in {place}, which does not exist"
