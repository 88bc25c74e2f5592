"""Integer parameters and buffers: carried along, never trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import assert_same


class Counting(nn.Module):
    """Weights between integer and boolean parameters and buffers, one of which changes in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(3).flip(0), requires_grad=False)
        self.inner = nn.Linear(3, 2)
        self.mask = nn.Parameter(torch.tensor([True, False]), requires_grad=False)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scale", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return self.inner(x[:, self.order]) * self.mask * self.scale


def trained(buffers: bool = True, steps: int = 2) -> tuple[Counting, fv.VarStore, fv.optim.AdamW]:
    module = Counting()
    store = fv.VarStore.from_module(module, buffers=buffers)
    opt = fv.optim.AdamW(store, lr=0.1)
    for _ in range(steps):
        module(torch.ones(1, 3)).sum().backward()
        opt.step()
        opt.zero_grad()
    return module, store, opt


@pytest.mark.parametrize("buffers", [False, True])
def test_they_keep_their_values_while_others_train(buffers: bool) -> None:
    module, store, opt = trained(buffers)
    assert torch.equal(module.order, torch.tensor([2, 1, 0]))
    assert torch.equal(module.mask, torch.tensor([True, False]))
    assert module.calls == 2
    assert [variable.name for variable in store.trainable_variables()] == ["inner.weight", "inner.bias"]
    assert opt.state[module.order] == {}
    assert opt.state[module.inner.weight]["step"] == 2
    store.check()


@pytest.mark.row("P-X-02")
def test_each_dtype_has_a_region() -> None:
    module, store, _ = trained()
    trainable = {region.dtype: region.trainable_numel > 0 for region in store.regions}
    assert trainable == {torch.int64: False, torch.float32: True, torch.bool: False}
    assert store["calls"].value.data_ptr() == module.calls.data_ptr()
    assert store["calls"].value == 2
    assert "scale" not in store
    assert "calls" not in fv.VarStore.from_module(Counting(), buffers=False)


def test_conversion_leaves_them_alone() -> None:
    module, store, opt = trained()
    store.double()
    assert (module.order.dtype, module.mask.dtype, module.calls.dtype) == (torch.int64, torch.bool, torch.int64)
    assert (module.inner.weight.dtype, module.scale.dtype) == (torch.float64, torch.float32)
    module(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    opt.step()
    assert opt.state[module.inner.weight]["step"] == 3
    store.check()


def test_conversion_while_adopting_leaves_them_alone() -> None:
    module = Counting()
    store = fv.VarStore.from_module(module, dtype=torch.bfloat16)
    assert (module.inner.weight.dtype, module.scale.dtype) == (torch.bfloat16, torch.float32)
    assert module.order.dtype == torch.int64
    store.check()


def test_they_are_part_of_the_state_dict_as_before() -> None:
    plain, (module, store, _) = Counting(), trained()
    assert list(module.state_dict()) == list(plain.state_dict())
    module.load_state_dict(plain.state_dict())
    assert_same(dict(module.state_dict()), dict(plain.state_dict()))
    assert module.calls == 0
    store.check()


def test_masks_pass_them_by() -> None:
    module, store, _ = trained()
    store.freeze()
    assert not any(variable.requires_grad for variable in store.trainable_variables())
    store.unfreeze()
    assert [variable.name for variable in store.trainable_variables()] == ["inner.weight", "inner.bias"]
    assert not module.order.requires_grad


def test_unfreezing_an_integer_parameter_stops_at_no_half() -> None:
    """An error that names it, or nothing: never some of the pattern and a message of torch's."""
    module = nn.Sequential(nn.Linear(3, 3), Counting())
    store = fv.VarStore.from_module(module)
    store.freeze()
    try:
        store.unfreeze("*")
    except fv.FlatvarsError as error:
        assert "1.order" in str(error)  # noqa: PT017
        assert not module[0].weight.requires_grad
    else:
        assert module[1].inner.weight.requires_grad
        assert not module[1].order.requires_grad
    store.check()
