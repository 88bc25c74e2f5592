"""Micro-batches cost launches by the store, not by the variable."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.gradients import plans
from tests.support.launches import count_operators
from tests.support.models import Bag
from tests.support.tolerances import assert_same_bits

# Matrices and vectors in turn, and one without elements: nothing here is one kind of tensor only.
KINDS = [(3, 4), (5,), (), (2, 3, 2), (0,)]
# More elements than a row of a norm, so that both have whole rows and a rest.
FEW, MANY = 100, 500


def store_of(count: int, dtype: torch.dtype = torch.float32) -> fv.VarStore:
    return fv.VarStore.from_module(Bag({f"v{i}": KINDS[i % len(KINDS)] for i in range(count)}, [dtype]))


def set_grads(store: fv.VarStore, without: int | None = None, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """A gradient for each variable, but for every `without`-th."""
    variables = store.trainable_variables()
    for i, variable in enumerate(variables):
        missing = without is not None and i % without == 0
        variable.param.grad = None if missing else torch.randn(variable.shape).to(dtype or variable.dtype)
    return [v.param.grad for v in variables]


def operators_of(store: fv.VarStore, scale: float, without: int | None) -> list[Counter[str]]:
    """Of an accumulation that overwrites and of one that adds, once their plans are made."""
    found = []
    for operation in ("overwrite, first", "add, first", "overwrite", "add"):
        set_grads(store, without)
        with count_operators() as names:
            store.accumulate(scale=scale)
        found.append(Counter(names))
        if operation == "add, first":
            store.zero_grad()
    return found[2:]


@pytest.mark.parametrize("without", [None, 3], ids=["all", "some"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_operators_do_not_grow_with_variables(scale: float, without: int | None) -> None:
    few, many = (operators_of(store_of(count), scale, without) for count in (FEW, MANY))
    assert few == many
    for counts in many:
        assert 0 < counts.total() < 20


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "one frozen in the middle"])
def test_a_tail_over_views_does_not_grow_with_variables(frozen: bool) -> None:
    """Norm, clip, step and zero_grad over gradients that lie in the stream."""
    found = []
    for count in (FEW, MANY):
        store = fv.VarStore.from_module(Bag({f"v{i}": KINDS[i % len(KINDS)] for i in range(count)}), grads="views")
        opt = fv.optim.AdamW(store, lr=0.1, max_norm=1.0)
        if frozen:
            store.freeze("v5")
        for _ in range(2):  # the first makes plans and state
            for variable in store.trainable_variables():
                if variable.requires_grad:
                    variable.param.grad.fill_(2.0)
            with count_operators() as names:
                opt.step()
                opt.zero_grad()
        found.append(Counter(names))
        assert all(not stream.any() for stream in [store.grads])
        assert [v.grad for v in store.trainable_variables()] == [None] * len(store.trainable_variables())
    assert found[0] == found[1]
    assert 0 < found[1].total() < 60


def test_the_counter_would_see_one_for_each() -> None:
    """What is one call for all variables and one call for each must not look alike."""
    store = store_of(FEW)
    set_grads(store)
    with count_operators() as names:
        for variable in store.trainable_variables():
            variable.param.grad.mul_(0.5)
    assert len(names) == FEW


def test_gradients_in_order_are_not_looked_at_one_by_one() -> None:
    store = store_of(MANY)
    for without in (None, 3):
        set_grads(store, without)
        with patch.object(plans, "in_memory_order", side_effect=AssertionError("one by one")):
            store.accumulate()
    set_grads(store)
    store["v5"].param.grad = torch.ones(4, 3).t()
    with patch.object(plans, "in_memory_order", wraps=plans.in_memory_order) as slow:
        store.accumulate()
    assert slow.call_count == MANY


ODD = {
    "transposed": lambda: torch.randn(4, 3).t(),
    "expanded": lambda: torch.randn(1, 1).expand(3, 4),
    "sparse": lambda: torch.randn(3, 4).to_sparse(),
    "negated": lambda: torch._neg_view(torch.randn(3, 4)),
    "float64": lambda: torch.randn(3, 4, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(3, 4).bfloat16(),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("add", [False, True])
def test_one_odd_gradient_among_many(add: bool, odd) -> None:  # type: ignore[no-untyped-def]
    store = store_of(FEW)
    total = torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(1 + add):
        grads = [torch.randn(variable.shape) for variable in store.trainable_variables()]
        grads[5] = odd()
        store.accumulate(grads, scale=0.5)
        total += 0.5 * (grads[5].to_dense() if grads[5].is_sparse else grads[5])
    torch.testing.assert_close(store["v5"].grad.double(), total, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrong", [torch.ones(4, 4), torch.ones(12), torch.ones(3, 4, dtype=torch.int64)])
def test_a_wrong_gradient_among_many_writes_nothing(wrong: Tensor) -> None:
    store = store_of(FEW)
    set_grads(store)
    store.accumulate()
    before = store.grads.clone()
    grads = set_grads(store)
    for variable in store.trainable_variables():
        variable.param.grad = None
    grads[5] = wrong
    with pytest.raises(fv.GradientError, match="'v5'"):
        store.accumulate(grads)
    assert_same_bits(store.grads, before)


def test_a_pattern_that_changes_between_micro_batches() -> None:
    """Untouched ones become zero at first, and stay as they are afterwards."""
    store = store_of(FEW, torch.bfloat16)
    expected: dict[str, Tensor] = {}
    for _ in range(2):
        expected = {}
        for without in (2, 3, None, 2):
            grads = set_grads(store, without)
            store.accumulate(scale=0.5)
            for (name, variable), grad in zip(store.variables().items(), grads, strict=True):
                old = expected.get(name, torch.zeros(variable.shape))
                expected[name] = old if grad is None else old + 0.5 * grad.float()
        for name, total in expected.items():
            torch.testing.assert_close(store[name].grad, total, rtol=1e-6, atol=1e-7)
        norm = torch.cat([total.flatten() for total in expected.values()]).norm()
        torch.testing.assert_close(store.grad_norm(), norm, rtol=2e-6, atol=0.0)
        store.zero_grad()
    set_grads(store, 2)
    store.accumulate()
    assert not store.grads_of(torch.bfloat16)[: store.variables()["v0"].span.numel].any()


def test_nan_and_infinity_stay_in_their_variable() -> None:
    store = store_of(FEW)
    for scale in (1.0, torch.inf):
        grads = set_grads(store)
        grads[5].fill_(torch.nan if scale == 1.0 else 1.0)
        grads[0] = None
        store.zero_grad()
        store.accumulate([grad if i == 5 else None for i, grad in enumerate(grads)], scale=scale)
        stream = store.grads.clone()
        span = store["v5"].span
        assert not stream[span.offset : span.offset + span.numel].isfinite().any()
        stream[span.offset : span.offset + span.numel] = 0.0
        assert not stream.any()


def other_tensors(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [None if grad is None else grad.clone() for grad in grads]


def other_order(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [grads[0].t().contiguous().t(), *grads[1:]]  # type: ignore[union-attr]


def other_dtype(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [grads[0], grads[1].double(), *grads[2:]]  # type: ignore[union-attr]


def one_less(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [*grads[:3], None, *grads[4:]]


def one_sparse(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [grads[0].to_sparse(), *grads[1:]]  # type: ignore[union-attr]


def other_sign(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [torch._neg_view(grads[0]), *grads[1:]]  # type: ignore[arg-type]


CHANGES = (other_tensors, other_order, other_dtype, one_less, one_sparse, other_sign)


@pytest.mark.parametrize("change", CHANGES)
def test_gradients_that_are_handed_over_may_change(
    change: Callable[[list[Tensor | None]], list[Tensor | None]],
) -> None:
    """Those that look as the last ones did are not looked at one by one; any others are."""
    store, twin = store_of(FEW), store_of(FEW)
    for turn in range(5):
        grads = set_grads(store)
        for variable in store.trainable_variables():
            variable.param.grad = None
        given = change(grads) if turn in (2, 4) else grads
        store.accumulate(given)
        for variable, grad in zip(twin.trainable_variables(), given, strict=True):
            if grad is not None:
                variable.accumulate_grad(grad.to_dense().resolve_neg() if grad.is_sparse else grad.resolve_neg())
    twin.accumulate()
    for mine, theirs in zip(store.trainable_variables(), twin.trainable_variables(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradients_that_are_handed_over_are_not_held_or_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store, looked_at = store_of(FEW), 0
    look = plans.PlanSet.in_memory_order

    def counted(self: plans.PlanSet, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        nonlocal looked_at
        looked_at += 1
        return look(self, grads)

    monkeypatch.setattr(plans.PlanSet, "in_memory_order", counted)
    for _ in range(3):
        grads = [torch.ones(v.shape) for v in store.trainable_variables()]
        store.accumulate(grads)
        references = [weakref.ref(grad) for grad in grads]
        del grads
        assert all(reference() is None for reference in references)
    assert looked_at == 1
    with pytest.raises(fv.GradientError, match="shape"):
        store.accumulate([torch.ones(2, 2), *(torch.ones(v.shape) for v in store.trainable_variables()[1:])])


@pytest.mark.parametrize("shape", [(3, 2), (1, 6), (6, 1)])
def test_a_gradient_of_another_shape_that_lies_as_the_last_one_is_refused(shape: tuple[int, int]) -> None:
    """Of as many elements, with the same strides."""
    store = fv.VarStore.from_module(nn.ParameterList([nn.Parameter(torch.zeros(2, 3)) for _ in range(FEW)]))
    grads: list[Tensor | None] = [torch.ones(2, 3) for _ in range(FEW)]
    for _ in range(3):
        store.accumulate(grads)
        store.zero_grad()
    grads[5] = torch.arange(40.0).as_strided(shape, (3, 1))
    with pytest.raises(fv.GradientError, match="'5' has shape"):
        store.accumulate(grads)
