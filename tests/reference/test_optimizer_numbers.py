"""Learning rate, momentum and weight decay, set on the way: by call, by tensor, by schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import flatvars as fv

from .material import (
    ALL,
    assert_same,
    batch_loss,
    encoder_and_head,
    every_optimizer,
    loss_of,
    make,
    pair,
    two_groups,
    values,
)


@pytest.mark.row("T-O-08")
@pytest.mark.row("T-O-09")
@every_optimizer
def test_set_lr_overrides_groups(name: str) -> None:
    store, a, b = two_groups()
    optimizer = make(name, store)
    optimizer.set_lr_group(2, 0.0)
    assert values(optimizer, "lr") == [0.1, 0.1, 0.0]
    optimizer.backward_step(a.sum() + b.sum())
    assert torch.equal(b.detach(), torch.ones(2))
    assert a.max() < 1.0
    optimizer.set_lr(0.2)
    assert values(optimizer, "lr") == [0.2] * 3
    assert optimizer.defaults["lr"] == 0.2
    optimizer.backward_step(a.sum() + b.sum())
    assert b.max() < 1.0


@pytest.mark.row("T-O-08")
def test_a_learning_rate_tensor_stays_that_tensor() -> None:
    store, a, b = two_groups()
    lr = torch.tensor(0.1)
    optimizer = fv.optim.SGD(store, lr=lr)
    optimizer.set_lr(0.5)
    assert all(each is lr for each in values(optimizer, "lr"))
    optimizer.backward_step(a.sum() + b.sum())
    assert a.tolist() == [0.5] * 3


@pytest.mark.row("T-O-10")
@pytest.mark.row("T-O-11")
@every_optimizer
def test_momentum_is_the_first_beta_where_there_are_betas(name: str) -> None:
    """tch sets it for a group of Adam's or RMSprop's, and then panics."""
    store, _, _ = two_groups()
    optimizer = make(name, store)
    key, of = (
        ("betas", lambda m: (m, optimizer.defaults["betas"][1]))
        if "betas" in optimizer.defaults
        else ("momentum", float)
    )
    optimizer.set_momentum(0.3)
    assert values(optimizer, key) == [of(0.3)] * 3
    assert optimizer.defaults[key] == of(0.3)
    optimizer.set_momentum_group(2, 0.6)
    assert values(optimizer, key) == [of(0.3), of(0.3), of(0.6)]
    assert optimizer.defaults[key] == of(0.3)


@pytest.mark.row("T-O-10")
@every_optimizer
def test_momentum_that_was_set_is_used(name: str) -> None:
    """The same steps as of an optimizer that was made with it."""
    results = []
    for given in (True, False):
        store, a, b = two_groups()
        second = ALL[name][0](store).defaults.get("betas", (0, 0))[1]
        options = {"betas": (0.3, second)} if second else {"momentum": 0.3}
        optimizer = make(name, store, **(options if given else {}))
        if not given:
            optimizer.set_momentum(0.3)
        for k in range(3):
            optimizer.backward_step(((k + 1) * a).cos().sum() + (b * b).sum())
        results.append(store.ravel())
    assert torch.equal(*results)


@pytest.mark.row("T-O-12")
@every_optimizer
def test_weight_decay(name: str) -> None:
    store, _, _ = two_groups()
    optimizer = make(name, store)
    optimizer.set_weight_decay(0.3)
    assert values(optimizer, "weight_decay") == [0.3] * 3
    optimizer.set_weight_decay_group(0, 0.0)
    assert values(optimizer, "weight_decay") == [0.0, 0.3, 0.3]
    assert optimizer.defaults["weight_decay"] == 0.3


@pytest.mark.row("T-O-08")
@pytest.mark.row("T-O-10")
@pytest.mark.row("T-O-12")
def test_numbers_out_of_range_are_refused() -> None:
    store, _, _ = two_groups()
    adam, sgd = make("adam", store), make("sgd", store)
    for call in (adam.set_lr, sgd.set_momentum, adam.set_weight_decay):
        with pytest.raises(ValueError, match=r"Invalid \w+ value: -0\.1; it must be at least 0"):
            call(-0.1)
        with pytest.raises(ValueError, match=r"Invalid \w+ value: nan"):
            call(math.nan)
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 1\.0"):
        adam.set_momentum(1.0)
    assert values(adam, "lr") + values(sgd, "momentum") == [0.1] * 3 + [0.5] * 3


@pytest.mark.row("T-O-10")
@pytest.mark.row("T-O-12")
def test_an_optimizer_without_the_number_says_which_it_has() -> None:
    store, _, _ = two_groups()
    optimizer = fv.optim.RuleOptimizer(store, ONLY_RATE, lr=0.1)
    with pytest.raises(ValueError, match="RuleOptimizer has no momentum; the numbers of its param groups are lr"):
        optimizer.set_momentum(0.5)
    with pytest.raises(ValueError, match="RuleOptimizer has no weight_decay"):
        optimizer.set_weight_decay_group(0, 0.5)
    optimizer.set_lr(0.5)
    assert values(optimizer, "lr") == [0.5] * 3


@fv.optim.rule(hyper=("lr",))
def ONLY_RATE(p, g, state, hyper, step):  # type: ignore[no-untyped-def]  # noqa: N802
    return p - hyper[0] * g, state


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
        optimizer.backward_step(batch_loss(ours, seed))
        reference.zero_grad()
        batch_loss(theirs, seed).backward()
        reference.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert_same(ours, theirs)


@pytest.mark.row("B-10")
def test_a_schedule_for_each_group() -> None:
    store, model = encoder_and_head()
    optimizer = fv.optim.SGD([{"params": "encoder.*"}, {"params": "*"}], store=store, lr=0.1)
    schedule = LambdaLR(optimizer, [lambda epoch: 0.5**epoch, lambda epoch: 0.0 if epoch else 1.0])
    optimizer.backward_step(loss_of(model))
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0]
    head, encoder = store["head.weight"].value.clone(), store["encoder.0.weight"].value.clone()
    optimizer.backward_step(loss_of(model))
    assert torch.equal(store["head.weight"].value, head)
    assert not torch.equal(store["encoder.0.weight"].value, encoder)
