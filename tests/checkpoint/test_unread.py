"""Dtypes that others write and that are no dtype of a variable: such tensors are named, the others are read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import flatvars as fv
from flatvars.cli import main

from .support import raw

HEADER: dict[str, Any] = {
    "packed": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
    "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [2, 5]},
    "fnuz": {"dtype": "F8_E4M3FNUZ", "shape": [2], "data_offsets": [5, 7]},
    "later": {"dtype": "Q3_K", "shape": [5, 5], "data_offsets": [7, 11]},
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [11, 15]},
}
CODES = {"packed": "F4", "six": "F6_E2M3", "fnuz": "F8_E4M3FNUZ", "later": "Q3_K"}
DATA = bytes(range(11)) + b"\0\0\x80\x3f"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(raw(HEADER, DATA))
    return tmp_path / "model.safetensors"


def a_store(**more: torch.Tensor) -> fv.VarStore:
    store = fv.VarStore()
    for name, value in {"a": torch.zeros(1), **more}.items():
        store.add(name, value)
    return store


def test_the_other_tensors_are_read(path: Path) -> None:
    for load in ("load_partial", "read", "fill"):
        store = a_store()
        getattr(store, load)(path)
        assert store["a"].value.item() == 1.0
    store = a_store()
    store.load(io.BytesIO(path.read_bytes()), strict=False)
    assert store["a"].value.item() == 1.0
    with fv.checkpoint.Checkpoint(path) as file:
        assert file.names() == ["a"]
        assert file.unread == CODES
        assert file.tensor("a").item() == 1.0
        with pytest.raises(fv.MismatchError, match=r"'fnuz' of .* is F8_E4M3FNUZ, which is not read"):
            file.tensor("fnuz")


def test_each_is_named_where_it_is_wanted(path: Path) -> None:
    store = a_store(packed=torch.zeros(4), later=torch.zeros(5, 5))
    with pytest.raises(fv.MismatchError) as caught:
        store.load(path)
    for words in ("'packed' is F4 in the file", "'later' is Q3_K in the file", "'six' is in the file but not in"):
        assert words in str(caught.value)
    for load in (store.load_partial, store.fill, store.read):
        with pytest.raises(fv.MismatchError, match="'packed' is F4 in the file, which is not read; select= leaves"):
            load(path)
    assert not store.values.any()
    store.load(path, strict=False, select=["a"])
    assert store["a"].value.item() == 1.0


def test_a_shard_may_hold_them(path: Path) -> None:
    path.rename(path.with_name("one.safetensors"))
    index = {"weight_map": dict.fromkeys(HEADER, "one.safetensors")}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    with fv.checkpoint.Checkpoint(path) as file:
        assert file.unread == CODES


def test_one_that_lies_about_its_size_is_damaged(path: Path) -> None:
    header = {**HEADER, "packed": {**HEADER["packed"], "shape": [5]}}
    path.write_bytes(raw(header, DATA))
    with pytest.raises(fv.DamagedFileError, match=r"'packed' .* F4 of shape .* needs 3"):
        a_store().fill(path)


def test_commands_name_them(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    for name, code in CODES.items():
        line = next(line for line in shown.splitlines() if line.startswith(name))
        assert code in line
        assert "dtype not read" in line
        assert rows[name]["dtype"] == code
        assert rows[name]["read"] is False
    assert main(["verify", str(path)]) == 0
    assert "six is F6_E2M3, which is not read here" in capsys.readouterr().out


def test_diff_compares_their_bytes(path: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes())
    assert main(["diff", str(path), str(other)]) == 0
    content = bytearray(path.read_bytes())
    content[len(content) - len(DATA) + 8] ^= 1
    other.write_bytes(content)
    capsys.readouterr()
    assert main(["diff", str(path), str(other), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["changed"] == {"later": {"what": "bytes"}}
    header = {**HEADER, "fnuz": {**HEADER["fnuz"], "dtype": "F8_E5M2FNUZ"}}
    other.write_bytes(raw(header, DATA))
    assert main(["diff", str(path), str(other), "--json"]) == 1
    changed = json.loads(capsys.readouterr().out)["changed"]
    assert changed == {"fnuz": {"a": "F8_E4M3FNUZ", "b": "F8_E5M2FNUZ", "what": "dtype"}}


def test_convert_drops_none_silently(path: Path, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "out.safetensors"
    assert main(["convert", str(path), str(target)]) == 2
    assert "'packed' (F4), 'six' (F6_E2M3)" in capsys.readouterr().err
    assert not target.exists()
    assert main(["convert", str(path), str(target), "--select", "a"]) == 0
    store = a_store()
    store.load(target)
    assert store["a"].value.item() == 1.0
