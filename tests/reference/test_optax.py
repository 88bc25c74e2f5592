"""What optax builds by wrapping transformations: masks, parts, frozen leaves, micro-batches, finite steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.variables.variable import Variable


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))


def pair() -> tuple[nn.Module, nn.Module, fv.VarStore]:
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, fv.VarStore.from_module(ours)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return model(data).square().sum()


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, left), right in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=5e-6, atol=5e-7, msg=lambda text, name=name: f"{name}: {text}")


def is_vector(variable: Variable) -> bool:
    return len(variable.shape) < 2


@pytest.mark.row("J-02")
def test_one_flat_step_is_the_steps_of_all_tensors() -> None:
    """Elementwise rules do not see where a variable ends."""
    ours, theirs, store = pair()
    flat = nn.Parameter(store.ravel())
    optimizer, reference = fv.optim.AdamW(store, lr=0.01), torch.optim.AdamW([flat], lr=0.01)
    for seed in range(4):
        optimizer.zero_grad()
        loss_of(ours, seed).backward()
        flat.grad = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
        optimizer.step()
        reference.step()
    torch.testing.assert_close(store.ravel(), flat.detach(), rtol=5e-6, atol=5e-7)


@pytest.mark.row("J-03")
def test_a_predicate_chooses_what_decays() -> None:
    ours, theirs, store = pair()
    groups = [{"params": is_vector, "weight_decay": 0.0}, {"params": "*"}]
    optimizer = fv.optim.AdamW(groups, store=store, lr=0.01, weight_decay=0.5)
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    reference = torch.optim.AdamW(
        [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}], 0.01, weight_decay=0.5
    )
    for seed in range(4):
        optimizer.backward_step(loss_of(ours, seed))
        reference.zero_grad()
        loss_of(theirs, seed).backward()
        reference.step()
    assert_same(ours, theirs)


@pytest.mark.row("J-03")
def test_a_predicate_chooses_for_variables_to_come() -> None:
    store = fv.VarStore()
    groups = [{"params": is_vector, "weight_decay": 0.0}, {"params": fv.select()}]
    optimizer = fv.optim.AdamW(groups, store=store)
    layer = fv.nn.linear(store.root(), 3, 2)
    optimizer.backward_step(layer(torch.ones(3)).sum())
    assert [[p is layer.bias, p is layer.weight] for group in optimizer.param_groups for p in group["params"]] == [
        [True, False],
        [False, True],
    ]


@pytest.mark.row("J-04")
def test_a_variable_that_no_part_takes_is_left_alone() -> None:
    """optax raises for a label without a transformation; here variables of no group are not trained, as in torch."""
    ours, _, store = pair()
    optimizer = fv.optim.SGD([{"params": "0.*"}], store=store, lr=0.1)
    before = store.ravel()
    optimizer.backward_step(loss_of(ours))
    left = store.unravel(before)
    assert [name for name, v in store.variables().items() if not torch.equal(v.value, left[name])] == [
        "0.weight",
        "0.bias",
    ]
    with pytest.raises(ValueError, match="more than one parameter group"):
        fv.optim.SGD([{"params": [ours[0].weight]}, {"params": [ours[0].weight]}])


@pytest.mark.row("J-05")
def test_frozen_variables_keep_their_bits_and_their_moments() -> None:
    ours, _, store = pair()
    optimizer = fv.optim.AdamW(store, lr=0.01, weight_decay=0.5)
    optimizer.backward_step(loss_of(ours))
    store.freeze("0.*")
    value = store["0.weight"].value.clone()
    state = {key: entry.clone() for key, entry in optimizer.state[ours[0].weight].items()}
    for seed in range(3):
        optimizer.backward_step(loss_of(ours, seed))
    assert torch.equal(store["0.weight"].value, value)
    store.unfreeze()
    assert all(torch.equal(entry, state[key]) for key, entry in optimizer.state[ours[0].weight].items())


@pytest.mark.row("J-06")
def test_a_micro_batch_that_is_not_finite_can_be_left_out() -> None:
    """Without synchronizing until asked: the norm is a device scalar, and the user decides before accumulating."""
    ours, theirs, store = pair()
    for seed, factor in [(0, 1.0), (1, math.nan), (2, 1.0)]:
        (factor * loss_of(ours, seed)).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()])
        if norm.isfinite():
            store.accumulate(scale=1 / 2)
        else:
            ours.zero_grad()
    (0.5 * loss_of(theirs, 0) + 0.5 * loss_of(theirs, 2)).backward()
    for v, param in zip(store.trainable_variables(), theirs.parameters(), strict=True):
        torch.testing.assert_close(v.grad, param.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.row("J-07")
def test_steps_that_are_not_finite_are_counted_and_change_nothing() -> None:
    ours, theirs, store = pair()
    optimizer = fv.optim.AdamW(store, lr=0.01, skip_nonfinite=True)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for seed, factor in enumerate([1.0, math.nan, math.inf, 1.0, -math.inf]):
        optimizer.backward_step(factor * loss_of(ours, seed))
        if math.isfinite(factor):
            reference.zero_grad()
            loss_of(theirs, seed).backward()
            reference.step()
    assert optimizer.skipped.item() == 3
    assert optimizer.skipped.device == store.device
    assert optimizer.state[ours[0].weight]["step"] == 2.0
    assert_same(ours, theirs)


@pytest.mark.row("J-08")
def test_hyper_parameters_may_live_in_a_tensor() -> None:
    """A schedule writes into it, and the next step uses it."""
    ours, theirs, store = pair()
    lr = torch.tensor(0.0)
    optimizer = fv.optim.SGD(store, lr=lr)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.0)
    for seed, rate in enumerate([0.01, 0.0, 0.02]):
        lr.fill_(rate)
        reference.param_groups[0]["lr"] = rate
        optimizer.backward_step(loss_of(ours, seed))
        reference.zero_grad()
        loss_of(theirs, seed).backward()
        reference.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert_same(ours, theirs)


@pytest.mark.row("J-09")
def test_the_clip_coefficient_is_torchs() -> None:
    """Refused on purpose: optax divides by the norm itself, torch by norm + 1e-6, and results here are torch's."""
    store = fv.VarStore()
    weight = store.root().zeros("weight", (1,))
    fv.optim.SGD(store, lr=1.0).backward_step_clip_norm((1e-6 * weight).sum(), 1e-7)
    assert weight.item() == pytest.approx(-1e-6 * 1e-7 / (1e-6 + 1e-6), rel=1e-5)
