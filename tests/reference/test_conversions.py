"""Other dtypes and devices, of a whole store and of a subtree."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from flatvars import init


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


@pytest.fixture
def store() -> fv.VarStore:
    return fv.VarStore(seed=7)


@pytest.mark.row("T-P-07")
def test_a_subtree_is_converted_and_its_namesakes_are_not(store: fv.VarStore) -> None:
    """tch compares prefixes of strings: `convert` would hit `convert2.x` and `convertible`."""
    root = store.root()
    inside = [(root / "convert").zeros("x", (2,)), (root / "convert" / "deep").ones("y", (2,))]
    outside = [
        (root / "convert2").zeros("x", (2,)),
        root.zeros("convertible", (2,)),
        (root / "ignore").zeros("z", (2,)),
    ]
    order = (root / "convert").add("order", torch.tensor([1]), trainable=False)
    for method, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16), ("double", torch.float64)):
        getattr(root / "convert", method)()
        assert [t.dtype for t in inside] == [dtype] * 2
        assert [t.dtype for t in outside] == [torch.float32] * 3
        assert order.dtype == torch.int64
        assert store.dtype == torch.float32
        store.check()
    (root / "convert").float()
    assert [t.dtype for t in inside] == [torch.float32] * 2
    assert inside[1].tolist() == [1.0, 1.0]
    assert list((root / "convert").variables()) == ["convert.x", "convert.deep.y", "convert.order"]
    with pytest.raises(fv.SpecError, match="not a floating dtype"):
        (root / "convert").set_dtype(torch.int8)
