"""Which variables a selector means: exact names, globs, regular expressions, predicates, exclusions."""

from __future__ import annotations

import re
from typing import Any

import pytest

import flatvars as fv
from flatvars.variables.selectors import Selector

NAMES = ["encoder.0.weight", "encoder.0.bias", "encoder.10.weight", "decoder.weight", "head"]
SELECTIONS: dict[str, tuple[Selector, list[int]]] = {
    "all": (None, [0, 1, 2, 3, 4]),
    "exact": ("encoder.0.bias", [1]),
    "exact-list": (["head", "encoder.0.bias"], [1, 4]),
    "glob": ("encoder.*", [0, 1, 2]),
    "glob-of-one-character": ("encoder.?.weight", [0]),
    "regex": (re.compile(r"\.weight$"), [0, 2, 3]),
    "any-of-some-regexes": ([re.compile("^head$"), re.compile("bias")], [1, 4]),
    "predicate": (lambda v: len(v.shape) == 1, [1, 4]),
    "substrings-and": (lambda v: "encoder" in v.name and "weight" in v.name, [0, 2]),
    "mixed": (["head", re.compile("^decoder"), lambda v: v.name.endswith("bias")], [1, 3, 4]),
    "exclude": (fv.select("encoder.*", exclude="*.bias"), [0, 2]),
    "exclude-alone": (fv.select(exclude=["head", re.compile("bias")]), [0, 2, 3]),
    "union": (fv.select("head") | fv.select(re.compile("^decoder")), [3, 4]),
}


def five() -> fv.VarStore:
    store = fv.VarStore()
    for name in NAMES:
        path = store.root()
        *parts, leaf = name.split(".")
        for part in parts:
            path = path / part
        path.zeros(leaf, (2, 2) if leaf == "weight" else (2,))
    return store


@pytest.mark.row("B-05")
@pytest.mark.parametrize(("selector", "expected"), SELECTIONS.values(), ids=SELECTIONS)
def test_a_selector_means(selector: Selector, expected: list[int]) -> None:
    assert [v.name for v in five().select(selector)] == [NAMES[i] for i in expected]


@pytest.mark.row("B-05")
@pytest.mark.parametrize("selector", ["encoder", ["head", "hedd"], re.compile("z$"), fv.select(exclude="nothing.*")])
def test_a_pattern_that_fits_nothing_is_an_error(selector: Any) -> None:
    with pytest.raises(fv.UnknownNameError, match="matches none of the 5 names"):
        five().select(selector)


def test_a_predicate_may_fit_nothing() -> None:
    assert five().select(lambda v: False) == []


def test_selections_with_exclusions_are_not_joined() -> None:
    with pytest.raises(ValueError, match="cannot be joined"):
        _ = fv.select("a", exclude="b") | fv.select("c")


@pytest.mark.row("J-17")
def test_selectors_partition_and_combine() -> None:
    store = five()
    matrices = store.select(lambda v: len(v.shape) > 1)
    rest = store.select(lambda v: len(v.shape) <= 1)
    assert {v.id for v in matrices} | {v.id for v in rest} == {v.id for v in store.variables().values()}
    assert not {v.id for v in matrices} & {v.id for v in rest}


def test_a_name_with_brackets_is_found_as_it_is() -> None:
    store = fv.VarStore()
    store.root().zeros("w[0]", (1,))
    store.root().zeros("w0", (1,))
    assert [v.name for v in store.select("w[0]")] == ["w[0]"]
    assert [v.name for v in store.select(fv.select("*", exclude="w[0]"))] == ["w0"]
