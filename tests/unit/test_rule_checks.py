"""A user's rule is checked when it is made: what no step should have to find out, with its line and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.errors import RuleError
from flatvars.kernels import rules
from flatvars.kernels.lang import tl

Body = Callable[..., Any]


def power(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta**step * g, state


def branch(p, g, state, hyper, step):
    if step == 1.0:
        return p, state
    return p - hyper.lr * hyper.beta * g, state


def choice(p, g, state, hyper, step):
    return (p if step == 1.0 else p - hyper.lr * hyper.beta * g), state


def loop(p, g, state, hyper, step):
    for _ in range(3):
        p = p - hyper.lr * hyper.beta * g
    return p, state


def foreign_call(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta * torch.sign(g), state


def unknown_word(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta * tl.cumsum(g), state


def unknown_number(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta * hyper.gamma * g, state


def unused_number(p, g, state, hyper, step):
    return p - hyper.lr * g, state


def too_many(p, g, state, hyper, step):
    lr, beta, gamma = hyper
    return p - lr * beta * gamma * g, state


def state_it_has_not(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta * state[0], state


def another_number_of_states(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta * g, (g,)


def no_pair(p, g, state, hyper, step):
    return p - hyper.lr * hyper.beta * g


def other_arguments(p, g, hyper):
    return p - hyper.lr * hyper.beta * g, ()


WRONG: dict[Body, tuple[int | None, str]] = {
    power: (1, "tl.exp"),
    branch: (1, "tl.where"),
    choice: (1, "tl.where"),
    loop: (1, "one after the other"),
    foreign_call: (1, "torch.sign"),
    unknown_word: (1, "cumsum"),
    unknown_number: (1, "gamma"),
    unused_number: (0, "beta"),
    too_many: (1, "3 names are unpacked"),
    state_it_has_not: (1, "0 of them"),
    another_number_of_states: (1, "1 states are returned"),
    no_pair: (1, "return p"),
    other_arguments: (None, "p, g, state, hyper, step"),
}


@pytest.mark.parametrize("body", WRONG, ids=lambda body: body.__name__)
def test_a_wrong_rule_is_refused_where_it_is_made(body: Body) -> None:
    line, words = WRONG[body]
    with pytest.raises(RuleError) as caught:
        fv.optim.rule(hyper=("lr", "beta"))(body)
    assert words in str(caught.value)
    assert body.__name__ in str(caught.value)
    if line is not None:
        assert str(body.__code__.co_firstlineno + line) in str(caught.value)


@fv.optim.rule(states=("momentum",), hyper=("lr", "beta"))
def right(p, g, state, hyper, step):
    momentum = hyper.beta * state[0] + (1.0 - hyper.beta) * g
    return p - hyper.lr * tl.sign(momentum) * tl.exp(0.0 - step), (momentum,)


def test_a_right_rule_compiles_for_both() -> None:
    right.check()
    store = fv.VarStore.from_module(nn.Linear(3, 2))
    optimizer = fv.optim.RuleOptimizer(store, right, lr=0.5, beta=0.0)
    before = store["weight"].value.clone()
    for variable in store.variables().values():
        variable.param.grad = torch.full_like(variable.param, -2.0)
    optimizer.step()
    moved = store["weight"].value - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5 * torch.e**-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        ({"lr": 0.1, "beta": 0.9, "max_nrom": 1.0}, TypeError, "max_nrom"),
        ({"lr": 0.1}, ValueError, "beta"),
    ],
    ids=["misspelled", "missing"],
)
def test_an_optimizer_takes_the_numbers_of_its_rule(
    numbers: dict[str, Any], error: type[Exception], words: str
) -> None:
    store = fv.VarStore.from_module(nn.Linear(3, 2))
    with pytest.raises(error, match=words):
        fv.optim.RuleOptimizer(store, right, **numbers)


@pytest.mark.parametrize("names", [("lr", "lr"), ("lr", "2nd"), ("lr", "params"), ("lr", "class")], ids=str)
def test_names_that_are_none(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=names[1]):
        fv.optim.rule(hyper=names)


def test_averages_of_squares_are_rounded_at_random() -> None:
    """Where they are stored in few bits: to nearest, they would stand still."""
    found = [one for one in vars(rules).values() if isinstance(one, rules.Rule) and "exp_avg_sq" in one.states]
    assert len(found) > 10
    assert [one.name for one in found if "exp_avg_sq" not in one.stochastic] == []
