"""Files of torch.save that hold more than a state dict, less than they say, or what is not read."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import flatvars as fv
from flatvars.cli import main

from .support import assert_values, values

FLOATS = {"w": torch.arange(3.0)}
OTHERS = {"w": torch.arange(3.0) + 5}


def a_store() -> fv.VarStore:
    store = fv.VarStore()
    store.add("w", torch.zeros(3))
    return store


def check_content_refused(content: Any, tmp_path: Path, message: str, **options: Any) -> None:
    """Saves a content, and checks that no load takes it or changes anything."""
    torch.save(content, tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", message, fv.CheckpointError, **options)


def check_refused(path: Path, message: str, kind: type[Exception], **options: Any) -> None:
    store = a_store()
    before = values(store)
    for load in (store.load, store.load_partial, store.read, store.fill):
        with pytest.raises(kind, match=message):
            load(path, **options)
    with pytest.raises(kind, match=message):
        fv.checkpoint.Checkpoint(path, **options)
    assert_values(store, before)


LAYOUTS: dict[str, tuple[Any, Any]] = {
    "one key": ({"net": FLOATS, "ema": OTHERS}, "net"),
    "two keys": ({"net": {"online": FLOATS, "target": OTHERS}}, ("net", "online")),
    "one within a known one": ({"model": {"student": FLOATS, "teacher": OTHERS}}, ["model", "student"]),
    "beside a known one": ({"state_dict": OTHERS, "ema": FLOATS}, "ema"),
    "three keys": ({"a": {"b": {"c": FLOATS}}, "x": 1}, ("a", "b", "c")),
}


@pytest.mark.parametrize("case", list(LAYOUTS))
@pytest.mark.parametrize("call", ["load", "load_partial", "read", "fill", "stream", "checkpoint", "index"])
def test_a_key_says_where_the_state_dict_lies(case: str, call: str, tmp_path: Path) -> None:
    content, key = LAYOUTS[case]
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    store = a_store()
    if call == "checkpoint":
        with fv.checkpoint.Checkpoint(path, key=key) as file:
            assert torch.equal(file.tensor("w"), FLOATS["w"])
        return
    if call == "stream":
        store.load(io.BytesIO(path.read_bytes()), key=key)
    elif call == "index":
        path.rename(tmp_path / "part.bin")
        (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "part.bin"}}')
        store.load(tmp_path, key=key)
    else:
        getattr(store, call)(path, key=key)
    assert_values(store, FLOATS)


def test_what_a_key_may_be_is_said(tmp_path: Path) -> None:
    check_content_refused({"net": FLOATS, "ema": OTHERS}, tmp_path, "say which is meant: key='net' or key='ema'")
    check_content_refused({"net": {"a": FLOATS, "b": OTHERS}}, tmp_path, r"key=\('net', 'a'\) or key=\('net', 'b'\)")
    check_content_refused({"model": FLOATS, "state_dict": OTHERS}, tmp_path, "key='model' or key='state_dict'")
    check_content_refused({"net": FLOATS}, tmp_path, "has no key 'nett'; there is 'net'", key="nett")
    check_content_refused(
        {"net": FLOATS}, tmp_path, r"has no key 'x' under \('net', 'w'\); there is a Tensor", key=("net", "w", "x")
    )
    check_content_refused({"net": FLOATS, "n": 3}, tmp_path, "holds a int, not a state dict", key="n")
    check_content_refused({"lr": 1, "steps": {"a": 2}}, tmp_path, "no dict within it holds tensors alone")
    store = a_store()
    store.save(tmp_path / "model.safetensors")
    check_refused(tmp_path / "model.safetensors", "is for files of torch.save", fv.CheckpointError, key="net")


def test_a_step_count_beside_the_model_hides_it_not(tmp_path: Path) -> None:
    torch.save({"model": FLOATS, "step": torch.tensor(3)}, tmp_path / "model.pt")
    store = a_store()
    store.load(tmp_path / "model.pt")
    assert_values(store, FLOATS)


@pytest.mark.parametrize("command", ["inspect", "diff", "convert", "verify"])
def test_every_command_takes_a_key(command: str, tmp_path: Path, capsys: Any) -> None:
    path, target = tmp_path / "model.pt", tmp_path / "out.safetensors"
    torch.save({"net": {"online": FLOATS, "target": OTHERS}}, path)
    more = {"diff": [str(path)], "convert": [str(target)]}.get(command, [])
    assert main([command, str(path), *more]) == 2
    assert "say which is meant" in capsys.readouterr().err
    assert main([command, str(path), *more, "--key", "net", "--key", "online"]) == 0
    if command == "convert":
        store = a_store()
        store.load(target)
        assert_values(store, FLOATS)
    if command == "diff":
        keys = ["--key", "net", "--key", "online", "--key-b", "net", "--key-b", "target"]
        assert main([command, str(path), *more, *keys]) == 1


def test_expanded_views_are_bounded(tmp_path: Path, capsys: Any) -> None:
    check_content_refused(
        {"w": torch.ones(1).expand(2**40)},
        tmp_path,
        "expanded view of 4,398,046,511,104 bytes, of which the file holds 4",
    )
    for command in (["inspect"], ["verify"], ["diff", tmp_path / "model.pt"], ["convert", tmp_path / "x.safetensors"]):
        assert main([command[0], str(tmp_path / "model.pt"), *map(str, command[1:])]) == 2
        assert "is an expanded view" in capsys.readouterr().err
    together = {f"w{i}": torch.ones(1).expand(2**21) for i in range(4)}
    check_content_refused(together, tmp_path, "'w2' .* expanded view")
    torch.save({"w": torch.ones(1).expand(3)}, tmp_path / "model.pt")
    store = a_store()
    store.load(tmp_path / "model.pt")
    assert store["w"].value.tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.strided)
    check_content_refused({"w": nested}, tmp_path, "'w' of .* is nested; only dense tensors are read")


def test_compressed_records_are_damaged(tmp_path: Path) -> None:
    """They could be of any size once they are unpacked; torch.save compresses nothing."""
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
    assert (tmp_path / "model.pt").stat().st_size < 10_000
    check_refused(tmp_path / "model.pt", "is compressed, which torch.save does not do", fv.DamagedFileError)


@pytest.mark.parametrize("keep", [9_500, 100_000])
def test_a_truncated_file_says_so(keep: int, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "model.pt")
    os.truncate(tmp_path / "model.pt", keep)
    check_refused(tmp_path / "model.pt", "it is truncated, for the directory", fv.DamagedFileError)


def test_tensors_of_other_dtypes_leave_the_rest_readable(tmp_path: Path, capsys: Any) -> None:
    others = {
        "c128": torch.ones(2, 2, dtype=torch.complex128),
        "fnuz": torch.ones(2).to(torch.float8_e4m3fnuz),
        "bits": torch.zeros(2, dtype=torch.uint8).view(torch.bits8),
    }
    torch.save(FLOATS | others, tmp_path / "model.pt")
    store = a_store()
    store.load(tmp_path / "model.pt", strict=False)
    assert_values(store, FLOATS)
    with pytest.raises(fv.MismatchError, match="'fnuz' is in the file but not in the store"):
        store.load(tmp_path / "model.pt")
    store.add("c128", torch.zeros(2, 2))
    with pytest.raises(fv.MismatchError, match="'c128' is complex128 in the file, which is not read"):
        store.load(tmp_path / "model.pt", strict=False)
    assert main(["diff", str(tmp_path / "model.pt"), str(tmp_path / "model.pt")]) == 0
    assert "4 tensors compared: equal" in capsys.readouterr().out
