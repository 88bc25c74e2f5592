"""What users call says what it takes: no open `**options`, no free string where a few words are meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import flatvars as fv

OPEN = {"RuleOptimizer": {"numbers"}, "muon_settings": {"changes"}}
"""Arguments that stand for a rule's own numbers, or for another class's."""

FREE = {"prefix", "shard_size"}
"""Arguments that may be any text."""


def public() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Name, function and documentation of all that users call."""
    for module in (fv.optim, fv.nn, fv.init, fv.checkpoint, fv):
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isfunction(item):
                yield name, item, item.__doc__ or ""
            elif inspect.isclass(item) and not issubclass(item, BaseException):
                yield name, item.__init__, item.__doc__ or ""
                for key, method in members(item).items():
                    method = getattr(method, "__func__", method)
                    if inspect.isfunction(method) and not key.startswith("_"):
                        yield f"{name}.{key}", method, method.__doc__ or ""


def members(item: type) -> dict[str, Any]:
    """What a class has of its own, or of the classes that it is put together from."""
    parts = [base for base in reversed(item.__mro__) if base.__module__.startswith("flatvars.store.")]
    return {key: method for part in parts or [item] for key, method in vars(part).items()}


def arguments(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]


def test_no_argument_is_open_and_none_is_a_free_string() -> None:
    found = []
    for name, function, _ in public():
        for parameter in arguments(function):
            is_open = parameter.kind is parameter.VAR_KEYWORD and parameter.name not in OPEN.get(name, ())
            is_text = isinstance(parameter.default, str) and parameter.name not in FREE
            if is_open or (is_text and re.fullmatch(r"str( \| None)?", str(parameter.annotation))):
                found.append(f"{name}({parameter})")
    assert found == []


@pytest.mark.parametrize("module", [fv.optim, fv.nn], ids=["optim", "nn"])
def test_every_argument_is_documented_where_it_stands(module: Any) -> None:
    silent = {}
    for name, function, text in public():
        if hasattr(module, name):
            found = re.findall(r"(?m)^ {4}((?:\w+, )*\w+):", inspect.cleandoc(text))  # from 3.13 on it is clean already
            listed = set(re.findall(r"\w+", " ".join(found)))
            missing = [p.name for p in arguments(function) if p.kind is not p.VAR_POSITIONAL and p.name not in listed]
            if (missing and "Args:" in text) or len(missing) > 2:
                silent[name] = missing
    assert silent == {}


SAME = [n for n in fv.optim.__all__ if n != "Optimizer" and isinstance(getattr(torch.optim, n, None), type)]


@pytest.mark.parametrize("name", SAME)
def test_optimizers_take_what_torchs_take(name: str) -> None:
    """Every argument with its default, and those without a name in the same places."""
    theirs = arguments(getattr(torch.optim, name).__init__)
    mine = arguments(getattr(fv.optim, name).__init__)
    defaults = {parameter.name: parameter.default for parameter in mine}
    assert {p.name: p.default for p in theirs} == {p.name: defaults.get(p.name, "missing") for p in theirs}
    placed = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in mine][: len(placed)] == placed


def test_a_listing_shows_what_users_call() -> None:
    assert set(dir(fv)) == {*fv.__all__, "__doc__", "__file__", "__name__", "__version__"}
    assert all(hasattr(fv, name) for name in dir(fv))
