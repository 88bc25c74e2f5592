"""The file: one tensor per variable under its own name, readable by every other tool, as its page says."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import flatvars as fv
from flatvars.checkpoint import contents, records
from flatvars.checkpoint.header import CODE_OF
from tests.support.models import MIXTURE, Bag, Orders, TiedLanguageModel

from .support import assert_values, parts, trained, values

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize(
    "module",
    [
        lambda: Bag(MIXTURE),
        lambda: Bag(MIXTURE, DTYPES),
        Orders,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last),
    ],
    ids=["shapes", "dtypes", "orders", "buffers"],
)
def test_safetensors_reads_what_we_write(module, tmp_path: Path) -> None:
    store = fv.VarStore.from_module(module(), buffers=True)
    store.save(tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    assert_values(store, loaded)
    assert list(loaded) or not len(store)


@pytest.mark.parametrize("dtype", [d for d in CODE_OF if d != torch.complex64], ids=str)
def test_every_dtype_a_file_can_hold_comes_back(dtype: torch.dtype) -> None:
    bits = torch.arange(64 * dtype.itemsize, dtype=torch.uint8)
    tensor = (bits % 2).bool() if dtype == torch.bool else bits.view(dtype)
    store = fv.VarStore()
    store.add("x", tensor.clone(), trainable=False)
    stream = io.BytesIO()
    store.save(stream)
    other = fv.VarStore()
    other.add("x", torch.zeros_like(tensor), trainable=False)
    stream.seek(0)
    other.load(stream)
    assert torch.equal(other["x"].value.view(torch.uint8), tensor.view(torch.uint8))


def test_the_bytes_are_those_of_the_page(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    store = fv.VarStore.from_module(model)
    store.save(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header, data = parts(content)
    assert data == model[0].weight.detach().numpy().tobytes() + model[0].bias.detach().numpy().tobytes()
    assert header["0.weight"] == {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    assert header["0.bias"] == {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}
    metadata = header["__metadata__"]
    assert metadata["format"] == "pt"
    described = json.loads(metadata["flatvars"])
    assert described["format"] == 1
    assert described["layout"] == [["F32", 64, 64]]
    weight = {"id": 0, "dtype": "F32", "offset": 0, "trainable": True, "frozen": False, "room": True, "group": 0}
    assert described["variables"]["0.weight"] == {**weight, "stride": [2, 1]}
    assert described["crc32"] == {"0.weight": f"{zlib.crc32(data[:8]):08x}", "0.bias": f"{zlib.crc32(data[8:]):08x}"}
    rows = "0.bias\tF32\t1\t8\n" + "0.weight\tF32\t1,2\t0\n"
    assert metadata["flatvars.crc32"] == f"{zlib.crc32((metadata['flatvars'] + rows).encode()):08x}"


def test_the_page_names_every_field_that_is_written(tmp_path: Path) -> None:
    _, _, _ = trained(tmp_path / "model.safetensors")
    header, _ = parts((tmp_path / "model.safetensors").read_bytes())
    described = json.loads(header["__metadata__"]["flatvars"])
    page = (ROOT / "flatvars" / "checkpoint" / "README.md").read_text()
    fields = [*header["__metadata__"], *described, *described["training"], *described["training"]["optimizers"][0]]
    fields += [*next(iter(described["variables"].values())), *described["training"]["gradients"]]
    missing = [name for name in fields if not re.search(rf"`{re.escape(name)}`", page)]
    assert missing == []


def test_each_tensor_is_aligned_to_its_own_size(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(Bag(MIXTURE, DTYPES))
    store.save(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, _ = parts(content)
    header.pop("__metadata__")
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    assert all((start + row["data_offsets"][0]) % sizes[row["dtype"]] == 0 for row in header.values())


def test_tied_weights_are_written_once_with_all_names(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(TiedLanguageModel())
    store.save(tmp_path / "model.safetensors")
    with fv.checkpoint.Checkpoint(tmp_path / "model.safetensors") as file:
        assert "embed.weight" in file
        assert "head.weight" not in file
        assert file.variables["embed.weight"]["names"] == ["embed.weight", "head.weight"]


def test_channels_last_is_row_major_in_the_file(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    store = fv.VarStore.from_module(conv)
    store.save(tmp_path / "model.safetensors")
    _, data = parts((tmp_path / "model.safetensors").read_bytes())
    assert data[: conv.weight.nbytes] == conv.weight.detach().contiguous().numpy().tobytes()
    before = values(store)
    store.values.zero_()
    store.load(tmp_path / "model.safetensors")
    assert_values(store, before)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_training_state_lies_under_the_same_names(tmp_path: Path) -> None:
    _, _, optimizer = trained(tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    for variable in optimizer.take_up():
        state = optimizer.state[variable.param]
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(loaded[f"{name}/{variable.name}"], state[name])


def test_large_checkpoints_are_sharded_as_hugging_face_does(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(Bag(MIXTURE, DTYPES))
    store.save(tmp_path / "model.safetensors", shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert not (tmp_path / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(v.value.nbytes for v in store.variables().values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert all(re.fullmatch(r"model-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors", name) for name in files)
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as shard:
            assert torch.equal(shard.get_tensor(name), store[name].value)
    larger = [f for f in files if (tmp_path / f).stat().st_size > 204_000 + 4_000]
    assert all(len([n for n, file in index["weight_map"].items() if file == f]) == 1 for f in larger)


@pytest.mark.parametrize("target", ["model.safetensors", "."], ids=["name", "folder"])
def test_sharded_checkpoints_load_and_the_old_files_go(target: str, tmp_path: Path) -> None:
    net, store, optimizer = trained()
    before = values(store)
    for size in ("1KB", "600B", None, "1KB"):
        store.save(tmp_path / target, optimizer, shard_size=size)
        store.values.zero_()
        store.load(tmp_path / target, optimizer)
        assert_values(store, before)
        names = {path.name for path in tmp_path.iterdir()}
        if size is None:
            assert names == {"model.safetensors"}
        else:
            index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
            assert names == {"model.safetensors.index.json", *index["weight_map"].values()}


@pytest.mark.row("T-VS-08", "T-VS-12")
def test_streams(tmp_path: Path) -> None:
    _, store, optimizer = trained()
    before = values(store)
    stream = io.BytesIO(b"before")
    stream.seek(6)
    store.save(stream, optimizer)
    stream.seek(6)
    store.values.zero_()
    store.load(stream, optimizer)
    assert_values(store, before)


def test_a_stream_that_cannot_seek(tmp_path: Path) -> None:
    _, store, _ = trained(tmp_path / "model.safetensors")
    before = values(store)
    store.values.zero_()

    class Pipe(io.RawIOBase):
        def __init__(self, content: bytes) -> None:
            self.inner = io.BytesIO(content)

        def readable(self) -> bool:
            return True

        def read(self, count: int = -1) -> bytes:
            return self.inner.read(min(count, 1000) if count > 0 else count)

        def seekable(self) -> bool:
            return False

    store.load(Pipe((tmp_path / "model.safetensors").read_bytes()))
    assert_values(store, before)


def test_names_that_would_collide_are_refused(tmp_path: Path) -> None:
    _, store, optimizer = trained()
    param = store.add("exp_avg/head.bias", torch.zeros(5))
    optimizer.add_param_group({"params": [param]})
    with pytest.raises(fv.CheckpointError, match=r"two tensors would be called 'exp_avg/head.bias'"):
        store.save(tmp_path / "model.safetensors", optimizer)
    assert list(tmp_path.iterdir()) == []
    store.save(tmp_path / "model.safetensors")
    store.load(tmp_path / "model.safetensors")


def test_an_empty_store(tmp_path: Path) -> None:
    fv.VarStore().save(tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors") == {}
    fv.VarStore().load(tmp_path / "model.safetensors")


def test_a_parameter_that_left_the_store_is_not_saved_stale(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    store = fv.VarStore.from_module(model, on_moved="error")
    model.double()
    with pytest.raises(fv.AliasError, match="no longer lies"):
        store.save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_values_that_left_the_store_are_saved_as_they_are_now(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    store = fv.VarStore.from_module(model)
    model.double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    with pytest.warns(fv.MovedWarning, match="'weight' and 1 more had left the store"):
        store.save(tmp_path / "model.safetensors")
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["weight"], torch.full((2, 3), 2.0, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["100%", "%08x", 'a":,"b', "snow\u2603man", "tab\tname"])
def test_names_that_look_like_something_else_are_names(name: str, tmp_path: Path) -> None:
    store = fv.VarStore()
    store.add(name, torch.arange(3.0))
    store.save(tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")[name].tolist() == [0.0, 1.0, 2.0]
    store[name].value.zero_()
    store.load(tmp_path / "model.safetensors")
    assert store[name].value.tolist() == [0.0, 1.0, 2.0]


def saved(store: fv.VarStore, opt: Any, path: Path) -> tuple[dict[str, Any], bytes]:
    """Header, without what is another for each save, and data."""
    store.save(path, opt)
    header, data = parts(path.read_bytes())
    described = json.loads(header["__metadata__"].pop("flatvars"))
    del described["save"], header["__metadata__"]["flatvars.crc32"]
    return {**header, "described": described}, data


def test_a_save_keeps_nothing_of_the_last_one_that_has_changed_since(tmp_path: Path) -> None:
    """What follows from names alone is derived once; everything that can change, does so here between two saves."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    store = fv.VarStore.from_module(model)
    opt = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    path = tmp_path / "model.safetensors"

    def step() -> None:
        for param in model.parameters():
            param.grad = torch.ones_like(param) if param.requires_grad else None
        opt.step()
        opt.zero_grad()

    changes: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a step": step,
        "freezing": lambda: store.freeze("0.*"),
        "compaction": store.compact,
        "a mask": lambda: store.set_trainable_mask("1.bias", torch.tensor([True, False])),
        "a name": lambda: store.rename("1.weight", "last"),
        "a variable": lambda: store.add("late", torch.ones(5)),
        "a dtype": lambda: store.set_dtype(torch.float64),
        "a group": lambda: setattr(store["late"], "group", 1),
        "a gradient": lambda: store["late"].set_grad(torch.ones(5, dtype=torch.float64)),
    }
    saved(store, opt, path)
    for what, change in changes.items():
        change()
        found = saved(store, opt, path)
        records._catalogs.clear()
        assert found == saved(store, opt, path), what


def test_a_variable_of_the_formats_own_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.save(path)
    before = path.read_bytes()
    store.add("__metadata__", torch.ones(3))
    with pytest.raises(fv.CheckpointError, match="'__metadata__' is the format's own name"):
        store.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.save(path)
    before = path.read_bytes()
    store.add("b\ud800", torch.ones(3))
    for target in (path, tmp_path / "model.pt", io.BytesIO()):
        with pytest.raises(fv.CheckpointError, match=r"the name 'b\\ud800' is no Unicode text"):
            store.save(target)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_header_that_would_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.save(path)
    before = path.read_bytes()
    store.add("b", torch.ones(3))
    right = contents.encode_entries
    for wrong in ("", '"a":7', '"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}'):
        monkeypatch.setattr(contents, "encode_entries", lambda _, wrong=wrong: wrong)
        records._catalogs.clear()
        with pytest.raises(fv.CheckpointError, match="no file can hold"):
            store.save(path)
        assert path.read_bytes() == before
    monkeypatch.setattr(contents, "encode_entries", right)
    records._catalogs.clear()
    store.save(path)
    assert path.read_bytes() != before


@pytest.mark.parametrize("size", ["5GB", 100])
def test_a_size_of_shards_is_refused_where_there_are_none(size: int | str, tmp_path: Path) -> None:
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    for target in (tmp_path / "model.pt", io.BytesIO()):
        with pytest.raises(fv.CheckpointError, match="one file whatever its size; leave it out"):
            store.save(target, shard_size=size)
        store.save(target, shard_size=None)
    with pytest.raises(fv.CheckpointError, match="one file whatever its size"):
        store.snapshot().save(tmp_path / "model.pt", shard_size=size)
    with pytest.raises(ValueError, match="is no size"):
        store.save(tmp_path / "model.safetensors", shard_size="many")


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["left in .grad", "accumulated"])
@pytest.mark.parametrize("way", ["file", "snapshot"])
def test_a_gradient_that_a_step_has_used_is_in_no_file(grads: str, accumulate: bool, way: str, tmp_path: Path) -> None:
    """zero_grad() stands at the top of many loops: what a step has used still lies there when it is saved."""
    path = tmp_path / "model.safetensors"
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    store = fv.VarStore.from_module(model, grads=grads)
    optimizer = fv.optim.AdamW(store)
    for stepped in (True, False):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().mean().backward()
        if accumulate:
            store.accumulate()
        if stepped:
            optimizer.step()
        if way == "file":
            store.save(path, optimizer)
        else:
            store.snapshot(optimizer).save(path, wait=True)
        held = [name for name in load_file(path) if name.startswith(("grads/", "pending/"))]
        assert len(held) == (0 if stepped else 4), "those that no step has used are"
