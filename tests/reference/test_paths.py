"""Paths: names, groups, dtypes, and every kind of variable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars import init


@pytest.fixture
def store() -> fv.VarStore:
    return fv.VarStore(seed=7)


@pytest.mark.row("T-P-01", "T-P-03")
def test_paths_divide_by_names_and_numbers(store: fv.VarStore) -> None:
    path = store.root() / "root" / "a" / 3
    assert path.components() == ["root", "a", "3"]
    assert path.name("w") == "root.a.3.w"
    assert repr(path) == "Path('root.a.3', group=0)"


@pytest.mark.row("T-P-02", "T-P-06")
@pytest.mark.parametrize("part", ["", "a.b", "."])
def test_parts_and_names_have_no_dot_and_are_not_empty(store: fv.VarStore, part: str) -> None:
    with pytest.raises(fv.SpecError, match=r"path part .* (contains a dot|is empty)"):
        store.root().sub(part)
    for declare in (store.root().name, store.root().get, store.root().entry(part).or_zeros):
        with pytest.raises(fv.SpecError, match=r"variable name .* (contains a dot|is empty)"):
            declare((1,) if declare.__name__ == "or_zeros" else part)
    assert len(store) == 0


@pytest.mark.row("T-P-04")
def test_groups_are_inherited_and_fixed_when_declared(store: fv.VarStore) -> None:
    path = (store.root() / "a").set_group(2)
    path.zeros("x", (1,))
    (path / "b").zeros("y", (1,))
    (store.root() / "a").zeros("z", (1,))
    assert {name: v.group for name, v in store.variables().items()} == {"a.x": 2, "a.b.y": 2, "a.z": 0}
    with pytest.raises(ValueError, match="group -1 is negative"):
        path.set_group(-1)


@pytest.mark.row("T-P-05")
def test_a_path_has_the_device_and_dtype_of_its_store(store: fv.VarStore) -> None:
    path = store.root() / "a"
    assert (path.device, path.dtype) == (store.device, torch.float32)
    store.set_dtype(torch.bfloat16)
    assert path.dtype == torch.bfloat16


@pytest.mark.row("T-P-08")
def test_duplicates_get_the_number_of_variables_until_a_name_is_free(store: fv.VarStore) -> None:
    """tch's own suffix may overwrite a variable that is called so already."""
    path = store.root() / "a" / "b" / "ccc"
    path.add("t123", torch.zeros(2))
    (store.root() / "a").add("t2", torch.zeros(2))
    (store.root() / "a" / "b").add("t3", torch.zeros(2))
    path.add("t123", torch.ones(2))
    assert list(store) == ["a.b.ccc.t123", "a.t2", "a.b.t3", "a.b.ccc.t123__3"]
    path.zeros("t123__5", (1,))
    path.zeros("t123", (1,))
    assert list(store)[-2:] == ["a.b.ccc.t123__5", "a.b.ccc.t123__6"]
    assert store["a.b.ccc.t123"].value.tolist() == [0.0, 0.0]
    assert len(store) == 6
    store.check()


@pytest.mark.row("T-P-08")
def test_duplicates_are_errors_on_request() -> None:
    store = fv.VarStore(on_duplicate="error")
    store.root().zeros("w", (1,))
    with pytest.raises(fv.NameTakenError, match="'w' exists already"):
        store.root().ones("w", (1,))
    assert len(store) == 1
    with pytest.raises(ValueError, match="on_duplicate='shadow' does not exist"):
        fv.VarStore(on_duplicate="shadow")


@pytest.mark.row("T-P-09")
def test_buffers_are_float32_whatever_the_store_is(store: fv.VarStore) -> None:
    store.set_dtype(torch.float16)
    zeros, ones = store.root().zeros_no_train("mean", (2,)), store.root().ones_no_train("var", (2,))
    assert (zeros.dtype, ones.dtype) == (torch.float32, torch.float32)
    assert zeros.tolist() + ones.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert not isinstance(zeros, nn.Parameter)
    assert store.trainable_variables() == []


@pytest.mark.row("T-P-10", "T-P-11")
def test_every_kind_of_variable_is_a_parameter_of_the_store(store: fv.VarStore) -> None:
    store.set_dtype(torch.float64)
    path = store.root()
    declared = {
        "var": path.var("var", (50, 40), init.constant(2.0)),
        "zeros": path.zeros("zeros", (50, 40)),
        "ones": path.ones("ones", (50, 40)),
        "randn_standard": path.randn_standard("randn_standard", (50, 40)),
        "randn": path.randn("randn", (50, 40), 1.0, 0.1),
        "uniform": path.uniform("uniform", (50, 40), 1.0, 3.0),
        "kaiming_uniform": path.kaiming_uniform("kaiming_uniform", (50, 40)),
        "kaiming_normal": path.kaiming_normal("kaiming_normal", (50, 40)),
        "orthogonal": path.orthogonal("orthogonal", (50, 40), 2.0),
    }
    start, stop = store.values.data_ptr(), store.values.data_ptr() + store.values.nbytes
    for name, param in declared.items():
        assert isinstance(param, nn.Parameter)
        assert param.requires_grad
        assert param.dtype == torch.float64
        assert param is store[name].param is path.get(name)
        assert start <= param.data_ptr() < stop
    values = {name: (p.mean().item(), p.std().item()) for name, p in declared.items()}
    assert values["var"] == (2.0, 0.0)
    assert values["zeros"] + values["ones"] == (0.0, 0.0, 1.0, 0.0)
    assert values["randn_standard"] == pytest.approx((0.0, 1.0), abs=0.1)
    assert values["randn"] == pytest.approx((1.0, 0.1), abs=0.01)
    assert values["uniform"] == pytest.approx((2.0, 2 / 12**0.5), abs=0.05)
    assert values["kaiming_uniform"] == pytest.approx((0.0, (2 / 40) ** 0.5), abs=0.02)
    assert values["kaiming_normal"] == pytest.approx((0.0, (2 / 40) ** 0.5), abs=0.02)
    gram = declared["orthogonal"].detach().T @ declared["orthogonal"].detach()
    assert torch.allclose(gram, 4.0 * torch.eye(40, dtype=torch.float64), atol=1e-5)


@pytest.mark.row("T-P-10")
def test_what_cannot_be_declared_leaves_nothing_behind(store: fv.VarStore) -> None:
    with pytest.raises(fv.SpecError, match="negative length"):
        store.root().zeros("w", (2, -1))
    with pytest.raises(fv.SpecError, match="cannot be trained"):
        store.root().var("w", (2,), init.zeros(), dtype=torch.int64)
    assert store.is_empty
    assert store.root().get("w") is None


@pytest.mark.row("T-P-12")
def test_var_copy_takes_values_alone(store: fv.VarStore) -> None:
    store.set_dtype(torch.float16)
    given = torch.arange(6.0).view(2, 3).T
    copied = store.root().var_copy("w", given)
    assert copied.dtype == torch.float16
    assert copied.stride() == (2, 1)
    assert torch.equal(copied.float(), given)
    given.fill_(-1.0)
    assert copied[1, 0] == 1.0


@pytest.mark.row("T-P-13")
def test_get_is_the_handle_or_none(store: fv.VarStore) -> None:
    path = store.root() / "a"
    weight = path.zeros("w", (2,))
    assert path.get("w") is weight
    assert path.get("v") is None
