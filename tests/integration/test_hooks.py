"""Hooks of tensors and modules stay where users put them, through adoption and every re-carving."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import adopted, backward, linear

CHANGES: dict[str, Callable[[fv.VarStore], object]] = {
    "none": lambda store: None,
    "add": lambda store: store.add("later", torch.ones(50)),
    "freeze": lambda store: (store.freeze(), store.unfreeze()),
    "compact": lambda store: (store.freeze(), store.compact(), store.unfreeze()),
    "double": lambda store: store.double(),
    "rebind": lambda store: (setattr(store["weight"].param, "data", torch.ones(2, 3)), store.rebind()),
}


def hook(module: nn.Linear, log: list[str]) -> None:
    """Attaches one hook of each kind; that of the gradient doubles it."""

    def doubled(grad: torch.Tensor) -> torch.Tensor:
        log.append("gradient")
        return 2 * grad

    module.weight.register_hook(doubled)
    module.weight.register_post_accumulate_grad_hook(lambda param: log.append("accumulated"))
    module.register_forward_hook(lambda owner, args, out: log.append("forward"))
    module.register_full_backward_hook(lambda owner, grad_in, grad_out: log.append("backward"))


@pytest.mark.row("P-G-08", "P-G-09")
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("when", ["before-adoption", "after-adoption"])
def test_hooks_are_called_once(when: str, change: Callable[[fv.VarStore], object], mode: str) -> None:
    module, log = linear(), []
    if when == "before-adoption":
        hook(module, log)
    store = fv.VarStore.from_module(module, grads=mode)
    if when == "after-adoption":
        hook(module, log)
    backward_of_inputs(module)
    assert sorted(log) == ["accumulated", "backward", "forward", "gradient"]
    store.zero_grad()
    log.clear()
    change(store)
    backward_of_inputs(module)
    assert sorted(log) == ["accumulated", "backward", "forward", "gradient"]
    assert torch.equal(store["weight"].grad, torch.full_like(module.weight, 2.0))


def backward_of_inputs(module: nn.Linear) -> None:
    """Gradients of ones; the input requires grad, or a full backward hook sees nothing."""
    module(torch.ones(1, 3, dtype=module.weight.dtype, requires_grad=True)).sum().backward()


def test_hooks_from_the_meta_device() -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    log: list[str] = []
    hook(module, log)
    fv.VarStore.from_module(module)
    backward_of_inputs(module)
    assert sorted(log) == ["accumulated", "backward", "forward", "gradient"]


@pytest.mark.row("P-G-08")
def test_a_step_in_a_hook_trains_during_the_backward_pass() -> None:
    """One optimizer per parameter, as in torch's tutorial; each leaves the gradients of the others alone."""
    module, plain = linear(), linear()
    store = fv.VarStore.from_module(module)
    opts = {param: fv.optim.SGD([param], lr=0.1, store=store) for param in module.parameters()}

    def step(param: nn.Parameter) -> None:
        opts[param].step()
        opts[param].zero_grad()

    for param in module.parameters():
        param.register_post_accumulate_grad_hook(step)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        backward(module)
        reference.zero_grad()
        backward(plain)
        reference.step()
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert ours.grad is None
        torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-7)


@pytest.mark.row("P-G-09")
def test_a_hook_that_clips_is_seen_by_the_step() -> None:
    module, _, opt = adopted(steps=0)
    module.weight.register_hook(lambda grad: torch.zeros_like(grad))
    before = module.weight.detach().clone()
    opt.param_groups[0]["weight_decay"] = 0.0
    backward(module)
    opt.step()
    assert torch.equal(module.weight, before)
    assert opt.state[module.weight]["step"] == 1
