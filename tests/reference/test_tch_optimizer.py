"""What optimizers of tch-rs do, and what flatvars has beyond: one test a row at least."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import flatvars as fv

ALL = {
    "sgd": (fv.optim.SGD, {"momentum": 0.5}),
    "rmsprop": (fv.optim.RMSprop, {}),
    "adam": (fv.optim.Adam, {}),
    "adamw": (fv.optim.AdamW, {}),
    "lion": (fv.optim.Lion, {}),
}
every_optimizer = pytest.mark.parametrize("name", ALL)


def two_groups() -> tuple[fv.VarStore, Tensor, Tensor]:
    """A store with `a` in group 0 and `b` in group 2, both ones."""
    store = fv.VarStore()
    return store, store.root().ones("a", (3,)), store.root().set_group(2).ones("b", (2,))


def make(name: str, store: fv.VarStore, **options: Any) -> fv.optim.Optimizer:
    kind, defaults = ALL[name]
    return kind(store, **{"lr": 0.1, **defaults, **options})


def values(optimizer: fv.optim.Optimizer, name: str) -> list[Any]:
    return [group[name] for group in optimizer.param_groups]


@pytest.mark.row("T-O-01")
@every_optimizer
def test_built_from_a_store(name: str) -> None:
    store, a, b = two_groups()
    optimizer = make(name, store)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(a)], [], [id(b)]]
    assert values(optimizer, "lr") == [0.1, 0.1, 0.1]


@pytest.mark.row("T-O-02")
@pytest.mark.parametrize("mode", ["gather", "views"])
@every_optimizer
def test_variables_may_come_after_the_optimizer(name: str, mode: str) -> None:
    """One built before and one built after the model take the same steps; a third variable joins between two steps."""
    stores = [fv.VarStore(grads=mode), fv.VarStore(grads=mode)]
    early = make(name, stores[0])
    for store in stores:
        fv.nn.linear(store.root() / "layer", 3, 2)
    late = make(name, stores[1])
    for step in range(4):
        if step == 2:
            for store in stores:
                store.root().ones("gain", (2,))
        for store, optimizer in zip(stores, (early, late), strict=True):
            loss = sum((v.param * (i + 1)).sin().sum() for i, v in enumerate(store.trainable_variables()))
            optimizer.backward_step(loss)
    for left, right in zip(*(store.variables().values() for store in stores), strict=True):
        assert torch.equal(left.value, right.value), left.name
        assert not torch.equal(left.value, torch.ones(left.shape))
    stores[0].check()


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
    assert ours == {key: theirs[key] for key in ours}
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


@pytest.mark.row("T-O-07")
def test_a_group_number_makes_all_groups_below_from_the_defaults() -> None:
    store = fv.VarStore()
    optimizer = fv.optim.AdamW(store, lr=1.0)
    assert len(optimizer.param_groups) == 1
    optimizer.set_lr(0.3)
    optimizer.set_lr_group(0, 0.1)
    optimizer.set_weight_decay(0.5)
    optimizer.set_momentum(0.7)
    late = store.root().set_group(7).ones("late", (2,))
    optimizer.backward_step(late.sum())
    assert len(optimizer.param_groups) == 8
    assert values(optimizer, "lr") == [0.1] + [0.3] * 7
    assert values(optimizer, "weight_decay") == [0.5] * 8
    assert values(optimizer, "betas") == [(0.7, 0.999)] * 8
    assert [len(group["params"]) for group in optimizer.param_groups] == [0] * 7 + [1]


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


@pytest.mark.row("T-O-09")
@pytest.mark.row("T-O-11")
@pytest.mark.row("T-O-12")
@pytest.mark.parametrize("setter", ["set_lr_group", "set_momentum_group", "set_weight_decay_group"])
@pytest.mark.parametrize("number", [-1, 3, 7])
def test_groups_that_do_not_exist(number: int, setter: str) -> None:
    store, _, _ = two_groups()
    optimizer = make("adamw", store)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(IndexError, match=rf"param group {number} does not exist.* has 3, numbered from 0.*set_group"):
        getattr(optimizer, setter)(number, 0.5)
    assert [dict(group) for group in optimizer.param_groups] == before


@pytest.mark.row("T-O-09")
def test_a_group_exists_once_a_variable_is_declared_in_it() -> None:
    store, _, _ = two_groups()
    optimizer = make("sgd", store)
    store.root().set_group(4).ones("late", (1,))
    optimizer.set_lr_group(4, 0.7)
    assert values(optimizer, "lr") == [0.1, 0.1, 0.1, 0.1, 0.7]


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


@pytest.mark.row("T-O-13")
def test_zero_grad_makes_none() -> None:
    store, a, b = two_groups()
    optimizer = make("sgd", store)
    (a.sum() + b.sum()).backward()
    optimizer.zero_grad()
    assert a.grad is None
    assert b.grad is None
    assert store.gradient_names() == []


@pytest.mark.row("T-O-16")
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_step_leaves_variables_without_a_gradient(name: str) -> None:
    store, a, b = two_groups()
    optimizer = make(name, store, weight_decay=0.5)
    a.sum().backward()
    optimizer.step()
    assert torch.equal(b.detach(), torch.ones(2))
    assert optimizer.state[b] == {}
    assert a.max() < 1.0


@pytest.mark.row("T-O-16")
@pytest.mark.parametrize("how", ["plain", "store"])
def test_a_gradient_that_is_left_on_a_frozen_variable(how: str) -> None:
    """Plain `requires_grad_(False)` leaves it, and it is stepped as by libtorch; `store.freeze` wins."""
    store, a, b = two_groups()
    optimizer = make("sgd", store)
    (a.sum() + b.sum()).backward()
    if how == "plain":
        b.requires_grad_(False)
    else:
        store.freeze("b", clear_grad=False)
    optimizer.step()
    assert bool(b.max() < 1.0) == (how == "plain")


@pytest.mark.row("T-O-17")
def test_backward_step_is_zero_grad_backward_step() -> None:
    results = []
    for one_call in (True, False):
        store, a, b = two_groups()
        optimizer = make("adamw", store)
        a.grad = torch.full((3,), 100.0)
        loss = (a * a).sum() + b.sum()
        if one_call:
            optimizer.backward_step(loss)
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(store.ravel())
    assert torch.equal(*results)


@pytest.mark.row("T-O-20")
def test_trainable_variables() -> None:
    store, _, _ = two_groups()
    store.root().zeros_no_train("buffer", (2,))
    whole = make("sgd", store)
    part = fv.optim.SGD([{"params": "b"}], store=store)
    assert [v.name for v in whole.trainable_variables()] == ["a", "b"]
    assert [v.name for v in part.trainable_variables()] == ["b"]
    store.freeze("a")
    store.root().ones("late", (1,))
    assert [v.name for v in whole.trainable_variables()] == ["a", "b", "late"]


@pytest.mark.row("T-O-21")
def test_clipping_is_an_argument_of_the_optimizer() -> None:
    """ocaml-torch gives it to `step`; here it is `max_norm=`, inside the step."""
    store, a, b = two_groups()
    optimizer = make("sgd", store, momentum=0.0, max_norm=0.5)
    optimizer.backward_step((3.0 * a).sum() + 0.0 * b.sum())
    torch.testing.assert_close((1.0 - a.detach()).norm(), torch.tensor(0.05))


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
