"""Values that are kept, replaced for an evaluation and put back, by whoever holds `param.data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import backward, linear

CALLS: dict[str, Callable[[fv.VarStore, Path], object]] = {
    "save": lambda store, path: store.save(path / "average.safetensors"),
    "snapshot": lambda store, path: store.snapshot(),
    "ravel": lambda store, path: store.ravel(),
    "norms": lambda store, path: store.norms(),
    "check": lambda store, path: store.check(),
}


@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "keep", [lambda p: p.data, lambda p: p.detach(), lambda p: p.data[:1]], ids=["data", "detach", "part"]
)
@pytest.mark.filterwarnings("ignore::flatvars.MovedWarning")
def test_what_was_kept_stays_what_it_was(
    keep: Callable[[torch.Tensor], torch.Tensor], call: str, mode: str, tmp_path: Path
) -> None:
    module = linear()
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.SGD(store, lr=0.1)
    trained = {name: param.detach().clone() for name, param in module.named_parameters()}
    whole = {name: param.detach().clone() for name, param in module.named_parameters()}
    kept = {name: keep(param) for name, param in module.named_parameters()}
    for param in module.parameters():
        param.data = torch.full_like(param, 7.0)
    CALLS[call](store, tmp_path)
    assert (store.ravel() == 7.0).all()
    for name, value in kept.items():
        assert torch.equal(value, keep(nn.Parameter(trained[name]))), name
    for name, param in module.named_parameters():
        param.data = kept[name] if kept[name].shape == param.shape else whole[name]
    backward(module)
    optimizer.step()
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, trained[name] - 0.1 * param.grad)
    store.check()


def test_memory_that_nobody_kept_is_written_again() -> None:
    """No re-carve then: a loop that assigns `.data` each step pays for a copy of what it assigned."""
    module = linear()
    store = fv.VarStore.from_module(module)
    store.check()
    generation, address = store.registry.generation, module.weight.data_ptr()
    module.weight.data = torch.ones(2, 3)
    with pytest.warns(fv.MovedWarning):
        store.check()
    assert store.registry.generation == generation
    assert module.weight.data_ptr() == address


@pytest.mark.parametrize("keep", [lambda buffer: buffer, lambda buffer: buffer[:1]], ids=["itself", "part"])
@pytest.mark.parametrize("call", CALLS)
def test_a_buffer_that_was_replaced_keeps_its_values_for_who_kept_it(
    keep: Callable[[torch.Tensor], torch.Tensor], call: str, tmp_path: Path
) -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module)
    store.check()
    kept = keep(module.running_mean)
    module.running_mean = module.running_mean + 5.0
    CALLS[call](store, tmp_path)
    store.check()
    assert (kept == 0.0).all()
    assert torch.equal(store["running_mean"].value, torch.full((2,), 5.0))
    module.running_mean.add_(1.0)
    assert torch.equal(store["running_mean"].value, torch.full((2,), 6.0))
