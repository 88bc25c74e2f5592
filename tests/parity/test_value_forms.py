"""The two forms of the values of Schedule-Free, where groups, conversions and rollbacks meet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv


def trained(groups: bool = False) -> tuple[nn.Linear, fv.VarStore, fv.optim.ScheduleFreeSGD]:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    params = [{"params": [module.weight]}] if groups else module.parameters()
    optimizer = fv.optim.ScheduleFreeSGD(params, store=store, lr=0.1)
    for _ in range(4):
        module.weight.grad, module.bias.grad = torch.randn(2, 3), torch.randn(2)
        optimizer.step()
    return module, store, optimizer


@pytest.mark.parametrize("part", [False, True], ids=["all", "one parameter"])
def test_eval_follows_a_conversion(part: bool) -> None:
    module, store, optimizer = trained()
    twin = fv.VarStore.from_module(other := nn.Linear(3, 2))
    again = fv.optim.ScheduleFreeSGD(twin, lr=0.1)
    other.load_state_dict(module.state_dict())
    again.load_state_dict(optimizer.state_dict())
    again.eval()
    if part:
        module.weight.data = module.weight.data.double()
    else:
        module.double()
    with pytest.warns(fv.MovedWarning):
        optimizer.eval()
    for name, param in module.named_parameters():
        torch.testing.assert_close(param.float(), other.get_parameter(name), rtol=1e-6, atol=1e-7)
    assert module.weight.dtype == torch.float64
    store.check()


def test_a_group_that_joins_after_a_rollback_is_in_the_form_of_the_others() -> None:
    module, store, optimizer = trained(groups=True)
    ring = fv.checkpoint.SnapshotRing(store, optimizer, keep=1)
    before = module.weight.detach().clone()
    ring.take()
    optimizer.eval()
    assert not torch.equal(module.weight, before)
    ring.restore()
    optimizer.add_param_group({"params": [module.bias]})
    optimizer.train()
    assert torch.equal(module.weight, before)
    module.weight.grad, module.bias.grad = torch.ones(2, 3), torch.ones(2)
    optimizer.step()


def test_groups_in_different_forms_are_exchanged_once_each() -> None:
    module, _, optimizer = trained(groups=True)
    optimizer.eval()
    average = module.weight.detach().clone()
    optimizer.add_param_group({"params": [module.bias], "train_mode": True})
    optimizer.eval()
    assert torch.equal(module.weight, average)
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]
