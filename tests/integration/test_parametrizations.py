"""Pruning, weight norm and other parametrizations after adoption: they train, or the step says why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import flatvars as fv

from .training import adopted, backward, linear


class Positive(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


KEEPS: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "parametrization": lambda module: parametrize.register_parametrization(module, "weight", Positive()),
    "spectral_norm": lambda module: parametrizations.spectral_norm(module),
}

MOVES: dict[str, Callable[[nn.Module], object]] = {
    "orthogonal": lambda module: parametrizations.orthogonal(module),
    "prune-removed": lambda module: prune.remove(prune.l1_unstructured(module, "weight", 0.5), "weight"),
}


@pytest.mark.row("P-R-10")
@pytest.mark.parametrize("change", KEEPS.values(), ids=KEEPS)
def test_the_original_parameter_is_trained_on(change: Callable[[nn.Module], object]) -> None:
    module, store, opt = adopted()
    original = module.weight
    change(module)
    before = original.detach().clone()
    backward(module)
    opt.step()
    assert opt.state[original]["step"] == 2
    assert not torch.equal(original.detach(), before)
    store.check()


@pytest.mark.row("P-R-10")
@pytest.mark.parametrize("change", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_one_that_got_other_memory_is_followed(change: Callable[[nn.Module], object], mode: str) -> None:
    module, store, opt = adopted(mode)
    change(module)
    before = store["weight"].param.detach().clone()
    backward(module)
    with pytest.warns(fv.MovedWarning, match=r"variable 'weight'"):
        opt.step()
    assert opt.state[store["weight"].param]["step"] == 2
    assert not torch.equal(store["weight"].value, before)
    store.check()


@pytest.mark.row("P-R-10")
def test_new_parameters_are_not_left_untrained_silently() -> None:
    module, _, opt = adopted()
    parametrizations.weight_norm(module)
    backward(module)
    with pytest.raises(fv.AliasError, match=r"variable 'weight'.*VarStore"):
        opt.step()


@pytest.mark.parametrize("change", {**KEEPS, **MOVES}.values(), ids=[*KEEPS, *MOVES])
def test_adopted_after_the_change_all_parameters_train(change: Callable[[nn.Module], object]) -> None:
    module = linear()
    change(module)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    before = {name: param.detach().clone() for name, param in module.named_parameters()}
    module(torch.tensor([[1.0, 2.0, -3.0]])).square().sum().backward()
    opt.step()
    for name, param in module.named_parameters():
        assert not torch.equal(param.detach(), before[name]), name
    store.check()
