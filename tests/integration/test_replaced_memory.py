"""What takes a Parameter's memory out of the store, where `on_moved="error"` asks to be told; and rebind.

What is done about it otherwise: `test_following.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import adopted, assert_same, backward, linear, values

MESSAGE = r"variable 'weight' .*float32, \(2, 3\).*store\.rebind\(\).*store\.restore_aliases\(\)"
ERROR = "error"


def emptied(module: nn.Module) -> None:
    """With values: what `to_empty` leaves may be NaN, which equals nothing."""
    for param in module.to_empty(device="cpu").parameters():
        nn.init.ones_(param)


BREAKS: dict[str, Callable[[nn.Module], object]] = {
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "to": lambda module: module.to(torch.bfloat16),
    "data": lambda module: setattr(module.weight, "data", torch.ones(2, 3)),
    "data-transposed": lambda module: setattr(module.weight, "data", module.weight.data.as_strided((2, 3), (1, 2))),
    "vector_to_parameters": lambda module: nn.utils.vector_to_parameters(torch.ones(8), module.parameters()),
    "to_empty": emptied,
    "share_memory": lambda module: module.share_memory(),
}

HARMLESS: dict[str, Callable[[nn.Module], object]] = {
    "to-same": lambda module: module.to("cpu").float(),
    "load_state_dict": lambda module: module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()}),
    "in-place": lambda module: nn.init.ones_(module.weight),
}


# torch says once per process that a transposed parameter and its row-major view of a gradient do not match.
@pytest.mark.row("P-A-06", "P-A-08")
@pytest.mark.filterwarnings("ignore:grad and param do not obey:UserWarning")
@pytest.mark.parametrize("steps", [0, 2], ids=["before-the-first-step", "later"])
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_a_step_notices(change: Callable[[nn.Module], object], mode: str, steps: int) -> None:
    module, store, opt = adopted(mode, steps, ERROR)
    change(module)
    backward(module)
    before = values(module)
    flat = store.values.clone()
    with pytest.raises(fv.AliasError, match=MESSAGE):
        opt.step()
    assert_same(values(module), before)
    assert torch.equal(store.values, flat)
    assert opt.state[module.weight].get("step", 0) == steps


@pytest.mark.parametrize("mask", ["freeze", "unfreeze"])
def test_a_step_notices_after_masks_changed(mask: str) -> None:
    module, store, opt = adopted(steps=1, on_moved=ERROR)
    getattr(store, mask)("bias")
    module.half()
    backward(module)
    with pytest.raises(fv.AliasError, match=MESSAGE):
        opt.step()


CALLS: dict[str, Callable[[fv.VarStore], object]] = {
    "accumulate": lambda store: store.accumulate(),
    "grad_norm": lambda store: store.grad_norm(),
    "norms": lambda store: store.norms(),
    "clip_grad_norm_": lambda store: store.clip_grad_norm_(1.0),
    "check": lambda store: store.check(),
    "to": lambda store: store.to("cpu"),
    "half": lambda store: store.half(),
    "compact": lambda store: store.compact(),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_of_the_store_never_drops_values_silently(
    call: Callable[[fv.VarStore], object], change: Callable[[nn.Module], object]
) -> None:
    module, store, _ = adopted(on_moved=ERROR)
    change(module)
    backward(module)
    before = values(module)
    with pytest.raises(fv.AliasError, match=MESSAGE):
        call(store)
    assert_same(values(module), before)


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_growing_leaves_what_came_loose_where_it_is(change: Callable[[nn.Module], object]) -> None:
    module, store, opt = adopted(on_moved=ERROR)
    change(module)
    backward(module)
    before = values(module)
    store.add("later", torch.ones(3))
    assert store["later"].span.offset == 64
    assert_same(values(module), before)
    with pytest.raises(fv.AliasError, match=MESSAGE):
        opt.step()
    store.rebind()
    assert_same(values(module), before)
    store.check()


def test_unfreezing_never_drops_values_silently() -> None:
    module = linear()
    module.bias.requires_grad_(False)
    store = fv.VarStore.from_module(module, on_moved=ERROR)
    module.weight.data = torch.full((2, 3), 7.0)
    with pytest.raises(fv.AliasError, match=MESSAGE):
        store.unfreeze("bias")
    assert module.weight[0, 0] == 7.0


@pytest.mark.row("P-A-06", "P-X-01", "P-X-03")
@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_rebind_takes_the_new_values_in(change: Callable[[nn.Module], object]) -> None:
    module, store, opt = adopted(steps=2)
    params = list(module.parameters())
    change(module)
    before = values(module)
    assert "weight" in store.rebind()
    assert_same(values(module), before)
    assert all(a is b for a, b in zip(params, module.parameters(), strict=True))
    store.check()
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 3
    assert not torch.equal(module.weight.detach(), before["weight"])


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_restore_aliases_goes_back(change: Callable[[nn.Module], object]) -> None:
    module, store, opt = adopted(steps=2)
    before = values(module)
    change(module)
    store.restore_aliases()
    assert_same(values(module), before)
    store.check()
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 3


@pytest.mark.row("P-A-06")
@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_keeps_the_alias_goes_on(change: Callable[[nn.Module], object]) -> None:
    module, store, opt = adopted(steps=1)
    change(module)
    before = values(module)
    store.check()
    backward(module)
    opt.step()
    assert not torch.equal(module.weight.detach(), before["weight"])
    assert opt.state[module.weight]["step"] == 2


@pytest.mark.row("P-A-06")
def test_channels_last_conversion_is_noticed() -> None:
    module = nn.Conv2d(3, 4, 3)
    store = fv.VarStore.from_module(module, on_moved=ERROR)
    opt = fv.optim.SGD(store, lr=0.1)
    module.to(memory_format=torch.channels_last)
    module(torch.ones(1, 3, 4, 4)).sum().backward()
    with pytest.raises(fv.AliasError, match=r"variable 'weight'.*rebind"):
        opt.step()
    store.rebind()
    opt.step()
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    store.check()
