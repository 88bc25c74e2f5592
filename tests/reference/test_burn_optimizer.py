"""What burn's and dfdx's optimizers do: selected freezing, several optimizers, clipping per variable, micro-batches."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import flatvars as fv


def encoder_and_head(mode: str = "gather") -> tuple[fv.VarStore, nn.Module]:
    store = fv.VarStore(grads=mode)
    root = store.root()
    model = nn.Sequential(
        fv.nn.linear(root / "encoder" / 0, 5, 6),
        nn.Tanh(),
        fv.nn.layer_norm(root / "norm", 6),
        fv.nn.linear(root / "head", 6, 2),
    )
    return store, model


def loss_of(model: nn.Module, data: Tensor | None = None) -> Tensor:
    data = torch.linspace(-1.0, 1.0, 40).view(8, 5) if data is None else data
    return model(data).square().mean()


@pytest.mark.row("B-06")
def test_only_what_is_selected_is_frozen() -> None:
    store, model = encoder_and_head()
    before = {name: v.value.clone() for name, v in store.variables().items()}
    store.freeze(fv.select("encoder.*", re.compile(r"^norm"), exclude="*.bias"))
    frozen = {"encoder.0.weight", "norm.weight"}
    assert {v.name for v in store.trainable_variables() if not v.requires_grad} == frozen
    fv.optim.SGD(store, lr=0.1).backward_step(loss_of(model))
    moved = {name for name, v in store.variables().items() if not torch.equal(v.value, before[name])}
    assert moved == set(before) - frozen
    store.unfreeze("norm.*")
    assert {v.name for v in store.trainable_variables() if not v.requires_grad} == {"encoder.0.weight"}


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


@pytest.mark.row("B-08")
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_clipping_each_variable(order: float, mode: str) -> None:
    store, model = encoder_and_head(mode)
    store.root().ones("unused", (3,))
    (30.0 * loss_of(model)).backward()
    before = {name: grad.clone() for name, v in store.variables().items() if (grad := v.grad) is not None}
    expected_norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in before.values()]), order)
    limit = sorted(torch.linalg.vector_norm(g, order).item() for g in before.values())[2] * 1.01
    norm = store.clip_grad_norm_(limit, order, per_tensor=True)
    torch.testing.assert_close(norm, expected_norm)
    assert store["unused"].grad is None
    clipped = 0
    for name, grad in before.items():
        own = torch.linalg.vector_norm(grad, order)
        clipped += bool(own > limit)
        torch.testing.assert_close(store[name].grad, grad * min(1.0, limit / (own.item() + 1e-6)))
    assert 0 < clipped < len(before)
    store.check()


@pytest.mark.row("B-08")
def test_clipping_each_variable_keeps_a_nan_to_itself() -> None:
    store, model = encoder_and_head()
    loss_of(model).backward()
    model[3].bias.grad[0] = math.nan
    head = store["head.weight"].grad.clone()
    with pytest.raises(fv.GradientError, match=r"norm of order 2\.0 is nan"):
        store.clip_grad_norm_(1e6, error_if_nonfinite=True, per_tensor=True)
    assert store.clip_grad_norm_(1e6, per_tensor=True).isnan()
    assert store["head.bias"].grad.isnan().all()
    assert torch.equal(store["head.weight"].grad, head)


@pytest.mark.row("B-08")
def test_clipping_each_variable_needs_a_positive_order() -> None:
    store, model = encoder_and_head()
    loss_of(model).backward()
    with pytest.raises(ValueError, match=r"per_tensor=True clips by norms of a positive order, not of 0\.0"):
        store.clip_grad_norm_(1.0, 0.0, per_tensor=True)
    assert model[3].bias.grad is not None


@pytest.mark.row("B-09")
@pytest.mark.row("J-06")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_micro_batches_are_one_big_batch(dtype: torch.dtype) -> None:
    """k gradients of k-ths, added in float32: the mean over the batch, to the rounding of each."""
    data = torch.randn(12, 5).to(dtype)
    stores = []
    for k in (1, 4):
        store, model = encoder_and_head()
        store.set_dtype(dtype)
        for part in data.chunk(k):
            loss_of(model, part).backward()
            store.accumulate(scale=1 / k)
        assert store.grads.dtype == torch.float32
        stores.append(store)
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (3e-2, 1e-2)
    torch.testing.assert_close(stores[0].grads, stores[1].grads, rtol=rtol, atol=atol)
    assert stores[0].grads.norm() > 0.1


@pytest.mark.row("B-09")
def test_the_next_batch_starts_anew() -> None:
    store, model = encoder_and_head()
    optimizer = fv.optim.SGD(store, lr=0.0)
    for _ in range(2):
        for _ in range(3):
            loss_of(model).backward()
            store.accumulate(scale=1 / 3)
        summed = store.grads.clone()
        optimizer.step()
    loss_of(model).backward()
    store.accumulate()
    torch.testing.assert_close(store.grads, summed)


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


@pytest.mark.row("D-01")
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_strict_steps_name_what_was_not_used(mode: str) -> None:
    store, model = encoder_and_head(mode)
    store.root().ones("forgotten", (3,))
    optimizer = fv.optim.SGD(store, lr=0.1)
    before = store.ravel()
    loss_of(model).backward()
    with pytest.raises(fv.GradientError, match=r"1 variables have no gradient: 'forgotten'; nothing was stepped"):
        optimizer.step(strict=True)
    assert torch.equal(store.ravel(), before)
    store.freeze("forgotten")
    optimizer.step(strict=True)
    assert not torch.equal(store.ravel(), before)
