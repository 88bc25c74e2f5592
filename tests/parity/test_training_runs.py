"""Known architectures for 20 steps: the same losses as clip_grad_norm_ and torch.optim.AdamW(fused=True)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import flatvars as fv

from .networks import NETWORKS, Network
from .pairs import MODES, Pair

STEPS = 20
MAX_NORM = 0.1
# Relative, of losses: values differ by an ulp or two of float32 (1.2e-7) a step, in either direction, and a smooth
# network passes that on; 5e-7 was the worst of 28 runs here. A step that forgets its weight decay is 1e-4 off.
LOSS_TOLERANCE = 3e-6
# Relative, of norms of gradients, and absolute, of batch norms' averages: where a gradient is nearly 0, Adam divides
# one rounding error by another, so that single values differ by more than the losses show.
NORM_TOLERANCE = 1e-5
AVERAGE_TOLERANCE = 1e-5


def seeded_loss(network: Network, module: nn.Module, step: int) -> torch.Tensor:
    """With the same dropout in both twins."""
    torch.manual_seed(step)
    return network.loss(module, step)


def trained(network: Network, mode: str) -> tuple[Pair, list[float], list[float], int]:
    """Both twins after STEPS steps, their losses, and how many steps were clipped."""
    pair = Pair.of(network.make(), mode=mode)
    pair.opt = fv.optim.AdamW(pair.ours.parameters(), lr=network.lr, weight_decay=0.1, max_norm=MAX_NORM)
    pair.ref = torch.optim.AdamW(pair.theirs.parameters(), lr=network.lr, weight_decay=0.1, fused=True)
    ours, theirs, clipped = [], [], 0
    for step in range(STEPS):
        losses = [seeded_loss(network, module, step) for module in (pair.ours, pair.theirs)]
        for loss in losses:
            loss.backward()
        norm = clip_grad_norm_(pair.theirs.parameters(), MAX_NORM)
        pair.step()
        torch.testing.assert_close(pair.opt.grad_norm, norm, rtol=NORM_TOLERANCE, atol=0.0)
        pair.zero_grad()
        clipped += bool(norm > MAX_NORM)
        ours.append(losses[0].item())
        theirs.append(losses[1].item())
    return pair, ours, theirs, clipped


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_are_those_of_torch(name: str, mode: str) -> None:
    pair, ours, theirs, clipped = trained(NETWORKS[name], mode)
    assert ours[0] == theirs[0]
    assert ours == pytest.approx(theirs, rel=LOSS_TOLERANCE, abs=0.0)
    assert clipped >= STEPS // 4, "the clipping was not tried"
    assert sum(ours[-3:]) < 0.9 * sum(ours[:3]), "nothing was learned"
    pair.store.check()
    for (key, value), other in zip(pair.ours.named_buffers(), pair.theirs.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=0.0, atol=AVERAGE_TOLERANCE, msg=key)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_adoption_changes_no_bit(name: str, mode: str) -> None:
    network = NETWORKS[name]
    module = network.make()
    params, state = dict(module.named_parameters()), {k: v.clone() for k, v in module.state_dict().items()}
    strides = {key: param.stride() for key, param in params.items()}
    before = [seeded_loss(network, module.train(training), 0) for training in (False, True)]
    module.load_state_dict(state)  # batch norms have counted
    store = fv.VarStore.from_module(module, grads=mode)
    after = [seeded_loss(network, module.train(training), 0) for training in (False, True)]
    assert [loss.item() for loss in before] == [loss.item() for loss in after]
    module.load_state_dict(state)
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert all(module.get_parameter(key) is param for key, param in params.items())
    assert all(param.stride() == strides[key] for key, param in params.items())
    assert [name for name in store if name in params] == list(params)


def test_a_checkpoint_moves_between_plain_and_adopted_models() -> None:
    network = NETWORKS["gpt2"]
    pair, *_ = trained(network, "gather")
    fresh = network.make()
    fresh.load_state_dict(pair.ours.state_dict())
    module = network.make()
    store = fv.VarStore.from_module(module)
    module.load_state_dict(fresh.state_dict())
    store.check()
    losses = {seeded_loss(network, twin.eval(), 0).item() for twin in (pair.ours, fresh, module)}
    assert len(losses) == 1
