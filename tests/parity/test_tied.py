"""Tied weights: one variable with several names, one gradient, one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.support.models import TiedLanguageModel
from tests.support.tolerances import assert_same_bits

from .pairs import MODES, Pair

IDS = torch.tensor([[1, 4, 4, 9], [0, 4, 2, 10]])


def loss(module: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(module(IDS).flatten(0, 1), IDS.flatten())


def train(pair: Pair, steps: int) -> None:
    for _ in range(steps):
        pair.zero_grad()
        pair.both(loss)
        pair.step()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adam-decay", "adamw", "lion"])
def test_a_tied_model_follows_torch(optimizer: str, mode: str) -> None:
    pair = Pair.of(TiedLanguageModel(), optimizer, mode)
    train(pair, 8)
    assert pair.ours.head.weight is pair.ours.embed.weight
    pair.assert_values_close()
    pair.assert_states_close()


def test_one_variable_answers_to_both_names() -> None:
    module = TiedLanguageModel()
    store = fv.VarStore.from_module(module)
    assert store["head.weight"] is store["embed.weight"]
    assert store["head.weight"].names == ["embed.weight", "head.weight"]
    assert list(store) == [name for name, _ in module.named_parameters()]
    assert sum(variable.param.numel() for variable in store.variables().values()) == 11 * 5 + 5 * 5 + 5


@pytest.mark.parametrize("mode", MODES)
def test_its_gradient_is_the_sum_of_both_uses(mode: str) -> None:
    pair = Pair.of(TiedLanguageModel(), mode=mode)
    pair.both(loss)
    assert_same_bits(pair.store["head.weight"].grad, pair.theirs.embed.weight.grad)
    assert pair.store.grad_norm().item() == pytest.approx(
        torch.nn.utils.get_total_norm([param.grad for param in pair.theirs.parameters()]).item(), rel=1e-6
    )


def test_explicit_gradients_may_use_any_name() -> None:
    store = fv.VarStore.from_module(TiedLanguageModel())
    store.accumulate({"head.weight": torch.ones(11, 5)})
    assert torch.equal(store["embed.weight"].grad, torch.ones(11, 5))


@pytest.mark.parametrize("pattern", ["head.*", "embed.*"])
def test_any_name_freezes_it(pattern: str) -> None:
    pair = Pair.of(TiedLanguageModel(), "adamw")
    train(pair, 2)
    pair.zero_grad()
    pair.store.freeze(pattern)
    pair.theirs.embed.weight.requires_grad_(False)
    before = pair.ours.embed.weight.detach().clone()
    train(pair, 2)
    assert_same_bits(pair.ours.head.weight.detach(), before)
    pair.store.unfreeze(pattern)
    pair.theirs.embed.weight.requires_grad_(True)
    train(pair, 2)
    pair.assert_values_close()
    pair.assert_states_close()


def test_the_first_group_that_matches_a_name_takes_it() -> None:
    module = TiedLanguageModel()
    store = fv.VarStore.from_module(module)
    opt = fv.optim.AdamW([{"params": "head.*", "lr": 0.5}, {"params": "*"}], store=store)
    assert [len(group["params"]) for group in opt.param_groups] == [1, 2]
    assert opt.param_groups[0]["params"][0] is module.embed.weight


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_used_twice(mode: str) -> None:
    shared = nn.Linear(4, 4)
    pair = Pair.of(nn.Sequential(shared, nn.Tanh(), nn.Linear(4, 4), shared), "adamw", mode)
    assert pair.store["3.bias"] is pair.store["0.bias"]
    for _ in range(5):
        pair.zero_grad()
        pair.both(lambda net: net(torch.ones(2, 4)).square().sum())
        pair.step()
    pair.assert_values_close()


def test_a_tie_within_one_module() -> None:
    module = nn.Bilinear(2, 3, 4)
    module.twin = module.weight
    pair = Pair.of(module, "sgd")
    assert pair.store["twin"] is pair.store["weight"]
    pair.run(3)
    pair.assert_values_close()
    assert list(module.state_dict()) == ["weight", "bias", "twin"]
