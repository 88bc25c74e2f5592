"""`optimizer.state` is alive, as in torch: what is written there is what the next step uses."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv

from .pairs import MODES, Pair

each_optimizer = pytest.mark.parametrize("optimizer", ["adamw", "sgd-momentum"])
each_mode = pytest.mark.parametrize("mode", MODES)


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 40))


def buffer_of(optimizer: str) -> str:
    return "exp_avg" if optimizer == "adamw" else "momentum_buffer"


def halve(state: Any, param: Tensor, name: str) -> None:
    state[param][name].mul_(0.5)


def replace(state: Any, param: Tensor, name: str) -> None:
    state[param][name] = torch.full_like(param, 0.25)


def delete(state: Any, param: Tensor, name: str) -> None:
    del state[param]


def pop_and_return(state: Any, param: Tensor, name: str) -> None:
    state[param] = state.pop(param)


def clear(state: Any, param: Tensor, name: str) -> None:
    state.clear()


def forget_steps(state: Any, param: Tensor, name: str) -> None:
    if "step" in state[param]:
        state[param]["step"].zero_()


EDITS: list[Callable[[Any, Tensor, str], None]] = [halve, replace, delete, pop_and_return, clear, forget_steps]


@each_mode
@each_optimizer
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_has_the_effect_it_has_in_torch(edit: Callable[..., None], optimizer: str, mode: str) -> None:
    pair = Pair.of(layers(), optimizer, mode)
    pair.run(3)
    for opt, module in ((pair.opt, pair.ours), (pair.ref, pair.theirs)):
        edit(opt.state, module[1].weight, buffer_of(optimizer))
    pair.run(3, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@each_optimizer
def test_the_whole_mapping_is_replaced(optimizer: str) -> None:
    pair = Pair.of(layers(), optimizer)
    pair.run(2)
    pair.opt.state, pair.ref.state = collections.defaultdict(dict), collections.defaultdict(dict)
    assert len(pair.opt.state) == 0
    pair.run(2, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@each_optimizer
def test_there_is_no_state_before_the_first_step(optimizer: str) -> None:
    pair = Pair.of(layers(), optimizer)
    weight = pair.ours[0].weight
    assert weight not in pair.opt.state
    assert len(pair.opt.state) == 0
    pair.run(1)
    assert weight in pair.opt.state
    assert len(pair.opt.state) == 4


def test_an_entry_is_one_object_that_follows_every_step() -> None:
    pair = Pair.of(layers(), "adamw")
    pair.run(1)
    entry = pair.opt.state[pair.ours[0].weight]
    step, average = entry["step"], entry["exp_avg"]
    pair.run(2, seed=2)
    assert pair.opt.state[pair.ours[0].weight] is entry
    assert step.item() == 3
    assert torch.equal(average, pair.opt.state_dict()["state"][0]["exp_avg"])


def test_state_of_what_was_frozen_before_the_store_is_kept() -> None:
    """There is no room for it: it waits, and is used once the variable trains again."""
    module = layers()
    reference = torch.optim.AdamW(module.parameters(), lr=0.02)
    module(torch.ones(2, 5)).square().sum().backward()
    reference.step()
    saved = reference.state_dict()
    module[0].requires_grad_(False)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW(module.parameters(), lr=0.02)
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], saved["state"][0]["exp_avg"])
    assert optimizer.state_dict()["state"][0]["step"] == 1
    module[0].requires_grad_(True)
    store.unfreeze("0.*")
    module(torch.ones(2, 5)).square().sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_shows_nowhere(dtype: torch.dtype) -> None:
    pair = Pair.of(layers(), "adamw")
    pair.opt.max_norm = 1e9
    torch.set_default_dtype(dtype)
    try:
        for _ in range(257):
            for module, opt in ((pair.ours, pair.opt), (pair.theirs, pair.ref)):
                for param in module.parameters():
                    param.grad = torch.ones_like(param)
                opt.step()
        assert pair.opt.state_dict()["state"][0]["step"] == 257
        assert pair.opt.grad_norm.dtype == torch.float32
        assert pair.store.grad_norm().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    # 257 steps of float32, each rounded by itself.
    for ours, theirs in zip(pair.ours.parameters(), pair.theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_collected_stays() -> None:
    """`grad_norm` and `skipped` of each step, not of the last one."""
    module = nn.Linear(2, 1, bias=False)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.SGD(store, lr=0.0, max_norm=1.0, skip_nonfinite=True)
    norms, skipped = [], []
    for size in (3.0, torch.inf, 4.0):
        for accumulate in (False, True):
            module.weight.grad = torch.tensor([[size, 0.0]])
            if accumulate:
                store.accumulate()
            optimizer.step()
            optimizer.zero_grad()
            norms.append(optimizer.grad_norm)
            skipped.append(optimizer.skipped)
    assert [norm.item() for norm in norms] == [3.0, 3.0, torch.inf, torch.inf, 4.0, 4.0]
    assert [count.item() for count in skipped] == [0, 0, 1, 2, 2, 2]


def test_momentum_that_is_switched_on_later_begins_with_the_whole_gradient() -> None:
    pair = Pair.of(layers(), "sgd-dampening")
    for opt in (pair.opt, pair.ref):
        opt.param_groups[0]["momentum"] = 0.0
    pair.run(2)
    for opt in (pair.opt, pair.ref):
        opt.param_groups[0]["momentum"] = 0.9
    pair.run(3, seed=2)
    pair.assert_values_close()
