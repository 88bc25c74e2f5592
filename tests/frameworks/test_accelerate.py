"""Hugging Face Accelerate: prepare, accumulate, clip, save and load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.parity.pairs import assert_close
from tests.support.frameworks import needed
from tests.support.models import Chain

accelerate = needed("accelerate")
state = needed("accelerate.state")

# The frameworks' own deprecations are not ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _alone() -> None:
    """Accelerate keeps one state per process."""
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


def batches() -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.utils.data.DataLoader(torch.randn(16, 4, generator=generator), batch_size=2)


def train(net: nn.Module, opt: torch.optim.Optimizer, epochs: int = 2, save: Path | None = None) -> Any:
    """Two micro-batches a step, clipped, under a schedule; saves after the first epoch."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
    net, opt, loader, schedule = accelerator.prepare(net, opt, batches(), schedule)
    for epoch in range(epochs):
        for batch in loader:
            with accelerator.accumulate(net):
                accelerator.backward(net(batch).square().sum())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 0.5)
                opt.step()
                schedule.step()
                opt.zero_grad()
        if save is not None and epoch == 0:
            accelerator.save_state(str(save))
    return accelerator


@pytest.mark.row("P-G-13", "P-O-01")
def test_it_trains_as_with_torch() -> None:
    net = Chain()
    plain = copy.deepcopy(net)
    store = fv.VarStore.from_module(net)
    train(net, fv.optim.AdamW(store, lr=0.02))
    train(plain, torch.optim.AdamW(plain.parameters(), lr=0.02))
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert_close(ours.detach(), theirs.detach(), "value")
    store.check()


@pytest.mark.row("P-O-07")
def test_a_saved_state_is_loaded_in_place(tmp_path: Path) -> None:
    net = Chain()
    store = fv.VarStore.from_module(net)
    opt = fv.optim.AdamW(store, lr=0.02)
    accelerator = train(net, opt, epochs=1, save=tmp_path / "state")
    before, moments = store.values.clone(), opt.state_dict()["state"][0]["exp_avg"].clone()
    net.layers[0].weight.grad = torch.ones(4, 4)
    opt.step()
    assert not torch.equal(store.values, before)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(store.values, before)
    assert torch.equal(opt.state_dict()["state"][0]["exp_avg"], moments)
    store.check()
