"""Files of others load here, and ours load there: safetensors, candle, tch-rs, Hugging Face, torch."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import flatvars as fv
from tests.support.models import TiedLanguageModel

from .support import assert_values, filled, raw, values

transformers = pytest.importorskip(
    "transformers", reason="transformers is an extra of the tests: pip install -e .[test]"
)


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


def test_files_of_safetensors_load(tmp_path: Path) -> None:
    model = filled(linear())
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"made by": "hand"})
    store = fv.VarStore.from_module(linear())
    store.load(tmp_path / "model.safetensors")
    assert_values(store, dict(model.state_dict()))


def test_headers_as_candle_and_tch_write_them(tmp_path: Path) -> None:
    # The Rust crate without metadata, in any order of the names, and unpadded as its first versions wrote.
    weight, bias = torch.arange(6.0).view(2, 3), torch.tensor([7.0, 8.0])
    header = {
        "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
        "bias": {"shape": [2], "data_offsets": [0, 8], "dtype": "F32"},
    }
    data = struct.pack("<2f", 7.0, 8.0) + struct.pack("<6f", *range(6))
    for text in (
        json.dumps(header).encode(),
        json.dumps(header).encode() + b"  ",
        json.dumps(header, indent=1).encode(),
    ):
        (tmp_path / "candle.safetensors").write_bytes(raw(text, data))
        store = fv.VarStore.from_module(linear())
        store.load(tmp_path / "candle.safetensors")
        assert_values(store, {"weight": weight, "bias": bias})


def test_misaligned_tensors_of_others_load(tmp_path: Path) -> None:
    header = {
        "flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "weight": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    (tmp_path / "odd.safetensors").write_bytes(raw(header, b"\1" + struct.pack("<2f", 1.5, -2.5)))
    store = fv.VarStore()
    store.add("weight", torch.zeros(2, dtype=torch.float64))
    store.add("flag", torch.zeros(1, dtype=torch.uint8), trainable=False)
    store.load(tmp_path / "odd.safetensors")
    assert store["weight"].value.tolist() == [1.5, -2.5]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=31, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("size", [None, "8KB"], ids=["one file", "shards"])
def test_hugging_face_models_both_ways(size: str | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = gpt2()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size or "1GB")
    ours = gpt2()
    store = fv.VarStore.from_module(ours)
    store.load(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    filled(ours, seed=5)
    (tmp_path / "ours").mkdir()
    ours.config.save_pretrained(tmp_path / "ours")
    store.save(tmp_path / "ours", shard_size=size)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == (size is not None)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.row("T-VS-07", "T-VS-09")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_round_trip_for_each_ending(suffix: str, tmp_path: Path) -> None:
    store = fv.VarStore.from_module(filled(TiedLanguageModel()))
    before = values(store)
    store.save(tmp_path / f"model{suffix}")
    if suffix != ".safetensors":
        state = torch.load(tmp_path / f"model{suffix}", weights_only=True)
        TiedLanguageModel().load_state_dict(state)
        assert sum(t.untyped_storage().nbytes() for t in {t.data_ptr(): t for t in state.values()}.values()) == sum(
            value.nbytes for value in before.values()
        )
    store.values.zero_()
    store.load(tmp_path / f"model{suffix}")
    assert_values(store, before)


def test_other_endings_are_refused_before_any_work(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(linear())
    with pytest.raises(fv.CheckpointError, match=r"model\.npz says no format; give a name that ends in \.safetensors"):
        store.save(tmp_path / "model.npz")
    optimizer = fv.optim.SGD(store, lr=0.1)
    with pytest.raises(fv.CheckpointError, match=r"training state is saved in safetensors files"):
        store.save(tmp_path / "model.pt", optimizer)
    with pytest.raises(fv.CheckpointError, match=r"folder .*nowhere does not exist"):
        store.save(tmp_path / "nowhere" / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_torch_files_load(legacy: bool, nested: str | None, stream: bool, tmp_path: Path) -> None:
    model = filled(linear())
    state = dict(model.state_dict())
    content = state if nested is None else {nested: state, "epoch": 3}
    torch.save(content, tmp_path / "model.bin", _use_new_zipfile_serialization=not legacy)
    store = fv.VarStore.from_module(linear())
    store.load(io.BytesIO((tmp_path / "model.bin").read_bytes()) if stream else tmp_path / "model.bin")
    assert_values(store, state)


def test_torch_files_in_any_memory_order_load(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(6.0).view(3, 2).t(), "bias": torch.arange(8.0)[::4]}, tmp_path / "model.pt")
    store = fv.VarStore.from_module(linear())
    store.load(tmp_path / "model.pt")
    assert store["weight"].value.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert store["bias"].value.tolist() == [0, 4]


class Evil:
    def __reduce__(self) -> tuple:
        return os.putenv, ("FLATVARS_WAS_HERE", "1")


@pytest.mark.parametrize("content", [{"weight": Evil()}, linear(), Evil()], ids=["in a dict", "module", "alone"])
def test_pickles_that_want_code_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    store = fv.VarStore.from_module(linear())
    before = values(store)
    with pytest.raises(fv.CheckpointError, match=r"model\.pt is refused: it wants to run code"):
        store.load(tmp_path / "model.pt")
    assert_values(store, before)
    assert subprocess.run(["printenv", "FLATVARS_WAS_HERE"], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a state dict"),
        ({"weight": torch.ones(2), "epoch": 3}, "'epoch' are no tensors by name"),
        ({"a": {"weight": torch.ones(2)}}, "say which is meant: key='a'"),
        ({"weight": torch.ones(2, 3).to_sparse(), "bias": torch.ones(2)}, "only dense tensors are read"),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(2, device="meta")},
            "'bias' of .* only dense tensors are read",
        ),
        ({"weight": torch.ones(2, 3), "bias": np.float32(1.0)}, r"it wants to run code .*numpy.*scalar"),
    ],
    ids=["list", "number", "nested", "sparse", "meta", "numpy"],
)
def test_torch_files_that_are_no_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    store = fv.VarStore.from_module(linear())
    before = values(store)
    with pytest.raises(fv.CheckpointError, match=message):
        store.load(tmp_path / "model.pt")
    assert_values(store, before)


@pytest.mark.parametrize("keep", [0, 10, 200, 30_000, -1])
def test_truncated_torch_files_are_damaged(keep: int, tmp_path: Path) -> None:
    torch.save(nn.Linear(100, 100).state_dict(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[:keep])
    with pytest.raises(fv.DamagedFileError, match=r"model\.pt cannot be read as a torch file"):
        fv.VarStore.from_module(linear()).load(tmp_path / "model.pt")


def test_bytes_of_nothing_are_damaged_and_want_no_code(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02" + bytes(range(100, 200)))
    with pytest.raises(fv.DamagedFileError, match=r"model\.pt cannot be read as a torch file"):
        fv.VarStore.from_module(linear()).load(tmp_path / "model.pt")


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_a_torch_file_with_a_cut_record_is_damaged(stream: bool, tmp_path: Path) -> None:
    """Torch takes what lies behind the record for the rest of the tensor."""
    torch.save(linear().state_dict(), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "model.pt", "w") as cut:
        for record in whole.infolist():
            content = whole.read(record)
            cut.writestr(record.filename, content[:-4] if record.filename.endswith("/data/0") else content)
    store = fv.VarStore.from_module(linear())
    before = values(store)
    with pytest.raises(fv.DamagedFileError, match="cannot be read as a torch file"):
        store.load(io.BytesIO((tmp_path / "model.pt").read_bytes()) if stream else tmp_path / "model.pt")
    assert_values(store, before)


@pytest.mark.parametrize("keys", [("model", "state_dict"), ("state_dict", "model"), ("model", "model")])
def test_state_dicts_two_levels_deep_load(keys: tuple[str, str], tmp_path: Path) -> None:
    model = filled(linear())
    torch.save({keys[0]: {keys[1]: model.state_dict(), "a": 1}, "epoch": 3}, tmp_path / "model.pt")
    store = fv.VarStore.from_module(linear())
    store.load(tmp_path / "model.pt")
    assert_values(store, dict(model.state_dict()))


def test_an_index_that_names_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"weight": "one.safetensors"}}')
    with pytest.raises(fv.DamagedFileError, match="a shard is missing"):
        fv.VarStore.from_module(linear()).load(tmp_path)
