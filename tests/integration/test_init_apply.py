"""Modules and stores initialized by name patterns: which rule wins, what is refused, nothing half written."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import ResNet, TiedLanguageModel
from tests.support.tolerances import assert_same_bits

from .training import assert_same, values

INIT = fv.init
RULES = {"*.bias": INIT.zeros(), "0.*": INIT.normal(), "*": INIT.ones()}


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_the_first_rule_wins() -> None:
    model = mlp()
    fv.VarStore.from_module(model, seed=2)
    INIT.apply_(model, RULES)
    assert not model[0].bias.any()
    assert_same_bits(model[0].weight.data, INIT.tensor(INIT.normal(), (4, 3), "0.weight", seed=2))
    assert bool((model[2].weight == 1).all())


def test_a_store_is_what_its_module_is() -> None:
    models = [mlp() for _ in range(2)]
    stores = [fv.VarStore.from_module(model) for model in models]
    INIT.apply_(models[0], RULES, seed=3)
    INIT.apply_(stores[1], RULES, seed=3)
    assert_same(values(models[0]), values(models[1]))
    for store in stores:
        store.check()


def test_a_part_of_a_module_has_its_own_names_and_the_stores_values() -> None:
    model = nn.Sequential(mlp(), mlp())
    store = fv.VarStore.from_module(model)
    before = values(model[0])
    INIT.apply_(model[1], {"0.weight": INIT.normal(), "*": None}, seed=3)
    assert_same(values(model[0]), before)
    assert_same_bits(store["1.0.weight"].value, INIT.tensor(INIT.normal(), (4, 3), "1.0.weight", seed=3))


def test_a_prefix_is_a_part_of_the_name() -> None:
    """Two modules of one class in one store get different values."""
    store = fv.VarStore()
    models = {name: nn.Linear(3, 4) for name in ("actor", "critic")}
    for name, model in models.items():
        store.add_module(model, name)
        INIT.apply_(model, {"weight": INIT.normal(), "bias": INIT.normal()})
    assert not torch.equal(models["actor"].weight, models["critic"].weight)
    assert_same_bits(models["critic"].bias.data, INIT.tensor(INIT.normal(), (4,), "critic.bias"))


def test_tied_parameters_are_written_once() -> None:
    model = TiedLanguageModel()
    store = fv.VarStore.from_module(model)
    INIT.apply_(model, {"head.weight": INIT.normal(), "*": None})
    variable = store["head.weight"]
    assert_same_bits(variable.value, INIT.tensor(INIT.normal(), variable.shape, variable.name))
    assert model.head.weight is model.embed.weight


def test_the_seed_of_the_store() -> None:
    model = mlp()
    store = fv.VarStore.from_module(model, seed=11)
    assert store.seed == 11
    INIT.apply_(model, RULES)
    first = values(model)
    store.seed = 12
    INIT.apply_(model, RULES)
    assert not torch.equal(model[0].weight, first["0.weight"])
    INIT.apply_(model, RULES, seed=11)
    assert_same(values(model), first)


@pytest.mark.row("T-I-09")
def test_again_is_bit_exact() -> None:
    """A trained model that is initialized again has its first loss, to the bit."""
    model = mlp()
    store = fv.VarStore.from_module(model)
    x = torch.randn(8, 3)
    optimizer = fv.optim.SGD(store, lr=1e-3)
    losses = []
    for _ in range(2):
        INIT.apply_(store, {"1.weight": INIT.ones(), "*.bias": INIT.constant(0.1), "*": INIT.kaiming_uniform()}, seed=1)
        losses.append(model(x).square().sum())
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert model(x).square().sum() < losses[-1]
    assert_same_bits(losses[0], losses[1])


@pytest.mark.row("T-I-09")
def test_no_graph_and_no_autograd() -> None:
    model = mlp()
    fv.VarStore.from_module(model)
    INIT.apply_(model, RULES)
    assert all(param.requires_grad and param.is_leaf and param.grad is None for param in model.parameters())


@pytest.mark.row("T-I-09")
def test_backward_over_old_values_is_refused() -> None:
    """Kernels do not move version counters; initialization does it for them."""
    model = nn.Linear(3, 2)
    fv.VarStore.from_module(model)
    x = torch.randn(4, 3, requires_grad=True)
    loss = model(x).sum()
    INIT.apply_(model, {"weight": INIT.ones(), "bias": None})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_variables_remember_their_initializer() -> None:
    store = fv.VarStore.from_module(mlp())
    INIT.apply_(store, {"0.weight": INIT.normal(), "*": None})
    assert store["0.weight"].initializer == INIT.normal()
    assert store["0.bias"].initializer is None


def test_buffers_are_left_alone() -> None:
    model = ResNet()
    store = fv.VarStore.from_module(model, buffers=True)
    names = {name for name, _ in model.named_buffers()}
    before = {name: store[name].value.clone() for name in names}
    INIT.apply_(store, {"*": INIT.ones()})
    assert names
    assert_same({name: store[name].value for name in names}, before)
    assert all((param == 1).all() for param in model.parameters())


def test_frozen_variables_are_written_and_stay_frozen() -> None:
    model = mlp()
    store = fv.VarStore.from_module(model)
    store.freeze("0.*")
    INIT.apply_(model, {"*": INIT.ones()})
    assert bool((model[0].weight == 1).all())
    assert not model[0].weight.requires_grad


def test_a_channels_last_convolution_has_the_values_of_a_plain_one() -> None:
    models = [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)]
    for model in models:
        fv.VarStore.from_module(model)
        INIT.apply_(model, {"weight": INIT.kaiming_normal(), "bias": INIT.zeros()})
    assert models[1].weight.stride() != models[0].weight.stride()
    assert torch.equal(models[0].weight, models[1].weight)


def broken_alias(model: nn.Sequential) -> None:
    model[2].weight.data = torch.ones(2, 4).share_memory_()  # which is not followed


@pytest.mark.parametrize(
    ("rules", "spoil", "error", "message"),
    [
        ({"0.*": INIT.ones()}, None, fv.InitError, r"no rule matches '1.weight' \(rules: '0.\*'\)"),
        ({}, None, fv.InitError, "no rule matches '0.weight' .rules: none"),
        ({"*": INIT.zeros}, None, fv.InitError, "parentheses"),
        ({"2.bias": INIT.eye(), "*": INIT.ones()}, None, fv.InitError, "variable '2.bias': Only tensors with 2"),
        ({"*": INIT.ones()}, broken_alias, fv.AliasError, "'2.weight' no longer lies in its store"),
    ],
)
def test_nothing_is_written_on_an_error(
    rules: dict[str, INIT.Initializer], spoil: Callable[[nn.Module], None] | None, error: type[Exception], message: str
) -> None:
    model = mlp()
    store = fv.VarStore.from_module(model)
    values = store.values
    before = values.clone()
    if spoil:
        spoil(model)
    with pytest.raises(error, match=message):
        INIT.apply_(model, rules)
    assert_same_bits(values, before)
    assert all(variable.initializer is None for variable in store.variables().values())


def test_a_module_without_a_store_is_refused() -> None:
    with pytest.raises(fv.ForeignParameterError, match=r"'0.weight' belongs to no store.*from_module"):
        INIT.apply_(mlp(), RULES)


def test_a_parameter_that_came_later_is_refused() -> None:
    model = mlp()
    store = fv.VarStore.from_module(model)
    model.extra = nn.Parameter(torch.zeros(3))
    before = store.values.clone()
    with pytest.raises(fv.ForeignParameterError, match="'extra'"):
        INIT.apply_(model, RULES)
    assert_same_bits(store.values, before)


def test_two_stores_in_one_module() -> None:
    """Each has its own seed; both are checked before either is written."""
    model = mlp()
    stores = [fv.VarStore.from_module(model[i], seed=i) for i in (0, 1, 2)]
    with pytest.raises(fv.InitError, match="Only tensors"):
        INIT.apply_(model, {"2.bias": INIT.eye(), "*": INIT.normal()})
    assert bool((model[1].weight == 1).all())
    INIT.apply_(model, {"*": INIT.normal()})
    for store in stores:
        assert_same_bits(
            store["weight"].value, INIT.tensor(INIT.normal(), store["weight"].shape, "weight", seed=store.seed)
        )


def test_rules_are_names_globs_and_regular_expressions() -> None:
    """A name with brackets is that name, though as a glob it would not fit itself."""
    store = fv.VarStore()
    for name in ("w[0]", "deep.bias", "deep.weight"):
        store.add(name, torch.zeros(3))
    rules = {"w[0]": INIT.constant(1.0), re.compile(r"bias$"): INIT.constant(2.0), "*": INIT.constant(3.0)}
    INIT.apply_(store, rules)
    found = {name: variable.value[0].item() for name, variable in store.variables().items()}
    assert found == {"w[0]": 1.0, "deep.bias": 2.0, "deep.weight": 3.0}
