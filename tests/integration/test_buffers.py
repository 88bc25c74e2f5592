"""Registered buffers in the store: batch norms run on, and their statistics lie beside the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import ResNet

from .training import assert_same

IMAGES = torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
MODES = ("gather", "views")


def train(module: nn.Module, opt: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        opt.zero_grad()
        module(IMAGES).square().sum().backward()
        opt.step()


@pytest.mark.row("P-R-09")
@pytest.mark.parametrize("mode", MODES)
def test_a_network_with_batch_norms_trains_as_without_a_store(mode: str) -> None:
    module = ResNet()
    plain = copy.deepcopy(module)
    store = fv.VarStore.from_module(module, buffers=True, grads=mode)
    train(module, fv.optim.SGD(store, lr=1e-3))
    train(plain, torch.optim.SGD(plain.parameters(), lr=1e-3, foreach=False))
    for (name, ours), theirs in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=1e-6, msg=name)
    assert module.norm.num_batches_tracked == 3
    store.check()


def test_statistics_are_variables_that_do_not_train() -> None:
    module = ResNet()
    store = fv.VarStore.from_module(module, buffers=True)
    params = [name for name, _ in module.named_parameters()]
    assert list(store) == params + [name for name, _ in module.named_buffers()]
    assert [variable.name for variable in store.trainable_variables()] == params
    opt = fv.optim.AdamW(store)
    assert [len(group["params"]) for group in opt.param_groups] == [len(params)]
    module(IMAGES)
    assert torch.equal(store["norm.running_mean"].value, module.norm.running_mean)
    assert store["norm.running_mean"].value.any()
    assert store["norm.num_batches_tracked"].value == 1


def test_buffers_have_values_only() -> None:
    module = nn.BatchNorm1d(64)
    store = fv.VarStore.from_module(module, buffers=True)
    opt = fv.optim.AdamW(store)
    module(torch.randn(5, 64)).sum().backward()
    opt.step()
    # weight and bias with two moments each, two averages, and a count padded to 128 bytes.
    assert store.registry.streams.nbytes == (2 * 3 + 2) * 64 * 4 + 128


def test_without_buffers_they_stay_where_they_are() -> None:
    module = ResNet()
    address = module.norm.running_mean.data_ptr()
    store = fv.VarStore.from_module(module, buffers=False)
    assert module.norm.running_mean.data_ptr() == address
    assert "norm.running_mean" not in store
    names = [name for name, _ in module.named_buffers()]
    assert [line for line in store.summary().splitlines() if "left out" in line] == [
        f"left out: {name} (buffers=False)" for name in names
    ]
    assert f"{len(names)} buffers left out" in repr(store)


def test_the_state_dict_is_as_before() -> None:
    module = ResNet()
    module(IMAGES)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fv.VarStore.from_module(module, buffers=True)
    assert list(module.state_dict()) == list(before)
    assert_same(dict(module.state_dict()), before)
    module(IMAGES)
    module.load_state_dict(before)
    assert_same(dict(module.state_dict()), before)


def test_masks_pass_them_by() -> None:
    module = ResNet()
    store = fv.VarStore.from_module(module, buffers=True)
    store.freeze("norm.*")
    store.unfreeze("norm.*")
    store.unfreeze()
    assert not module.norm.running_mean.requires_grad
    assert module.norm.weight.requires_grad
    assert store["norm.running_mean"] not in store.trainable_variables()


@pytest.mark.row("P-R-09")
def test_conversion_takes_floating_ones_along() -> None:
    module = ResNet()
    store = fv.VarStore.from_module(module, buffers=True)
    module(IMAGES)
    mean = module.norm.running_mean.clone()
    store.double()
    assert torch.equal(module.norm.running_mean, mean.double())
    assert module.norm.num_batches_tracked == 1
    assert module(IMAGES.double()).dtype == torch.float64
    assert module.norm.num_batches_tracked == 2
    store.check()


def test_module_conversion_and_rebind() -> None:
    module = ResNet()
    store = fv.VarStore.from_module(module, buffers=True, on_moved="error")
    module.double()
    with pytest.raises(fv.AliasError, match="no longer lies in its store"):
        store.check()
    store.rebind()
    assert store["norm.running_mean"].dtype == torch.float64
    store.check()
    module(IMAGES.double())
    assert store["norm.num_batches_tracked"].value == 1


def test_replaced_statistics_beside_replaced_parameters_wait_for_rebind() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    store = fv.VarStore.from_module(module, buffers=True)
    state = {name: torch.full_like(value, 7) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    with pytest.raises(fv.AliasError, match=r"'0\.weight' is no longer used.*rebind"):
        store.check()
    assert "0.running_mean" in store.rebind()
    assert torch.equal(store["0.running_mean"].value, torch.full((3,), 7.0))
    module(torch.randn(4, 3))
    assert torch.equal(store["0.running_mean"].value, module[0].running_mean)
    store.check()


def test_buffers_may_be_added_alone() -> None:
    store = fv.VarStore()
    module = nn.BatchNorm1d(3, affine=False)
    store.add_module(module, "norm", buffers=True)
    assert list(store) == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    module(torch.randn(4, 3))
    assert store["norm.running_mean"].value.any()
    store.check()
