"""One variable: its value, gradient, identity and checks."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv

MODES = ["gather", "views"]


def one(mode: str = "gather") -> tuple[fv.VarStore, fv.Variable]:
    store = fv.VarStore(grads=mode)
    store.root().zeros("w", (2, 3))
    assert store.values.shape == (32,)
    return store, store["w"]


@pytest.mark.row("L-01", "L-05", "L-08")
def test_a_new_variable_has_no_gradient() -> None:
    _store, variable = one()
    assert variable.grad is None
    assert variable.requires_grad
    assert variable.has_shape((2, 3))
    assert not variable.has_shape((3, 2))
    assert not variable.has_shape((6,))


@pytest.mark.row("L-02")
def test_set_value_keeps_the_gradient_and_refuses_other_shapes() -> None:
    _store, variable = one()
    variable.set_grad(torch.ones(2, 3))
    variable.set_value(torch.arange(6, dtype=torch.int64).view(2, 3))
    assert variable.value.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert variable.grad is not None
    assert variable.grad.tolist() == [[1.0] * 3] * 2
    for given in (torch.ones(1), torch.ones(3), torch.ones(3, 2), torch.tensor(1.0)):
        with pytest.raises(fv.SpecError, match=r"variable 'w' has shape \(2, 3\), but a value of shape .* was given"):
            variable.set_value(given)
    assert variable.value[1, 2] == 5.0


@pytest.mark.row("L-02")
def test_set_value_is_noticed_by_autograd() -> None:
    _store, variable = one()
    loss = (variable.param**2).sum()
    variable.set_value(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.row("C-03")
def test_a_variable_is_not_set_to_a_view_of_itself() -> None:
    store = fv.VarStore()
    store.root().var_copy("a", torch.arange(6.0).view(2, 3))
    store.root().var_copy("b", torch.ones(2, 3))
    variable = store["a"]
    with pytest.raises(fv.SpecError, match="a view of its own memory; pass a clone"):
        variable.set_value(variable.value.view(3, 2).view(2, 3))
    variable.set_value(store["b"].value)
    assert variable.value.tolist() == [[1.0] * 3] * 2, "another variable shares the storage, not the memory"
    variable.set_value(variable.value.clone() * 2)
    assert variable.value[0, 0] == 2.0


@pytest.mark.row("L-03", "L-04")
@pytest.mark.parametrize("mode", MODES)
def test_none_is_not_zeros(mode: str) -> None:
    _store, variable = one(mode)
    ones = torch.ones(2, 3)
    assert variable.grad is None
    variable.accumulate_grad(ones)
    assert torch.equal(variable.grad, ones)
    variable.accumulate_grad(ones)
    assert torch.equal(variable.grad, 2 * ones)
    variable.set_grad(5 * ones)
    assert torch.equal(variable.grad, 5 * ones)
    assert torch.equal(ones, torch.ones(2, 3)), "what was given is copied"
    variable.set_grad(torch.zeros(2, 3))
    assert torch.equal(variable.grad, torch.zeros(2, 3))
    variable.clear_grad()
    assert variable.grad is None
    variable.set_grad(ones)
    variable.set_grad(None)
    assert variable.grad is None
    with pytest.raises(fv.SpecError, match="a gradient of shape"):
        variable.set_grad(torch.ones(3))


@pytest.mark.row("L-04")
def test_gradients_are_added_to_what_was_accumulated() -> None:
    store, variable = one()
    variable.param.grad = torch.ones(2, 3)
    store.accumulate()
    variable.accumulate_grad(torch.ones(2, 3))
    assert variable.grad.tolist() == [[2.0] * 3] * 2
    assert float(store.grad_norm()) == pytest.approx(24**0.5)
    variable.set_grad(torch.full((2, 3), 7.0))
    assert variable.grad.tolist() == [[7.0] * 3] * 2
    optimizer = fv.optim.SGD(store, lr=1.0)
    optimizer.step()
    assert variable.value.tolist() == [[-7.0] * 3] * 2


@pytest.mark.row("L-04")
def test_a_gradient_can_be_added_to_what_requires_none() -> None:
    store = fv.VarStore()
    store.root().zeros("w", (2,)).requires_grad_(False)
    store["w"].accumulate_grad(torch.ones(2))
    assert store["w"].grad.tolist() == [1.0, 1.0]


@pytest.mark.row("L-06")
def test_the_repr_says_it_all() -> None:
    _store, variable = one()
    assert repr(variable) == "Variable('w', id=0, torch.float32, (2, 3), requires_grad, grad=none)"
    variable.set_grad(torch.ones(2, 3))
    assert repr(variable).endswith("requires_grad, grad=set)")
    variable.detach()
    assert repr(variable).endswith("frozen, grad=none)")


@pytest.mark.row("L-07")
def test_variables_are_equal_by_id_and_name() -> None:
    (_store, left), (other, right) = one(), one()
    assert left == right
    assert left is not right
    right.set_value(torch.ones(2, 3))
    assert left == right
    assert hash(left) == hash(right)
    other.rename("w", "v")
    assert left != right
    assert left != "w"


@pytest.mark.row("L-09")
def test_the_norm_is_that_of_the_values() -> None:
    _store, variable = one()
    variable.set_value(torch.full((2, 3), 2.0))
    assert float(variable.norm()) == pytest.approx(24**0.5)


@pytest.mark.row("L-10")
def test_a_clone_has_its_own_id_and_no_gradient() -> None:
    store, variable = one()
    variable.set_value(torch.arange(6.0).view(2, 3))
    variable.set_grad(torch.ones(2, 3))
    clone, named = variable.clone(), variable.clone("copy")
    assert [clone.name, named.name] == ["w__1", "copy"]
    assert len({variable.id, clone.id, named.id}) == 3
    assert torch.equal(clone.value, variable.value)
    assert clone.grad is None
    assert clone.requires_grad
    clone.set_value(torch.zeros(2, 3))
    assert variable.value[1, 2] == 5.0
    assert store.numel == 18
    store.check()
    with pytest.raises(fv.NameTakenError, match="'copy' exists already"):
        variable.clone("copy")


@pytest.mark.row("L-11")
@pytest.mark.parametrize("mode", MODES)
def test_detach_freezes_and_clears(mode: str) -> None:
    store, variable = one(mode)
    variable.set_grad(torch.ones(2, 3))
    assert variable.detach() is variable
    assert not variable.requires_grad
    assert variable.grad is None
    store.unfreeze()
    assert variable.requires_grad


@pytest.mark.row("L-14")
@pytest.mark.parametrize("mode", MODES)
def test_a_view_takes_value_and_gradient_along(mode: str) -> None:
    _store, variable = one(mode)
    assert variable.view(6).grad is None
    variable.set_grad(torch.arange(6.0).view(2, 3))
    value, grad = variable.view(3, -1)
    assert value.shape == grad.shape == (3, 2)
    assert grad.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    value[0, 1] = 9.0
    assert variable.value[0, 1] == 9.0
    with pytest.raises(RuntimeError, match="shape"):
        variable.view(7)


@pytest.mark.row("L-12", "L-20", "L-22")
def test_lookup_checks_the_shape() -> None:
    store = fv.VarStore()
    assert list(store) == []
    assert store.gradient_names() == []
    store.add("w", torch.ones(2, 3))
    assert store.get("w") is store["w"]
    assert store.get("w", (2, 3)) is store["w"]
    assert store.get("w", (3, 2)) is None
    assert store.get("v") is None
    assert "w" in store


@pytest.mark.row("L-21")
def test_a_name_is_never_shadowed() -> None:
    store = fv.VarStore()
    store.add("w", torch.zeros(2))
    with pytest.raises(fv.NameTakenError, match="'w' exists already"):
        store.add("w", torch.ones(2))
    assert store["w"].value.tolist() == [0.0, 0.0]


@pytest.mark.row("L-23", "L-13", "C-01")
def test_setting_an_absent_name_is_an_error() -> None:
    store = fv.VarStore()
    with pytest.raises(fv.UnknownNameError, match="no variable 'w'"):
        store["w"].set_value(torch.ones(2))
    with pytest.raises(KeyError):
        store["w"]


@pytest.mark.row("L-24", "L-25", "L-12")
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_variables_that_have_one(mode: str) -> None:
    store = fv.VarStore(grads=mode)
    for name in ("a", "b", "c"):
        store.root().zeros(name, (2,))
    assert store.values.shape == (96,)
    store["c"].set_grad(torch.ones(2))
    store["a"].set_grad(torch.zeros(2))
    assert store.gradient_names() == ["a", "c"]
    assert list(store) == ["a", "b", "c"]
    store.zero_grad()
    assert store.gradient_names() == []


@pytest.mark.row("L-26")
def test_check_finds_what_is_broken() -> None:
    store = fv.VarStore(on_moved="error")
    store.root().ones("a", (3,))
    weight = store.root().ones("b", (3,))
    store.check()
    store.values[3] = 1.0
    with pytest.raises(fv.FlatvarsError, match="padding"):
        store.check()
    store.values[3] = 0.0
    store.check()
    weight.data = torch.ones(3)
    with pytest.raises(fv.AliasError, match="'b' no longer lies"):
        store.check()


@pytest.mark.row("L-27")
def test_the_summary_lists_the_variables() -> None:
    store = fv.VarStore()
    store.root().ones("a", (3,))
    store.root().zeros_no_train("mean", (3,))
    lines = store.summary().splitlines()
    assert lines[1].split()[0] == "a"
    assert lines[1].endswith("trainable")
    assert lines[2].endswith("buffer")
    assert repr(store) == "VarStore(2 variables, cpu, torch.float32)"
