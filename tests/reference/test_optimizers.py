"""Optimizers from a store: arguments, defaults, and what they share with torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import flatvars as fv

from .material import every_optimizer, make, two_groups, values


@pytest.mark.row("T-O-01")
@every_optimizer
def test_built_from_a_store(name: str) -> None:
    store, a, b = two_groups()
    optimizer = make(name, store)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(a)], [], [id(b)]]
    assert values(optimizer, "lr") == [0.1, 0.1, 0.1]


@pytest.mark.row("T-O-03")
def test_nesterov_needs_momentum_without_dampening() -> None:
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        fv.optim.SGD(fv.VarStore(), nesterov=True)
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        fv.optim.SGD(fv.VarStore(), nesterov=True, momentum=0.9, dampening=0.1)


@pytest.mark.row("T-O-03")
@pytest.mark.row("T-O-04")
@pytest.mark.row("T-O-05")
@pytest.mark.row("T-O-06")
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_defaults_are_torchs(name: str) -> None:
    """tch's are libtorch's, which are torch.optim's: its steps are followed by tests/parity."""
    ours = getattr(fv.optim, name)(fv.VarStore()).defaults
    theirs = getattr(torch.optim, name)([torch.zeros(1)]).defaults
    own = {key: value for key, value in ours.items() if key not in theirs}
    assert set(own) <= {"cautious_decay", "cautious"}
    assert not any(own.values())
    assert {key: value for key, value in ours.items() if key not in own} == {k: theirs[k] for k in ours if k in theirs}
    expected = {
        "SGD": {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False},
        "Adam": {"betas": (0.9, 0.999), "weight_decay": 0, "eps": 1e-8, "amsgrad": False},
        "AdamW": {"betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-8, "amsgrad": False},
        "RMSprop": {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "centered": False},
    }[name]
    assert {key: ours[key] for key in expected} == expected


@pytest.mark.row("T-O-06")
@pytest.mark.parametrize("bad", ["lr", "alpha", "eps", "weight_decay", "momentum"])
def test_rmsprop_refuses_negative_numbers(bad: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid {bad} value: -1"):
        fv.optim.RMSprop(fv.VarStore(), **{bad: -1.0})


@pytest.mark.row("T-O-06")
def test_rmsprop_keeps_states_of_the_groups_that_have_them() -> None:
    store, a, b = two_groups()
    optimizer = fv.optim.RMSprop(store, lr=0.1)
    optimizer.param_groups[2].update(momentum=0.9, centered=True)
    optimizer.backward_step(a.sum() + b.sum())
    assert set(optimizer.state[a]) == {"step", "square_avg"}
    assert set(optimizer.state[b]) == {"step", "square_avg", "momentum_buffer", "grad_avg"}


@pytest.mark.row("T-O-22")
def test_what_tch_lacks() -> None:
    """Saved state, schedulers, closures, numbers of groups to read, groups by pattern."""
    store, a, b = two_groups()
    optimizer = fv.optim.AdamW([{"params": "a", "lr": 0.5}, {"params": "*"}], store=store, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (a * a).sum() + b.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5.0
    scheduler.step()
    assert values(optimizer, "lr") == [0.25, 0.05]
    saved = optimizer.state_dict()
    twin = torch.optim.AdamW([{"params": [a.detach().clone()]}, {"params": [b.detach().clone()]}])
    twin.load_state_dict(saved)
    assert twin.param_groups[0]["lr"] == 0.25
    assert torch.equal(twin.state[twin.param_groups[0]["params"][0]]["exp_avg"], optimizer.state[a]["exp_avg"])
