"""Version counters: a backward pass notices a step after its forward pass, and no write to another variable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import Chain

from .pairs import MODES, Pair

X = torch.linspace(-1.0, 1.0, 8).view(2, 4)
IDS = torch.tensor([1, 4, 4])


def loss(module: nn.Module) -> Tensor:
    return module(X).square().sum()


@pytest.mark.row("P-A-04")
@pytest.mark.parametrize("how", ["scattered", "accumulated"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion"])
def test_a_step_between_forward_and_backward_raises(optimizer: str, mode: str, how: str) -> None:
    """As torch's loops over tensors make it; torch's fused AdamW forgets to, and the backward pass uses new values."""
    pair = Pair.of(Chain(), optimizer, mode)
    if optimizer == "adamw":
        pair.ref = torch.optim.AdamW(pair.theirs.parameters(), foreach=False)
    pair.both(loss)
    late = [loss(module) for module in (pair.ours, pair.theirs)]
    if how == "accumulated":
        pair.store.accumulate()
    pair.step()
    for value in late:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("mode", MODES)
def test_variables_that_the_step_leaves_out_may_be_used_in_between(mode: str) -> None:
    """The first layer gets no gradient and the last is frozen: a backward pass through both goes on."""
    pair = Pair.of(Chain(), "adamw", mode)
    pair.store.freeze("layers.2.*")
    pair.theirs.layers[2].requires_grad_(False)
    for module in (pair.ours, pair.theirs):
        module.active = [0, 2]
    late = [loss(module) for module in (pair.ours, pair.theirs)]
    for module in (pair.ours, pair.theirs):
        module.layers[1](X).sum().backward()
    pair.step()
    for value in late:
        value.backward()
    pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_stepped_counters_move_and_others_do_not(mode: str) -> None:
    pair = Pair.of(Chain(), "sgd", mode)
    pair.ours.layers[1](X).sum().backward()
    before = {name: param._version for name, param in pair.ours.named_parameters()}
    pair.opt.step()
    for name, param in pair.ours.named_parameters():
        assert (param._version > before[name]) == name.startswith("layers.1."), name


def test_an_in_place_write_to_one_parameter_leaves_the_others_usable() -> None:
    pair = Pair.of(Chain())
    value = loss(pair.ours)
    with torch.no_grad():
        pair.ours.layers[0].bias.add_(1.0)  # no backward pass reads a bias
    value.backward()
    assert pair.ours.layers[2].weight.grad is not None
    value = loss(pair.ours)
    with torch.no_grad():
        pair.ours.layers[1].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


class Renormed(nn.Module):
    """A lookup that writes to its table in the forward pass, behind a layer whose weight autograd has saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.embed = nn.Embedding(7, 5, max_norm=0.5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(torch.tanh(self.first.weight.t() @ self.first(x).t()).t()))
        return self.last(hidden.sum(0) + self.embed(IDS))


@pytest.mark.row("P-A-05")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_an_embedding_with_max_norm_trains_among_others(optimizer: str, mode: str) -> None:
    pair = Pair.of(Renormed(), optimizer, mode)
    for group in (*pair.opt.param_groups, *pair.ref.param_groups):
        group["lr"] *= 0.1  # at ten times that, values grow a hundredfold in these steps, and rounding with them
    for _ in range(6):
        pair.zero_grad()
        pair.both(loss)
        pair.step()
    pair.ours(X)
    assert pair.ours.embed.weight.detach()[IDS].norm(dim=1).max() <= 0.5 + 1e-5
    pair.theirs(X)
    pair.assert_values_close()
    pair.assert_states_close()
    pair.store.check()


def test_loading_values_moves_the_counter() -> None:
    pair = Pair.of(Chain())
    value = loss(pair.ours)
    pair.ours.load_state_dict(pair.theirs.state_dict())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
