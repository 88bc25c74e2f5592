"""torch.amp.GradScaler: it hands its scale and its verdict to the step, which unscales, clips and skips by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.parity.pairs import MODES, Pair, assert_close
from tests.support.models import Chain

Scaler = torch.amp.GradScaler


def scaled_run(
    pair: Pair, step: Callable[[Scaler, nn.Module, Any], None], steps: int = 4, overflow: int | None = 1
) -> list[Scaler]:
    """Trains both twins under scalers of their own; one gradient of step `overflow` is infinite."""
    scalers = [Scaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)]
    for k in range(steps):
        for scaler, module, opt in zip(scalers, (pair.ours, pair.theirs), (pair.opt, pair.ref), strict=True):
            opt.zero_grad()
            scaler.scale(module(torch.ones(2, 4)).square().sum()).backward()
            if k == overflow:
                module.layers[1].bias.grad[0] = torch.inf
            step(scaler, module, opt)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale()
    return scalers


def plain(scaler: Scaler, module: nn.Module, opt: Any) -> None:
    scaler.step(opt)


def clipped(scaler: Scaler, module: nn.Module, opt: Any) -> None:
    scaler.unscale_(opt)
    nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    scaler.step(opt)


def clipped_in_step(scaler: Scaler, module: nn.Module, opt: Any) -> None:
    if isinstance(opt, fv.optim.Optimizer):
        scaler.step(opt)
    else:
        clipped(scaler, module, opt)


@pytest.mark.row("P-O-06")
@pytest.mark.parametrize("overflow", [None, 1], ids=["finite", "overflow"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adamw", "adam-amsgrad"])
def test_it_trains_as_with_torch(optimizer: str, mode: str, overflow: int | None) -> None:
    pair = Pair.of(Chain(), optimizer, mode)
    scaled_run(pair, plain, overflow=overflow)
    pair.assert_values_close()
    pair.assert_states_close()
    assert int(pair.opt.skipped) == (overflow is not None)


@pytest.mark.row("P-O-06")
@pytest.mark.parametrize("mode", MODES)
def test_unscale_before_clipping(mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode)
    scaled_run(pair, clipped)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.row("P-O-06")
@pytest.mark.parametrize("mode", MODES)
def test_max_norm_clips_the_unscaled_gradients(mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode, max_norm=0.5)
    scaled_run(pair, clipped_in_step)
    pair.assert_values_close()
    pair.assert_states_close()
    norm = nn.utils.get_total_norm([param.grad for param in pair.ours.parameters()])
    assert float(pair.opt.grad_norm) < float(norm) / 100  # that of the last step, not of what the loss was scaled to


def test_the_flat_stream_may_be_clipped_after_unscaling() -> None:
    pair = Pair.of(Chain(), "adamw")

    def step(scaler: Scaler, module: nn.Module, opt: Any) -> None:
        scaler.unscale_(opt)
        if opt is pair.opt:
            pair.store.clip_grad_norm_(0.5)
        else:
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        scaler.step(opt)

    scaled_run(pair, step)
    pair.assert_values_close()


def test_float16_gradients() -> None:
    """torch's scaler leaves them to steps that unscale by themselves."""
    module = nn.Linear(4, 2).half()
    reference = copy.deepcopy(module).float()
    opt = fv.optim.SGD(fv.VarStore.from_module(module), lr=0.5)
    scaler = Scaler("cpu", init_scale=256.0)
    (scaler.scale(module(torch.ones(1, 4).half()).float().sum())).backward()
    reference(torch.ones(1, 4)).sum().backward()
    scaler.step(opt)
    torch.optim.SGD(reference.parameters(), lr=0.5).step()
    torch.testing.assert_close(module.weight.float(), reference.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 1])
def test_gradients_that_the_scaler_cannot_see_are_refused(steps: int) -> None:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.AdamW(store, lr=0.1)
    scaler = Scaler("cpu", init_scale=64.0)
    before = store.values.clone()
    for _ in range(steps + 1):
        scaler.scale(module(torch.ones(1, 3)).sum()).backward()
        if not steps:
            store.accumulate()
    if steps:
        opt.zero_grad()
    with pytest.raises(fv.GradientError, match=r"GradScaler checked no gradient.*nothing was stepped"):
        scaler.step(opt)
    assert torch.equal(store.values, before)


def test_unscaling_twice_is_refused_as_by_torch() -> None:
    module = nn.Linear(3, 2)
    opt = fv.optim.AdamW(fv.VarStore.from_module(module))
    scaler = Scaler("cpu")
    scaler.scale(module(torch.ones(1, 3)).sum()).backward()
    scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(opt)


@pytest.mark.parametrize("accumulated", [False, True])
def test_a_grad_scale_of_ones_own(accumulated: bool) -> None:
    """A device scalar that every gradient of the step is divided by, for example a number of tokens."""
    pair = Pair.of(Chain(), "adamw", max_norm=0.5)
    for _ in range(2):
        pair.zero_grad()
        for module in (pair.ours, pair.theirs):
            module(torch.ones(2, 4)).square().sum().backward()
        if accumulated:
            pair.store.accumulate()
        for param in pair.theirs.parameters():
            param.grad.div_(7.0)
        norm = nn.utils.clip_grad_norm_(pair.theirs.parameters(), 0.5)
        pair.opt.grad_scale = torch.tensor(7.0)
        pair.step()
        assert_close(pair.opt.grad_norm, norm, "norm")
    pair.assert_values_close()
