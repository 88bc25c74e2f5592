"""load, load_partial, read, fill: what is checked, what is written, what is left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import flatvars as fv

from .support import assert_values, filled, values


def store_of(**tensors: Tensor) -> fv.VarStore:
    store = fv.VarStore()
    for name, tensor in tensors.items():
        store.add(name, tensor.clone(), trainable=tensor.dtype.is_floating_point)
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.row("T-VS-09")
def test_handles_and_the_set_of_variables_stay(path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(2), "extra": torch.ones(9)}, path)
    store = store_of(a=torch.zeros(3), b=torch.zeros(2))
    handles = [v.param for v in store.variables().values()]
    address = store.values.data_ptr()
    store.load(path, strict=False)
    assert all(v.param is handle for v, handle in zip(store.variables().values(), handles, strict=True))
    assert store.values.data_ptr() == address
    assert_values(store, {"a": torch.ones(3), "b": torch.ones(2)})


@pytest.mark.row("T-VS-09", "B-04", "B-11")
def test_every_problem_is_reported_at_once_and_nothing_is_written(path: Path) -> None:
    save_file(
        {"encoder.weight": torch.ones(3, 2), "encoder.bais": torch.ones(3), "head": torch.ones(4), "n": torch.ones(())},
        path,
    )
    store = fv.VarStore()
    for name, shape in (("encoder.weight", (2, 3)), ("encoder.bias", (3,)), ("head", (4,))):
        store.add(name, torch.zeros(shape))
    store.add("n", torch.zeros((), dtype=torch.int64), trainable=False)
    before = values(store)
    with pytest.raises(fv.MismatchError) as caught:
        store.load(path)
    text = str(caught.value)
    assert "'encoder.weight' has shape (2, 3) in the store and (3, 2) in the file" in text
    assert "'encoder.bias' is not in the file; did you mean 'encoder.bais'?" in text
    assert "'encoder.bais' is in the file but not in the store" in text
    assert "'n' is torch.int64 in the store and torch.float32 in the file" in text
    assert text.count("\n  - ") == 4
    assert_values(store, before)


@pytest.mark.row("T-VS-11")
@pytest.mark.parametrize("shape", [(), (1,), (1, 3), (4,)])
def test_shapes_are_exact_and_never_broadcast(shape: tuple[int, ...], path: Path) -> None:
    save_file({"a": torch.ones(shape)}, path)
    store = store_of(a=torch.zeros(3))
    for load in (store.load, store.load_partial, store.read, store.fill):
        with pytest.raises(fv.MismatchError, match=re.escape(f"has shape (3,) in the store and {shape} in the file")):
            load(path)
    assert not store.values.any()


@pytest.mark.row("T-VS-10", "B-04")
def test_dtype_of_the_store_or_of_the_file(path: Path) -> None:
    save_file({"u": torch.full((3,), 42.0, dtype=torch.float16), "v": torch.full((2,), 0.1)}, path)
    store = store_of(u=torch.zeros(3), v=torch.zeros(2))
    store.load(path)
    assert_values(store, {"u": torch.full((3,), 42.0), "v": torch.full((2,), 0.1)})
    handle = store["u"].param
    store.load(path, dtype="file")
    assert store["u"].param is handle
    assert_values(store, {"u": torch.full((3,), 42.0, dtype=torch.float16), "v": torch.full((2,), 0.1)})
    assert store.dtype == torch.float32
    store.check()
    with pytest.raises(ValueError, match=r"dtype='half' is no policy; use one of 'store', 'file', 'exact'"):
        store.load(path, dtype="half")


def test_a_recarve_for_the_files_dtype_keeps_optimizer_state(path: Path) -> None:
    store = store_of(u=torch.zeros(3), v=torch.zeros(2))
    optimizer = fv.optim.AdamW(store, lr=0.1)
    store.accumulate({"u": torch.ones(3), "v": torch.ones(2)})
    optimizer.step()
    optimizer.zero_grad()
    save_file({"u": torch.ones(3, dtype=torch.float64), "v": torch.ones(2)}, path)
    store.load(path, dtype="file")
    state = optimizer.state[store["u"].param]
    assert float(state["step"]) == 1.0
    assert state["exp_avg"].dtype == torch.float64
    assert bool((state["exp_avg"] > 0).all())


@pytest.mark.row("J-16")
def test_exact_dtypes(path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.float16)}, path)
    store = store_of(a=torch.zeros(3))
    with pytest.raises(fv.MismatchError, match=r"'a' is torch.float32 in the store and torch.float16 in the file"):
        store.load(path, dtype="exact")
    store.half()
    store.load(path, dtype="exact")


@pytest.mark.parametrize(
    ("file", "here", "fits"),
    [
        (torch.int32, torch.int64, True),
        (torch.uint8, torch.int32, True),
        (torch.bool, torch.int64, True),
        (torch.uint16, torch.int32, True),
        (torch.uint32, torch.int64, True),
        (torch.uint32, torch.int32, False),
        (torch.int16, torch.uint16, False),
        (torch.int64, torch.int32, False),
        (torch.int64, torch.float32, False),
        (torch.float32, torch.int64, False),
        (torch.int64, torch.bool, False),
        (torch.complex64, torch.float32, False),
    ],
    ids=str,
)
def test_conversions_that_lose_values_are_refused(file: torch.dtype, here: torch.dtype, fits: bool, path: Path) -> None:
    save_file({"a": torch.ones(3).to(file)}, path)
    store = fv.VarStore()
    store.add("a", torch.zeros(3).to(here), trainable=False)
    if fits:
        store.load(path)
        assert torch.equal(store["a"].value, torch.ones(3).to(here))
    else:
        with pytest.raises(fv.MismatchError, match="that loses"):
            store.load(path)


def test_integers_cannot_become_a_trained_variable(path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.int64)}, path)
    store = store_of(a=torch.zeros(3))
    with pytest.raises(fv.MismatchError, match="cannot be trained in that dtype"):
        store.load(path, dtype="file")
    store.freeze()
    store.load(path, dtype="file")
    assert store["a"].value.dtype == torch.int64
    store.check()


@pytest.mark.row("T-VS-13")
def test_load_partial_returns_the_missing_names(path: Path) -> None:
    save_file({"a.b.t1": torch.full((2,), 42.0, dtype=torch.float16), "other": torch.ones(1)}, path)
    store = fv.VarStore()
    store.add("a.b.t1", torch.zeros(2))
    store.add("a.b.t2", torch.ones(3))
    assert store.load_partial(path) == ["a.b.t2"]
    assert_values(store, {"a.b.t1": torch.full((2,), 42.0), "a.b.t2": torch.ones(3)})
    assert store.load_partial(path, dtype="file") == ["a.b.t2"]
    assert [v.dtype for v in store.variables().values()] == [torch.float16, torch.float32]


@pytest.mark.row("T-VS-14")
def test_read_wants_every_variable_and_keeps_dtypes(path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.float16), "more": torch.ones(1)}, path)
    store = store_of(a=torch.zeros(3))
    store.read(path)
    assert_values(store, {"a": torch.ones(3)})
    store.add("b", torch.zeros(1))
    with pytest.raises(fv.MismatchError, match="'b' is not in the file"):
        store.read(path)


@pytest.mark.row("T-VS-15")
def test_fill_takes_what_is_there(path: Path) -> None:
    store = store_of(a=torch.zeros(3), b=torch.zeros(2))
    save_file({"a": torch.ones(3, dtype=torch.float16), "more": torch.ones(1)}, path)
    assert store.fill(path) is None
    assert_values(store, {"a": torch.ones(3), "b": torch.zeros(2)})


@pytest.mark.row("C-05", "B-03", "B-11")
@pytest.mark.parametrize(
    "rename",
    [
        {"bar.weight": "foo.weight", "bar.bias": "foo.bias"},
        lambda name: name.replace("bar.", "foo."),
        [(r"^bar\.", "foo.")],
        [(re.compile("bar"), "baz"), ("baz", "foo")],
    ],
    ids=["mapping", "function", "regex", "regexes in turn"],
)
def test_renaming(rename, path: Path) -> None:
    save_file({"bar.weight": torch.ones(3), "bar.bias": torch.ones(1)}, path)
    store = fv.VarStore()
    store.add("foo.weight", torch.zeros(3))
    store.add("foo.bias", torch.zeros(1))
    with pytest.raises(fv.MismatchError):
        store.load(path)
    store.load(path, rename=rename)
    assert_values(store, {"foo.weight": torch.ones(3), "foo.bias": torch.ones(1)})


def test_renaming_two_names_to_one_is_refused(path: Path) -> None:
    save_file({"x.a": torch.ones(3), "y.a": torch.zeros(3)}, path)
    store = store_of(a=torch.zeros(3))
    with pytest.raises(fv.MismatchError, match=r"'x\.a' and 'y\.a' of the file are both renamed to 'a'"):
        store.load(path, rename=[(r"^\w\.", "")])


@pytest.mark.row("B-11")
def test_a_prefix_that_all_names_lack_is_suggested(path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    store = fv.VarStore.from_module(filled(model))
    before = values(store)
    save_file({f"module.{name}": value for name, value in before.items()}, path)
    with pytest.raises(fv.MismatchError) as caught:
        store.load(path)
    (words,) = re.findall(r"pass rename=(\[.*\])", str(caught.value))
    store.values.zero_()
    store.load(path, rename=eval(words))
    assert_values(store, before)
    save_file({name.removeprefix("0."): value for name, value in before.items() if name[0] == "0"}, path)
    store.freeze()
    with pytest.raises(fv.MismatchError, match=r"are in the file without '0\.': pass rename=\[\('\^', '0\.'\)\]"):
        store.load(path, select="0.*")


@pytest.mark.row("B-04", "B-11")
@pytest.mark.parametrize(
    "select", ["enc.*", ["enc.a", "enc.b"], re.compile(r"^enc"), lambda v: v.name < "f", [re.compile("a$"), "*.b"]]
)
def test_subsets(select, path: Path) -> None:
    store = fv.VarStore()
    for name in ("enc.a", "enc.b", "head"):
        store.add(name, torch.zeros(2))
    save_file({"enc.a": torch.ones(2), "enc.b": torch.ones(2), "head": torch.ones(3)}, path)
    store.load(path, select=select)
    assert_values(store, {"enc.a": torch.ones(2), "enc.b": torch.ones(2), "head": torch.zeros(2)})
    store.save(path, select=select)
    with fv.checkpoint.Checkpoint(path) as file:
        assert file.names() == ["enc.a", "enc.b"]
    assert store.load_partial(path) == ["head"]


def test_a_selection_of_nothing_is_an_error(path: Path) -> None:
    store = store_of(a=torch.zeros(3))
    with pytest.raises(fv.CheckpointError, match="chooses none of the 1 variables"):
        store.save(path, select=lambda v: False)
    store.save(path)
    for call in (store.save, store.load, store.load_partial):
        with pytest.raises(fv.UnknownNameError, match=r"pattern 'b\*' matches none of the 1 names"):
            call(path, select="b*")
    with pytest.raises(fv.MismatchError, match="select= chooses none"):
        store.load(path, select=lambda v: False)
    with pytest.raises(fv.CheckpointError, match="training resumes with all"):
        store.save(path, fv.optim.SGD(store, lr=0.1), select="a")


@pytest.mark.row("C-04")
def test_a_checkpoint_is_read_without_a_store(path: Path) -> None:
    save_file({"a": torch.arange(6.0).view(2, 3), "a.b": torch.ones((), dtype=torch.int8)}, path)
    with fv.checkpoint.Checkpoint(path) as file:
        assert sorted(file.names()) == ["a", "a.b"]
        assert "a" in file
        assert "b" not in file
        assert file.shape("a") == (2, 3)
        assert file.dtype("a.b") == torch.int8
        assert torch.equal(file.tensor("a"), torch.arange(6.0).view(2, 3))
        assert file.tensor("a.b").tolist() == 1
        with pytest.raises(fv.MismatchError, match="holds no tensor 'c'"):
            file.tensor("c")


@pytest.mark.row("C-06")
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_slices_of_all_ranks_make_up_the_tensor(dim: int, path: Path) -> None:
    whole = torch.randn(4, 6, 2)
    save_file({"a": whole}, path)
    with fv.checkpoint.Checkpoint(path) as file:
        slices = [file.slice("a", dim, rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat(slices, dim), whole)
        with pytest.raises(fv.MismatchError, match=r"axis 1 of 'a' has length 6, which 4 does not divide"):
            file.slice("a", 1, 0, 4)
        with pytest.raises(fv.MismatchError, match="is no part of"):
            file.slice("a", 3, 0, 2)


def test_tied_variables_load_from_any_of_their_names(path: Path) -> None:
    model = nn.Module()
    model.a = nn.Linear(2, 2, bias=False)
    model.b = nn.Linear(2, 2, bias=False)
    model.b.weight = model.a.weight
    store = fv.VarStore.from_module(model)
    save_file({"b.weight": torch.ones(2, 2)}, path)
    store.load(path)
    assert_values(store, {"a.weight": torch.ones(2, 2)})
    save_file({"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2, 2)}, path)
    store.load(path)
    save_file({"a.weight": torch.zeros(2, 2), "b.weight": torch.ones(2, 2)}, path)
    with pytest.raises(fv.MismatchError, match=r"'a\.weight' is tied in the store, but .* of the file differ"):
        store.load(path)


class Drawing(nn.Linear):
    """A layer whose initializer must not run."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            raise AssertionError("initialized")


def test_loading_initializes_nothing_and_draws_no_random_number(path: Path) -> None:
    store = fv.VarStore.from_module(filled(nn.Linear(3, 2)))
    store.save(path)
    before = values(store)
    with torch.device("meta"):
        model = Drawing(3, 2)
    state = torch.get_rng_state()
    fresh = fv.VarStore.from_module(model, device="cpu", init=lambda module: None)
    fresh.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert_values(fresh, before)
    assert torch.equal(model.weight, before["weight"])


def test_loading_between_forward_and_backward_is_noticed(path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    store = fv.VarStore.from_module(model)
    store.save(path)
    loss = model(torch.ones(1, 3)).sum()
    store.load(path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_loading_values_leaves_gradients_masks_and_state_alone(grads: str, path: Path) -> None:
    model = nn.Linear(3, 2)
    store = fv.VarStore.from_module(model, grads=grads)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    store.freeze("bias")
    store.save(path, optimizer)
    store.unfreeze()
    grad = model.weight.grad.clone()
    store.load(path)
    assert torch.equal(model.weight.grad, grad)
    assert store["bias"].requires_grad
    assert float(optimizer.state[model.weight]["step"]) == 1.0


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    store = store_of(a=torch.zeros(3))
    with pytest.raises(fv.CheckpointError, match=r"no checkpoint at .*none of 'x\.safetensors', "):
        store.load(tmp_path / "x.safetensors")
    with pytest.raises(fv.CheckpointError, match=r"none of 'model\.safetensors', "):
        store.load(tmp_path)


def test_a_bar_is_shown_when_it_takes_long_and_was_asked_for(path: Path, capsys, monkeypatch) -> None:
    store = store_of(a=torch.zeros(1000))
    store.save(path, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("flatvars.checkpoint.progress.PATIENCE", 0.0)
    store.save(path)
    assert capsys.readouterr().err == ""
    store.save(path, progress=True)
    assert capsys.readouterr().err.startswith("saving  100% of 4.0 KB")
    store.load(path, progress=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("loading  100% of 8.0 KB")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    store.save(path, progress=True)
    drawn = capsys.readouterr().err
    assert drawn.startswith("\rsaving  100% of 4.0 KB")
    assert drawn.endswith("\n")
