"""tch-rs's nn::VarStore, row by row: what a store answers, freezing, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars import init


def batch_norm_like(path: fv.Path, affine: bool) -> None:
    if affine:
        path.uniform("weight", (3,), 0.0, 1.0)
        path.zeros("bias", (3,))
    path.zeros_no_train("running_mean", (3,))
    path.ones_no_train("running_var", (3,))


@pytest.mark.row("T-VS-01")
def test_a_new_store_is_empty() -> None:
    store = fv.VarStore("cpu")
    assert len(store) == 0
    assert store.is_empty
    assert store.device == torch.device("cpu")
    assert store.dtype == torch.float32
    assert store.root().group == 0


@pytest.mark.row("T-VS-02")
@pytest.mark.parametrize(("affine", "count"), [(True, 4), (False, 2)])
def test_len_counts_buffers_too(affine: bool, count: int) -> None:
    store = fv.VarStore()
    batch_norm_like(store.root() / "bn", affine)
    assert len(store) == count
    assert not store.is_empty
    assert store.numel == 3 * count


@pytest.mark.row("T-VS-03")
def test_trainable_variables_come_in_creation_order_and_stay_after_freeze() -> None:
    store = fv.VarStore()
    path = store.root()
    path.zeros("b", (2,))
    path.zeros_no_train("mean", (2,))
    path.ones("a", (3,))
    names = [v.name for v in store.trainable_variables()]
    assert names == ["b", "a"]
    store.freeze()
    assert [v.name for v in store.trainable_variables()] == names
    assert not any(v.requires_grad for v in store.trainable_variables())


@pytest.mark.row("T-VS-04")
def test_variables_share_memory_with_what_layers_hold() -> None:
    store = fv.VarStore()
    weight = store.root().zeros("w", (2,))
    buffer = store.root().zeros_no_train("mean", (2,))
    assert list(store.variables()) == ["w", "mean"]
    store.variables()["w"].set_value(torch.tensor([1.0, 2.0]))
    store.variables()["mean"].value.fill_(5.0)
    assert weight.tolist() == [1.0, 2.0]
    assert buffer.tolist() == [5.0, 5.0]
    store.values.mul_(2.0)
    assert weight.tolist() == [2.0, 4.0]
    assert buffer.tolist() == [10.0, 10.0]


@pytest.mark.row("T-VS-05")
def test_the_root_has_no_components() -> None:
    assert fv.VarStore().root().components() == []


@pytest.mark.row("T-VS-16")
def test_what_is_created_after_freeze_is_trained() -> None:
    store = fv.VarStore()
    old = store.root().zeros("old", (2,))
    store.freeze()
    new = store.root().zeros("new", (2,))
    assert not old.requires_grad
    assert new.requires_grad
    assert store.values.shape == (64,)
    assert new.requires_grad


@pytest.mark.row("T-VS-17")
def test_unfreeze_restores_what_was_trained_and_leaves_the_rest() -> None:
    """tch forgets what the user had frozen alone, and would train it."""
    store = fv.VarStore()
    a, b = store.root().zeros("a", (2,)), store.root().zeros("b", (2,))
    mean = store.root().zeros_no_train("running_mean", (2,))
    b.requires_grad_(False)
    store.freeze()
    store.unfreeze()
    assert a.requires_grad
    assert not b.requires_grad
    assert not mean.requires_grad
    store.unfreeze("*")
    assert b.requires_grad
    assert not mean.requires_grad


@pytest.mark.row("T-VS-18")
def test_set_dtype_is_that_of_new_variables_too() -> None:
    store = fv.VarStore()
    old = store.root().zeros("old", (2,))
    store.add("count", torch.arange(3), trainable=False)
    store.set_dtype(torch.float16)
    assert old.dtype == torch.float16
    assert store.root().ones("new", (2,)).dtype == torch.float16
    assert store["count"].dtype == torch.int64
    with pytest.raises(fv.FlatvarsError, match=r"torch\.int32 is not a floating dtype"):
        store.set_dtype(torch.int32)


@pytest.mark.row("T-VS-19")
def test_conversions_keep_values_gradients_handles_and_the_default() -> None:
    """tch leaves gradients in the old dtype."""
    store = fv.VarStore()
    path = store.root()
    handles = [path.zeros("a", (2,)), path.ones("b", (2,)), path.var("c", (2,), init.constant(42.0))]
    order = path.add("order", torch.tensor([1, 2]), trainable=False)
    handles[1].grad = torch.full((2,), 3.0)
    for convert, dtype in (
        (store.half, torch.float16),
        (store.bfloat16, torch.bfloat16),
        (store.double, torch.float64),
        (store.float, torch.float32),
    ):
        convert()
        assert [handle.dtype for handle in handles] == [dtype] * 3
        assert [handle.tolist() for handle in handles] == [[0.0, 0.0], [1.0, 1.0], [42.0, 42.0]]
        grad = handles[1].grad
        assert grad is not None
        assert grad.dtype == dtype
        assert grad.tolist() == [3.0, 3.0]
        assert order.dtype == torch.int64
        assert store.dtype == torch.float32
        store.check()


@pytest.mark.row("T-VS-20")
def test_to_moves_every_stream() -> None:
    """On a machine without a GPU to the CPU again; `tests/gpu/test_devices.py` goes there and back."""
    store = fv.VarStore()
    weight = store.root().ones("w", (3,))
    optimizer = fv.optim.Adam(store, lr=0.1)
    weight.sum().backward()
    optimizer.step()
    before = weight.detach().clone()
    moments = optimizer.state[weight]["exp_avg"].clone()
    assert store.to("cpu") is store
    assert torch.equal(weight, before)
    assert weight.grad is not None
    assert torch.equal(optimizer.state[weight]["exp_avg"], moments)
    assert weight.data_ptr() == store.values.data_ptr()


@pytest.mark.row("T-VS-22")
def test_variables_can_be_walked_with_their_groups() -> None:
    store = fv.VarStore()
    store.root().zeros("a", (2,))
    store.root().set_group(3).zeros("b", (2,))
    assert [(v.name, v.group) for v in store.trainable_variables()] == [("a", 0), ("b", 3)]


@pytest.mark.row("T-VS-25")
def test_parameters_of_another_module_can_be_added_by_name() -> None:
    module = nn.Linear(2, 3)
    store = fv.VarStore()
    path = store.root() / "foreign"
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    for name, param in module.named_parameters():
        assert path.add(name.replace(".", "_"), param, trainable=False) is param
    assert store.values.data_ptr() == module.weight.data_ptr()
    assert not module.weight.requires_grad
    assert {name: p.tolist() for name, p in module.named_parameters()} == {n: p.tolist() for n, p in expected.items()}


@pytest.mark.row("C-08", "B-06")
def test_selected_variables_are_frozen_and_the_rest_is_not() -> None:
    store = fv.VarStore()
    for name in ("encoder", "decoder"):
        (store.root() / name).zeros("w", (2,))
    store.freeze("encoder.*")
    assert [v.name for v in store.variables().values() if v.requires_grad] == ["decoder.w"]
    store.unfreeze("encoder.w")
    assert store["encoder.w"].requires_grad


def test_freeze_can_keep_gradients() -> None:
    store = fv.VarStore()
    weight = store.root().zeros("w", (2,))
    weight.grad = torch.ones(2)
    optimizer = fv.optim.SGD(store, lr=1.0)
    store.freeze(clear_grad=False)
    optimizer.step()
    assert weight.tolist() == [0.0, 0.0], "the mask wins over a gradient that is there"
    store.unfreeze()
    optimizer.step()
    assert weight.tolist() == [-1.0, -1.0]
    store.freeze()
    assert weight.grad is None


@pytest.mark.row("D-03", "B-01")
def test_ids_and_state_survive_a_rename() -> None:
    store = fv.VarStore()
    weight = store.root().ones("w", (3,))
    optimizer = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    weight.grad = torch.ones(3)
    optimizer.step()
    before, variable = store["w"].id, store["w"]
    store.rename("w", "layer.weight")
    assert store["layer.weight"] is variable
    assert variable.id == before
    assert variable.name == variable.span.spec.name == "layer.weight"
    assert "w" not in store
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1.0] * 3
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].tolist() == pytest.approx([1.9] * 3)
    with pytest.raises(fv.UnknownNameError, match="no variable 'w'"):
        store.rename("w", "x")
    store.add("other", torch.ones(1))
    with pytest.raises(fv.NameTakenError, match="'other' exists already"):
        store.rename("layer.weight", "other")
    with pytest.raises(fv.SpecError, match="empty part"):
        store.rename("layer.weight", "a..b")
    assert list(store) == ["layer.weight", "other"]


@pytest.mark.row("B-12", "B-13")
def test_traversal_and_buffers_that_a_forward_pass_updates() -> None:
    store = fv.VarStore()
    path = store.root() / "bn"
    norm = nn.BatchNorm1d(3, affine=False)
    norm.running_mean = path.zeros_no_train("running_mean", (3,))
    norm.running_var = path.ones_no_train("running_var", (3,))
    assert store.numel == sum(v.spec.numel for v in store.variables().values()) == 6
    norm(torch.arange(12.0).view(4, 3))
    assert store["bn.running_mean"].value.tolist() == pytest.approx([0.45, 0.55, 0.65])
    store.check()
    norm(torch.arange(12.0).view(4, 3))
    assert torch.equal(store["bn.running_mean"].value, norm.running_mean)
