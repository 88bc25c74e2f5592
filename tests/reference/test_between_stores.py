"""Copy, soft update, clone, merge, and all values as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars import init
from tests.support.launches import count_launches


def pair_of(prefix: str = "", dtype: torch.dtype = torch.float32) -> fv.VarStore:
    store = fv.VarStore(dtype=dtype)
    path = store.root() / "a" if prefix else store.root()
    path.var("key_1", (3,), init.constant(1.0))
    path.var("key_2", (2, 2), init.constant(2.0))
    return store


@pytest.mark.row("T-VS-06")
def test_merge_takes_variables_into_one_buffer_and_every_handle_follows() -> None:
    """tch forgets the dtype of what it merges."""
    left, right = pair_of(dtype=torch.bfloat16), pair_of(dtype=torch.bfloat16)
    handles = [left["key_1"].param, right["key_2"].param]
    right["key_2"].set_grad(torch.full((2, 2), 3.0))
    right.freeze("key_1")
    merged = fv.VarStore.merge([(left, "vs_1."), (right, "vs_2.")])
    assert list(merged) == ["vs_1.key_1", "vs_1.key_2", "vs_2.key_1", "vs_2.key_2"]
    assert len(merged.trainable_variables()) == 4
    assert merged["vs_1.key_1"].param is handles[0]
    start, stop = merged.values.data_ptr(), merged.values.data_ptr() + merged.values.nbytes
    assert all(start <= handle.data_ptr() < stop for handle in handles)
    assert merged.dtype == handles[0].dtype == torch.bfloat16
    assert handles[1].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert merged.gradient_names() == ["vs_2.key_2"]
    assert not merged["vs_2.key_1"].requires_grad
    merged.unfreeze()
    assert merged["vs_2.key_1"].requires_grad
    merged.check()


@pytest.mark.row("T-VS-06")
def test_merge_refuses_before_it_touches_anything() -> None:
    left, right = pair_of(), pair_of()
    with pytest.raises(fv.NameTakenError, match=r"Duplicate variable name found: key_1\. Provide a unique prefix"):
        fv.VarStore.merge([left, right])
    with pytest.raises(fv.FlatvarsError, match="given twice"):
        fv.VarStore.merge([(left, "a."), (left, "b.")])
    with pytest.raises(fv.FlatvarsError, match="All VarStores must be on the same device, got cpu and meta"):
        fv.VarStore.merge([left, (fv.VarStore("meta"), "x.")])
    with pytest.raises(fv.SpecError, match="empty part"):
        fv.VarStore.merge([(left, "."), right])
    assert len(left) == len(right) == 2
    left.check()
    merged = fv.VarStore.merge([])
    assert merged.is_empty
    assert merged.device == torch.device("cpu")


@pytest.mark.row("T-VS-06")
def test_what_was_merged_away_says_where_it_went() -> None:
    module = nn.Linear(2, 2)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.SGD(store, lr=0.1)
    merged = fv.VarStore.merge([store])
    module(torch.ones(1, 2)).sum().backward()
    for call in (optimizer.step, lambda: store.values, lambda: store.add("x", torch.ones(1)), store.grad_norm):
        with pytest.raises(fv.FlatvarsError, match="merged into another one; use the store that"):
            call()
    before = module.weight.detach().clone()
    fv.optim.SGD(merged, lr=0.1).step()
    assert not torch.equal(module.weight.detach(), before)
    module.weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(fv.AliasError, match=r"Linear\.weight holds another Parameter"):
        merged.check_aliases()


@pytest.mark.row("T-VS-21")
@pytest.mark.parametrize("same", [True, False], ids=["same-layout", "by-name"])
def test_copy_takes_values_by_name_in_its_own_dtype(same: bool) -> None:
    target, source = pair_of(), pair_of(dtype=torch.float32 if same else torch.float64)
    if not same:
        source.add("more", torch.ones(4, dtype=torch.float64))
    for variable in source.variables().values():
        variable.set_value(torch.rand(variable.shape))
    assert target.copy_(source) is target
    for name, variable in target.variables().items():
        assert variable.dtype == torch.float32
        assert torch.equal(variable.value, source[name].value.float())
    target.check()


@pytest.mark.row("T-VS-21", "T-VS-11")
def test_copy_is_all_or_nothing_and_never_broadcasts() -> None:
    target, source = pair_of(), fv.VarStore()
    source.add("key_1", torch.zeros(3))
    with pytest.raises(fv.UnknownNameError, match="1 variables of this store are not in the other: 'key_2'; nothing"):
        target.copy_(source)
    source.add("key_2", torch.zeros(1))
    for call in (target.copy_, lambda other: target.lerp_(other, 0.5)):
        with pytest.raises(fv.SpecError, match=r"'key_2': \(2, 2\) here, \(1,\) there"):
            call(source)
    assert target["key_1"].value.tolist() == [1.0] * 3


@pytest.mark.row("T-VS-24")
@pytest.mark.parametrize("same", [True, False], ids=["same-layout", "by-name"])
def test_soft_update_is_that_of_the_loop(same: bool) -> None:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).requires_grad_(False)
    source = fv.VarStore.from_module(online, buffers=same)
    store = source.clone() if same else fv.VarStore.from_module(target, buffers=same)
    for variable in store.variables().values():
        variable.set_value(torch.ones(variable.shape))
    expected = {
        name: v.value + 0.005 * (source[name].value - v.value) if v.dtype.is_floating_point else source[name].value
        for name, v in store.variables().items()
    }
    assert store.lerp_(source, 0.005) is store
    for name, variable in store.variables().items():
        assert torch.allclose(variable.value, expected[name], rtol=1e-6, atol=0)
    store.check()


@pytest.mark.row("T-VS-24")
def test_soft_update_of_one_layout_is_one_operation_a_region() -> None:
    few, many = pair_of(), fv.VarStore()
    for i in range(100):
        (many.root() / i).zeros("w", (5,))
    counts = []
    for store in (few, many):
        other = store.clone()
        store.lerp_(other, 0.5)
        with count_launches() as launches:
            store.lerp_(other, 0.5)
        counts.append(launches.operators)
    assert counts == [["lerp_"], ["lerp_"]]


def test_copies_are_noticed_by_autograd() -> None:
    target, source = pair_of(), pair_of()
    loss = (target["key_1"].param ** 2).sum()
    target.copy_(source)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_clone_shares_nothing() -> None:
    store = pair_of()
    store.freeze("key_2")
    store["key_1"].set_grad(torch.ones(3))
    store.rename("key_1", "first")
    copy = store.clone()
    assert {n: v.id for n, v in copy.variables().items()} == {n: v.id for n, v in store.variables().items()}
    assert torch.equal(copy.values, store.values)
    assert copy.values.data_ptr() != store.values.data_ptr()
    assert copy.gradient_names() == []
    assert [v.requires_grad for v in copy.variables().values()] == [True, False]
    copy.unfreeze()
    assert copy["key_2"].requires_grad
    assert not store["key_2"].requires_grad
    assert copy.add("later", torch.ones(1)) is copy["later"].param
    assert copy["later"].id == 2
    copy.check()


@pytest.mark.row("J-01")
def test_ravel_and_unravel_are_inverse_and_have_no_padding() -> None:
    store = fv.VarStore()
    channels_last = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    store.add("image", channels_last)
    store.add("scalar", torch.tensor(7.0))
    vector = store.ravel()
    assert vector.tolist() == [*map(float, range(24)), 7.0]
    vector += 1.0
    assert store["scalar"].value == 7.0
    back = store.unravel(vector)
    assert torch.equal(back["image"], channels_last + 1.0)
    assert back["scalar"].shape == ()
    with pytest.raises(fv.SpecError, match=r"\(24,\) was given, but the store's 2 variables have 25 elements"):
        store.unravel(vector[:-1])


@pytest.mark.row("J-01")
def test_ravel_of_mixed_dtypes_promotes_and_unravel_casts_back() -> None:
    store = fv.VarStore()
    store.add("a", torch.ones(2, dtype=torch.bfloat16))
    store.add("n", torch.tensor([3, 4]), trainable=False)
    vector = store.ravel()
    assert vector.dtype == torch.bfloat16
    assert {name: t.dtype for name, t in store.unravel(vector).items()} == {"a": torch.bfloat16, "n": torch.int64}
    assert fv.VarStore().ravel().tolist() == []
