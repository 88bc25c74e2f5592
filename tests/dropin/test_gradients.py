"""Gradients as autograd and users leave them: graphs, flips of requires_grad, other dtypes, autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.integration.training import adopted, backward
from tests.parity.pairs import MODES, Pair
from tests.support.models import Chain

X = torch.linspace(-1.0, 1.0, 8).view(2, 4)


@pytest.mark.row("P-G-03")
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
@pytest.mark.parametrize("mode", MODES)
def test_create_graph(mode: str) -> None:
    """A penalty on the gradient: a second backward pass through the first."""
    pair = Pair.of(Chain(), "adamw", mode)
    for _ in range(3):
        pair.zero_grad()
        for module in (pair.ours, pair.theirs):
            module(X).square().sum().backward(create_graph=True)
            sum(param.grad.square().sum() for param in module.parameters()).backward()
        pair.step()
        for param in pair.theirs.parameters():
            param.grad = None
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.row("P-G-14")
@pytest.mark.parametrize("mode", MODES)
def test_autograd_grad_leaves_no_gradient(mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode)
    before = pair.store.values.clone()
    found = torch.autograd.grad(pair.ours(X).sum(), list(pair.ours.parameters()))
    assert pair.store.gradient_names() == []
    pair.opt.step()
    assert torch.equal(pair.store.values, before)
    pair.store.accumulate(found)
    assert pair.store.gradient_names() == list(pair.store)


@pytest.mark.row("P-G-01", "P-G-02")
def test_where_gradients_lie() -> None:
    """Views: autograd adds into the flat stream, again and again. Gather: wherever autograd likes."""
    module, store, _ = adopted("views")
    address = module.weight.grad.data_ptr()
    for _ in range(2):
        backward(module)
        assert module.weight.grad.data_ptr() == address
    assert torch.equal(store["weight"].grad, torch.full((2, 3), 2.0))
    store.zero_grad()
    module.weight.grad = None
    backward(module)
    assert torch.equal(store["weight"].grad, torch.ones(2, 3))
    assert module.weight.grad.data_ptr() == address
    module, store, _ = adopted("gather")
    backward(module)
    assert "grads" not in store.registry.streams.names()


@pytest.mark.row("P-G-07")
@pytest.mark.parametrize("mode", MODES)
def test_requires_grad_flips_between_steps(mode: str) -> None:
    """Through plain torch; also of a variable that was frozen when the store was carved."""
    net = Chain()
    net.layers[2].requires_grad_(False)
    pair = Pair.of(net, "adamw", mode)
    pair.ref.add_param_group({"params": []})
    for step in range(6):
        for module in (pair.ours, pair.theirs):
            module.layers[0].requires_grad_(step not in (1, 2))
            module.layers[2].requires_grad_(step >= 3)
        pair.zero_grad()
        for module in (pair.ours, pair.theirs):
            module(X).square().sum().backward()
        pair.step()
    pair.assert_values_close()
    pair.store.check()


@pytest.mark.row("P-G-07")
def test_everything_frozen_is_torchs_error() -> None:
    module, _, opt = adopted()
    module.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"does not require grad"):
        backward(module)
    before = module.weight.clone()
    opt.step()
    assert torch.equal(module.weight, before)


@pytest.mark.row("P-G-10")
@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no Tensor.grad_dtype")
def test_float32_gradients_of_bfloat16_variables() -> None:
    """torch's own AdamW refuses them."""
    module = nn.Linear(4, 2).bfloat16()
    for param in module.parameters():
        param.grad_dtype = torch.float32
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=1.0)
    before = module.weight.detach().float()
    for _ in range(3):
        grad = torch.full((2, 4), 1.0 / 3.0)
        module.weight.grad = grad if module.weight.grad is None else module.weight.grad + grad
    assert module.weight.grad.dtype == torch.float32
    opt.step()
    assert torch.equal(module.weight, (before - 1.0).bfloat16())


@pytest.mark.row("P-G-11")
def test_gradients_that_torch_refuses() -> None:
    module, _, _ = adopted()
    for wrong in (torch.ones(3, 2), torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, device="meta")):
        with pytest.raises(RuntimeError, match=r"assigned grad|attempting to assign"):
            module.weight.grad = wrong


@pytest.mark.row("P-O-09")
@pytest.mark.parametrize("mode", MODES)
def test_autocast(mode: str) -> None:
    """The step outside the context, as torch asks: inside, cached low-precision weights do not see it."""
    pair = Pair.of(Chain(), "adamw", mode)
    for _ in range(4):
        pair.zero_grad()
        for module in (pair.ours, pair.theirs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = module(X).float().square().sum()
            loss.backward()
        pair.step()
    pair.assert_values_close()


@pytest.mark.row("P-O-09")
def test_a_step_inside_autocast_is_seen_by_the_next_context() -> None:
    module = nn.Linear(4, 2)
    opt = fv.optim.SGD(fv.VarStore.from_module(module), lr=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(X).sum().backward()
        opt.step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fresh = module(X)
    assert torch.equal(fresh, copy.deepcopy(module).bfloat16()(X.bfloat16()))
