"""Another Parameter object where the store's was: noticed with and without a stale gradient, and taken in by rebind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import TiedLanguageModel

from .training import adopted, backward, values

MESSAGE = r"variable 'weight'.*Linear\.weight.*shape \(2, 3\).*store\.rebind\(\)"


@contextmanager
def overwriting() -> Iterator[None]:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def convert(module: nn.Module) -> None:
    with overwriting():
        module.double()


REPLACEMENTS: dict[str, Callable[[nn.Module], object]] = {
    "attribute": lambda module: setattr(module, "weight", nn.Parameter(torch.ones(2, 3))),
    "assign": lambda module: module.load_state_dict(
        {name: torch.ones_like(value) for name, value in module.state_dict().items()}, assign=True
    ),
    "conversion": convert,
}


@pytest.mark.row("P-R-04", "P-A-07", "P-O-07")
@pytest.mark.parametrize("stale", [False, True], ids=["no-grad", "stale-grad"])
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_a_step_notices(replace: Callable[[nn.Module], object], mode: str, stale: bool) -> None:
    module, store, opt = adopted(mode)
    if stale:
        backward(module)
    replace(module)
    module.zero_grad()
    backward(module)
    before = store.values.clone()
    with pytest.raises(fv.AliasError, match=MESSAGE):
        opt.step()
    assert torch.equal(store.values, before)
    with pytest.raises(fv.AliasError, match=MESSAGE):
        store.check()


@pytest.mark.row("P-X-01")
@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_rebind_takes_the_new_parameter_in(replace: Callable[[nn.Module], object]) -> None:
    module, store, opt = adopted(steps=2)
    replace(module)
    before = values(module)
    assert "weight" in store.rebind()
    assert store["weight"].param is module.weight
    assert torch.equal(module.weight.detach(), before["weight"])
    opt.zero_grad()
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 3
    assert opt.param_groups[0]["params"][0] is module.weight
    assert not torch.equal(module.weight.detach(), before["weight"])
    store.check()


@pytest.mark.row("P-A-07")
def test_conversion_by_swapping_is_noticed() -> None:
    module, _, opt = adopted(on_moved="error")
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    backward(module)
    with pytest.raises(fv.AliasError, match=r"variable 'weight'.*float64.*rebind"):
        opt.step()


@pytest.mark.row("P-R-08", "P-X-01")
def test_a_tie_that_came_apart_is_noticed() -> None:
    """load_state_dict(assign=True) makes two Parameters of a tied one; the store trains neither."""
    module = TiedLanguageModel()
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    module(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(fv.AliasError, match=r"variable 'embed\.weight'"):
        opt.step()


def test_an_attribute_set_to_none_leaves_the_rest_in_training() -> None:
    module, store, opt = adopted()
    module.bias = None
    before = values(module)
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 2
    assert opt.state[store["bias"].param]["step"] == 1
    assert not torch.equal(module.weight.detach(), before["weight"])


def test_zero_grad_clears_the_gradient_of_the_new_parameter() -> None:
    """It cleared the old one's until the next step."""
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    module.weight = nn.Parameter(torch.ones(2, 3))
    store.rebind()
    module(torch.ones(1, 3)).sum().backward()
    opt.zero_grad()
    assert module.weight.grad is None
    assert opt.param_groups[0]["params"][0] is module.weight


@pytest.mark.parametrize("how", ["replaced", "reshaped", "removed"])
def test_param_groups_hold_what_the_store_holds_at_once(how: str) -> None:
    """A scheduler, a clipping call or a user reads them before the optimizer looks again."""
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.SGD(store, lr=0.1)
    if how == "removed":
        store.remove("weight")
    else:
        module.weight = nn.Parameter(torch.ones(2 if how == "replaced" else 4, 3))
        store.rebind()
    listed = optimizer.param_groups[0]["params"]
    assert [id(param) for param in listed] == [id(variable.param) for variable in store.variables().values()]
