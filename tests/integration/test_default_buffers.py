"""Buffers of the state dict are taken in without a word, so that files, snapshots and copies of a store are whole."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import flatvars as fv

from .training import assert_same

MODES = ("gather", "views")
X = torch.linspace(-1.0, 2.0, 12).view(4, 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def train(module: nn.Module, opt: torch.optim.Optimizer, steps: int) -> None:
    module.train()
    for step in range(steps):
        module(X + step).square().mean().backward()
        opt.step()
        opt.zero_grad()


def evaluated(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(X)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_after_a_load_is_the_same_bit_for_bit(mode: str, tmp_path: Path) -> None:
    module = network()
    store = fv.VarStore.from_module(module, grads=mode)
    train(module, fv.optim.AdamW(store, lr=0.1), 3)
    store.save(tmp_path / "file.safetensors")
    again = network()
    fv.VarStore.from_module(again, grads=mode).load(tmp_path / "file.safetensors")
    assert again[1].num_batches_tracked == 3
    assert torch.equal(evaluated(again), evaluated(module))


@pytest.mark.parametrize("mode", MODES)
def test_a_rollback_takes_statistics_along(mode: str) -> None:
    module = network()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.1)
    ring = fv.checkpoint.SnapshotRing(store, opt)
    train(module, opt, 2)
    ring.take()
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, opt, 2)
    module[1].running_mean = torch.full((5,), 9.0)
    ring.restore()
    assert_same(dict(module.state_dict()), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_of_module_store_and_optimizer_trains_on_alike(mode: str) -> None:
    module = network()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.1)
    train(module, opt, 1)
    module[1].running_var = module[1].running_var * 2.0
    for copied in (copy.deepcopy, lambda three: pickle.loads(pickle.dumps(three))):
        twin, held, other = copied((module, store, opt))
        assert list(held) == list(store)
        train(twin, other, 2)
        assert twin[1].running_mean.data_ptr() != module[1].running_mean.data_ptr()
        assert torch.equal(held["1.running_var"].value, twin[1].running_var)
        assert twin[1].num_batches_tracked == 3
    assert module[1].num_batches_tracked == 1


class Kinds(nn.Module):
    """Buffers of all kinds beside a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.register_buffer("waves", torch.ones(3, dtype=torch.complex64))
        self.register_buffer("whole", torch.arange(6.0))
        self.register_buffer("part", self.whole[2:4])
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * self.weight * self.passing


def test_what_a_store_cannot_hold_stays_where_it_is_and_is_said(tmp_path: Path) -> None:
    module = Kinds()
    places = {name: buffer.data_ptr() for name, buffer in module.named_buffers()}
    store = fv.VarStore.from_module(module)
    assert list(store) == ["weight", "mean"]
    assert [name for name, buffer in module.named_buffers() if buffer.data_ptr() != places[name]] == ["mean"]
    module.whole[2] = 9.0
    assert module.part[0] == 9.0
    assert "3 buffers left out" in repr(store)
    assert "left out: waves (torch.complex64)" in store.summary()
    with pytest.warns(
        UserWarning, match=r"3 tensors .* are not in the store.*'waves': torch\.complex64; 'whole': shares"
    ):
        store.save(tmp_path / "file.safetensors")
    store.save(tmp_path / "file.safetensors")  # said once
    store.snapshot()


def test_none_are_wanted(tmp_path: Path) -> None:
    module = network()
    store = fv.VarStore.from_module(module, buffers=False)
    store.save(tmp_path / "file.safetensors")  # no warning: it was asked for
    assert "left out: 1.running_mean (buffers=False)" in store.summary()
    twin, held = copy.deepcopy((module, store))
    assert "3 buffers left out" in repr(held)
    held.snapshot()
    merged = fv.VarStore.merge([(held, "deep.")])
    assert "left out: deep.1.running_mean (buffers=False)" in merged.summary()
    assert merged.add_buffers(twin, "deep") == [
        "deep.1.running_mean",
        "deep.1.running_var",
        "deep.1.num_batches_tracked",
    ]
    assert "left out" not in repr(merged)
    assert torch.equal(merged["deep.1.running_var"].value, twin[1].running_var)


@pytest.mark.parametrize("mode", MODES)
def test_a_buffer_that_came_later_is_missed_until_it_is_taken_in(mode: str, tmp_path: Path) -> None:
    module = network()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.1)
    train(module, opt, 1)
    module[0].register_buffer("mask", torch.ones(5, 3))
    with pytest.warns(UserWarning, match=r"'0\.mask'.*came after.*store\.add_buffers\(module\)"):
        store.snapshot()
    assert store.add_buffers(module) == ["0.mask"]
    assert store.add_buffers(module) == []
    module[0].mask = torch.zeros(5, 3)
    store.save(tmp_path / "file.safetensors")
    assert not load_file(tmp_path / "file.safetensors")["0.mask"].any()
    train(module, opt, 1)
    store.check()


GONE: dict[str, Callable[[nn.Sequential], Any]] = {
    "none": lambda module: setattr(module[1], "running_mean", None),
    "deleted": lambda module: delattr(module[1], "running_mean"),
    "tied": lambda module: setattr(module[1], "running_mean", module[1].running_var),
    "parameter": lambda module: setattr(module[1], "running_mean", module[1].bias.detach()),
}


@pytest.mark.parametrize("go", GONE.values(), ids=GONE)
@pytest.mark.parametrize("mode", MODES)
def test_a_buffer_that_goes_stops_nothing(go: Callable[[nn.Sequential], Any], mode: str, tmp_path: Path) -> None:
    module = network()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.1)
    train(module, opt, 1)
    module(X).square().mean().backward()
    go(module)
    opt.step()
    store.double()
    store.save(tmp_path / "file.safetensors")
    store.check()
    now = getattr(module[1], "running_mean", None)
    if now is not None:
        assert torch.equal(store["1.running_mean"].value, now.double())


def test_two_norms_that_shared_a_buffer_may_part(tmp_path: Path) -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    module[1].running_mean = module[0].running_mean
    store = fv.VarStore.from_module(module)
    assert store["0.running_mean"].names == ["0.running_mean", "1.running_mean"]
    module[1].running_mean = torch.full((2,), 5.0)
    with pytest.warns(UserWarning, match=r"'1\.running_mean'"):
        store.save(tmp_path / "file.safetensors")
    assert torch.equal(store["0.running_mean"].value, torch.zeros(2))


def calls_of_a_step(module: nn.Module, store: fv.VarStore, mode: str) -> int:
    """Python functions that a step calls, with its statistics replaced before."""
    opt = fv.optim.AdamW(store, lr=0.1)
    train(module, opt, 2)
    module(X).square().mean().backward()
    for norm in (child for child in module.modules() if isinstance(child, nn.BatchNorm1d)):
        norm.running_mean = norm.running_mean * 0.5
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        opt.step()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("mode", MODES)
def test_buffers_cost_a_step_nothing(mode: str) -> None:
    counts = []
    for buffers in (True, False):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), *(nn.BatchNorm1d(4) for _ in range(40)))
        counts.append(calls_of_a_step(module, fv.VarStore.from_module(module, buffers=buffers, grads=mode), mode))
    assert counts[0] == counts[1]


def test_buffers_of_a_module_on_meta_come_along() -> None:
    with torch.device("meta"):
        module = network()
    kept = torch.full((5,), 4.0)
    module[1].running_mean = kept  # as of init_empty_weights(include_buffers=False)
    store = fv.VarStore.from_module(module)
    assert torch.equal(module[1].running_mean, torch.full((5,), 4.0))
    assert torch.equal(store["1.running_var"].value, torch.ones(5))
    assert store["1.num_batches_tracked"].value == 0
    train(module, fv.optim.AdamW(store), 1)
    assert module[1].num_batches_tracked == 1
    store.check()


def test_a_buffer_that_asks_for_a_gradient_has_no_room() -> None:
    module = nn.Linear(3, 2)
    module.register_buffer("scale", torch.ones(2, requires_grad=True))
    store = fv.VarStore.from_module(module, grads="views")
    assert not store["scale"].spec.has_room
    assert [variable.name for variable in store.registry.trained()] == ["weight", "bias"]


def test_gradients_are_flat_beside_buffers_of_other_dtypes() -> None:
    module = network()
    store = fv.VarStore.from_module(module)
    module(X).square().mean().backward()
    assert store.grads.dtype == torch.float32
    with pytest.raises(fv.FlatvarsError, match=r"2 regions.*values_of"):
        store.values  # noqa: B018
