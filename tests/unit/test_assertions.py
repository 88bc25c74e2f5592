"""No assertion is hidden: every test asserts in its body, or calls a helper whose name says that it asserts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
HELPERS = ("check_", "assert_")

# Tests whose subject is that a call ends at all, by path and name; each with its reason.
EXCEPTIONS: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def called(node: ast.AST) -> Iterator[str]:
    """Names of what a function calls, without what they are attributes of."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            if isinstance(call.func, ast.Attribute):
                yield call.func.attr
            elif isinstance(call.func, ast.Name):
                yield call.func.id


def asserts(function: Function) -> bool:
    """Whether a function asserts, expects an error or a warning, or calls a helper named for that."""
    if any(isinstance(node, ast.Assert) for node in ast.walk(function)):
        return True
    return any(name in ("raises", "warns") or name.startswith(HELPERS) for name in called(function))


def functions(source: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def without_assertion(source: str) -> list[str]:
    """Tests, and helpers named as if they asserted, that do not."""
    named = [f for f in functions(source) if f.name.startswith(("test_", *HELPERS))]
    return [f.name for f in named if not asserts(f)]


def sources() -> dict[str, str]:
    return {str(path.relative_to(TESTS)): path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}


def test_every_test_asserts() -> None:
    found = {f"{path}::{name}" for path, source in sources().items() for name in without_assertion(source)}
    assert found == set(EXCEPTIONS)


def test_all_tests_were_looked_at() -> None:
    tests = [f for source in sources().values() for f in functions(source) if f.name.startswith("test_")]
    assert len(tests) > 1000


@pytest.mark.parametrize(
    ("body", "hidden"),
    [
        ("assert f() == 1", False),
        ("with pytest.raises(ValueError): f()", False),
        ("with warns(UserWarning): f()", False),
        ("check_values(f())", False),
        ("pair.assert_close()", False),
        ("torch.testing.assert_close(f(), g())", False),
        ("compare(f(), g())", True),
        ("store.check()", True),
        ("f()", True),
    ],
)
def test_what_hides_an_assertion(body: str, hidden: bool) -> None:
    assert without_assertion(f"def test_it():\n    {body}") == ["test_it"] * hidden
