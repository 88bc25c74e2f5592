"""Entries: got or created, with a check of the shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars import init


@pytest.fixture
def store() -> fv.VarStore:
    return fv.VarStore(seed=7)


@pytest.mark.row("T-P-14", "T-E-04")
def test_entries_hold_no_lock(store: fv.VarStore) -> None:
    first, second = store.root().entry("a"), store.root().entry("b")
    assert second.or_ones((2,)).tolist() == [1.0, 1.0]
    assert first.or_zeros((2,)).tolist() == [0.0, 0.0]
    assert first.or_ones((2,)).tolist() == [0.0, 0.0]
    for name in ("randn_standard", "kaiming_uniform", "kaiming_normal", "orthogonal"):
        made = getattr(store.root().entry(name), f"or_{name}")((4, 4))
        assert torch.equal(made, getattr(fv.VarStore(seed=7).root(), name)(name, (4, 4)))
    assert store.root().entry("u").or_uniform((9,), 2.0, 3.0).min() >= 2.0
    assert store.root().entry("n").or_randn((9,), 5.0, 0.0).tolist() == [5.0] * 9


@pytest.mark.row("T-E-01", "C-02")
def test_an_entry_is_got_or_created_in_the_dtype_of_the_store(store: fv.VarStore) -> None:
    """tch returns whatever has the name, creates float32 always, and draws random numbers in any case."""
    store.set_dtype(torch.float64)
    made = store.root().entry("w").or_var((3, 1, 4), init.normal())
    assert made.dtype == torch.float64
    before = made.detach().clone()
    assert store.root().entry("w").or_var((3, 1, 4), init.ones()) is made
    assert torch.equal(made, before)
    with pytest.raises(fv.SpecError, match=r"shape mismatch on 'w': \(1, 5, 9\) was asked for.*\(3, 1, 4\)"):
        store.root().entry("w").or_var((1, 5, 9), init.ones())
    assert len(store) == 1


@pytest.mark.row("T-E-02")
def test_or_var_copy_never_overwrites(store: fv.VarStore) -> None:
    made = store.root().entry("w").or_var_copy(torch.tensor([1.0, 2.0]))
    again = store.root().entry("w").or_var_copy(torch.tensor([3.0, 4.0]))
    assert again is made
    assert made.tolist() == [1.0, 2.0]
    with pytest.raises(fv.SpecError, match="shape mismatch"):
        store.root().entry("w").or_var_copy(torch.zeros(3))


@pytest.mark.row("T-E-03")
def test_or_kaiming_uniform_is_uniform(store: fv.VarStore) -> None:
    made = store.root().entry("w").or_kaiming_uniform((200, 100)).detach()
    bound = (6 / 100) ** 0.5
    assert float(made.abs().max()) <= bound
    assert float(made.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.row("T-E-05")
@pytest.mark.parametrize(("method", "value"), [("or_zeros_no_train", 0.0), ("or_ones_no_train", 1.0)])
def test_no_train_entries_are_not_trained(store: fv.VarStore, method: str, value: float) -> None:
    made = getattr(store.root().entry("mean"), method)((3,))
    assert made.tolist() == [value] * 3
    assert not made.requires_grad
    assert not isinstance(made, nn.Parameter)
    assert store.trainable_variables() == []
    store.unfreeze()
    assert not made.requires_grad
