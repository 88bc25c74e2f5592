"""What a store answers: its variables by name, in order, with their groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv


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
