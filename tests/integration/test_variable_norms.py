"""`store.norms()`: a mapping over two tensors, in which nothing is made of a variable that nobody reads."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from tests.support.launches import count_operators
from tests.support.models import Bag

SHAPES = {"a": (3, 4), "b": (5,), "c": (), "empty": (0,)}


def graded(shapes: dict[str, tuple[int, ...]], mode: str = "gather", without: str = "b") -> fv.VarStore:
    """A store of variables with gradients, but for one."""
    store = fv.VarStore.from_module(Bag(shapes), grads=mode)
    for variable in store.trainable_variables():
        if variable.name != without:
            variable.accumulate_grad(torch.randn(variable.shape))
    return store


@pytest.mark.parametrize("mode", ["gather", "views"])
def test_all_ways_to_read_agree(mode: str) -> None:
    store = graded(SHAPES, mode)
    norms = store.norms()
    assert len(norms) == 4
    assert norms.names == tuple(norms) == tuple(norms.keys()) == tuple(SHAPES)
    assert norms.has_grad == (True, False, True, True)
    assert list(norms.values()) == [norms[name] for name in SHAPES]
    assert dict(norms) == dict(norms.items())
    for row, (name, (value, grad)) in enumerate(norms.items()):
        assert value == norms.value_norm[row] == store[name].norm()
        assert value.shape == ()
        if grad is None:
            assert name == "b"
            assert norms.grad_norm[row] == 0.0
        else:
            assert grad == norms.grad_norm[row] == torch.linalg.vector_norm(store[name].grad)


def test_a_scalar_is_a_tensor_as_any_other() -> None:
    store = graded({"a": (3, 4), "b": (5,)})
    value, grad = store.norms()["a"]
    leaf = torch.tensor(2.0, requires_grad=True)
    (leaf * grad / value).backward()
    assert leaf.grad == grad / value


def test_what_it_says_of_itself_and_of_a_name_it_has_not() -> None:
    norms = graded(SHAPES).norms()
    assert repr(norms) == "VariableNorms(4 variables, 3 with a gradient)"
    assert "d" not in norms
    with pytest.raises(KeyError, match="'d' is no variable that these norms are of"):
        norms["d"]


def test_what_plain_torch_froze_is_left_out_of_all_of_it() -> None:
    store = graded(SHAPES)
    whole = store.norms()
    store["a"].param.requires_grad_(False)
    norms = store.norms()
    assert norms.names == ("b", "c", "empty")
    assert norms.has_grad == (False, True, True)
    assert torch.equal(norms.value_norm, whole.value_norm[1:])
    assert torch.equal(norms.grad_norm, whole.grad_norm[1:])


def test_names_are_those_of_now() -> None:
    store = graded(SHAPES)
    before = store.norms()
    store.rename("a", "z")
    assert store.norms().names == ("z", "b", "c", "empty")
    assert before.names == tuple(SHAPES)


def test_operators_do_not_grow_with_variables() -> None:
    """Of the norms of 200 variables, 400 scalars were made, of two operators each."""
    found = []
    for count in (100, 200):
        store = graded({f"v{i}": (3,) for i in range(count)})
        store.norms()  # makes plans
        with count_operators() as names:
            norms = store.norms()
            norms["v7"]
        found.append(list(names))
    assert found[0] == found[1]
    assert len(found[0]) < 20
