"""Which variables an optimizer steps, and in which param group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.variables.variable import Variable

from .material import (
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


@pytest.mark.row("B-07")
@pytest.mark.row("J-04")
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("micro", [1, 2])
def test_an_optimizer_for_each_part_of_a_store(micro: int, mode: str) -> None:
    """Each steps its own variables, as torch's optimizers over the same parts do."""
    store, model = encoder_and_head(mode)
    twin = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))
    twin.load_state_dict(model.state_dict())
    ours = [
        fv.optim.AdamW([{"params": "encoder.*"}], store=store, lr=0.01),
        fv.optim.SGD([{"params": fv.select(exclude="encoder.*")}], store=store, lr=0.1, momentum=0.9),
    ]
    rest = [*twin[2].parameters(), *twin[3].parameters()]
    theirs = [torch.optim.AdamW(twin[0].parameters(), lr=0.01), torch.optim.SGD(rest, lr=0.1, momentum=0.9)]
    for _ in range(4):
        for optimizer in (*ours, *theirs):
            optimizer.zero_grad()
        for _ in range(micro):
            loss_of(model).backward()
            loss_of(twin).backward()
            if micro > 1:
                store.accumulate()
        for optimizer in (*ours, *theirs):
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=5e-6, atol=5e-7)


@pytest.mark.row("B-07")
def test_the_first_group_that_matches_wins() -> None:
    """burn takes the last; here as in a list of cases, from the particular to the general."""
    store, _ = encoder_and_head()
    groups = [{"params": "*.bias", "lr": 0.5}, {"params": "encoder.*"}, {"params": "*"}]
    optimizer = fv.optim.SGD(groups, store=store, lr=0.1)
    names = [[store_name(store, p) for p in group["params"]] for group in optimizer.param_groups]
    assert names == [["encoder.0.bias", "norm.bias", "head.bias"], ["encoder.0.weight"], ["norm.weight", "head.weight"]]
    with pytest.raises(fv.UnknownNameError, match=r"pattern 'decoder\.\*' matches none of the 6 names"):
        fv.optim.SGD([{"params": "decoder.*"}], store=store)


def store_name(store: fv.VarStore, param: Tensor) -> str:
    return next(name for name, v in store.variables().items() if v.param is param)


def is_vector(variable: Variable) -> bool:
    return len(variable.shape) < 2


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
        optimizer.backward_step(batch_loss(ours, seed))
        reference.zero_grad()
        batch_loss(theirs, seed).backward()
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
    optimizer.backward_step(batch_loss(ours))
    left = store.unravel(before)
    assert [name for name, v in store.variables().items() if not torch.equal(v.value, left[name])] == [
        "0.weight",
        "0.bias",
    ]
    with pytest.raises(ValueError, match="more than one parameter group"):
        fv.optim.SGD([{"params": [ours[0].weight]}, {"params": [ours[0].weight]}])
