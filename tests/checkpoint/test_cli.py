"""`python -m flatvars`: what it prints, for people and for programs, and its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import flatvars as fv
from flatvars.cli import main

from .support import raw, trained

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    _, store, optimizer = trained()
    store.freeze("norm.*")
    store.save(tmp_path / "model.safetensors", optimizer)
    return tmp_path / "model.safetensors"


def as_json(capsys: Any, *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_version_is_told(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"flatvars {fv.__version__}", f"torch {torch.__version__}"]
    assert [line.split()[0] for line in lines] == ["flatvars", "torch", "Python", "triton", "numba", "numpy"]


def test_inspect_shows_a_tree(path: Path, capsys: Any) -> None:
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "bytes", "norm", "largest", "NaN", "inf"]
    head = lines.index("head")
    weight = load_file(path)["head.weight"]
    norm, largest = f"{weight.double().norm():.6g}", f"{weight.double().abs().max():.6g}"
    assert lines[head + 1].split() == ["weight", "5x12", "float32", "240", "B", norm, largest, "0", "0"]
    assert any(line.startswith("  weight (frozen)") for line in lines)
    assert lines[-1] == "AdamW: 2 steps, 0 skipped, 1 param groups"
    assert not any("exp_avg/" in line for line in lines)


def test_inspect_counts_what_is_not_finite(tmp_path: Path, capsys: Any) -> None:
    values = torch.tensor([3.0, float("nan"), float("-inf"), float("inf"), -4.0], dtype=torch.bfloat16)
    save_file({"x": values, "n": torch.tensor([3, -4])}, tmp_path / "x.safetensors")
    code, content = as_json(capsys, "inspect", tmp_path / "x.safetensors")
    assert code == 0
    row = content["tensors"]["x"]
    assert (row["nan"], row["infinite"], row["norm"], row["largest"]) == (1, 2, 5.0, 4.0)
    assert content["tensors"]["n"]["norm"] == 5.0
    assert content["format"] == "other"


def test_inspect_json_has_everything(path: Path, capsys: Any) -> None:
    _, content = as_json(capsys, "inspect", path, "--all")
    assert set(content["tensors"]) == set(load_file(path))
    assert content["tensors"]["norm.weight"]["trainable"] is False
    assert content["training"]["optimizers"][0]["steps"] == 2
    assert content["bytes"]["exp_avg"] == content["bytes"]["values"]
    _, content = as_json(capsys, "inspect", path, "--select", "head.*", "--select", "gain", "--header")
    assert set(content["tensors"]) == {"head.weight", "head.bias", "gain"}
    assert "norm" not in content["tensors"]["gain"]


def test_header_alone_reads_no_tensor(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("flatvars.checkpoint.source.SafetensorsFile.read", read)
    assert main(["inspect", str(path), "--header"]) == 0


def test_names_move_no_cursor(tmp_path: Path, capsys: Any) -> None:
    header = {"a\x1b[2J\n": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    (tmp_path / "x.safetensors").write_bytes(raw(header, b"\0"))
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[2J\n" in out


def test_diff(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "24 tensors compared: equal\n"
    state = {name: t.clone() for name, t in load_file(path).items() if "/" not in name}
    state["head.bias"][2] += 0.5
    state["gain"] = state["gain"].double()
    state["conv.bias"] = state["conv.bias"][:2].clone()
    state["norm.bias"][0] = float("nan")
    state["more"] = state.pop("norm.weight")
    save_file(state, tmp_path / "other.safetensors")
    code, content = as_json(
        capsys, "diff", path, tmp_path / "other.safetensors", "--select", "[!e]*", "--select", "emb*"
    )
    assert code == 1
    changed = content["changed"]
    assert changed["head.bias"] == {"what": "values", "difference": pytest.approx(0.5)}
    assert changed["gain"] == {"what": "dtype", "a": "torch.float32", "b": "torch.float64", "difference": 0.0}
    assert changed["conv.bias"] == {"what": "shape", "a": [4], "b": [2]}
    assert changed["norm.bias"] == {"what": "values", "difference": "inf"}
    assert set(changed) == {"head.bias", "gain", "conv.bias", "norm.bias"}
    assert (content["only_in_a"], content["only_in_b"]) == (["norm.weight"], ["more"])
    assert main(["diff", str(path), str(tmp_path / "other.safetensors")]) == 1
    assert "head.bias" in capsys.readouterr().out
    arguments = ["diff", str(path), str(tmp_path / "other.safetensors"), "--select", "head.*", "--tolerance", "0.6"]
    assert main(arguments) == 0


def test_zero_and_minus_zero_differ_in_bits_alone(tmp_path: Path, capsys: Any) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"x": -torch.zeros(2)}, tmp_path / "b.safetensors")
    code, content = as_json(capsys, "diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (code, content["changed"]) == (1, {"x": {"what": "values", "difference": 0.0}})


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_convert(suffix: str, dtype: str | None, path: Path, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / f"out{suffix}"
    code, content = as_json(capsys, "convert", path, target, *(["--dtype", dtype] if dtype else []))
    assert code == 0
    assert content["tensors"] == 8
    found = load_file(target) if suffix == ".safetensors" else torch.load(target, weights_only=True)
    values = {name: value for name, value in load_file(path).items() if "/" not in name}
    assert found.keys() == values.keys()
    kind = getattr(torch, dtype or "float32")
    assert all(torch.equal(found[name], value.to(kind)) for name, value in values.items())
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(target), str(again), "--dtype", "float32", "--shard-size", "1KB"]) == 0
    store = trained()[1]
    store.load(again)
    assert torch.equal(store["head.weight"].value, values["head.weight"].to(kind).float())


def test_verify(path: Path, capsys: Any) -> None:
    assert main(["verify", str(path)]) == 0
    assert "24 tensors" in capsys.readouterr().out
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 1
    assert "tensor 'exp_avg_sq/" in capsys.readouterr().out
    path.write_bytes(content[:-10])
    code, found = as_json(capsys, "verify", path)
    assert code == 1
    assert not found["sound"]
    assert "is truncated" in found["problems"][0]


def test_verify_says_what_it_could_not_check(tmp_path: Path, capsys: Any) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert main(["verify", str(tmp_path / "a.safetensors")]) == 0
    assert "1 have no checksum, only their sizes were checked" in capsys.readouterr().out


def test_exit_codes(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "x.npz")]) == 2
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 20)
    assert main(["inspect", str(tmp_path / "bad.safetensors")]) == 1
    assert main(["diff", str(path), str(tmp_path / "bad.safetensors")]) == 1
    with pytest.raises(SystemExit) as caught:
        main(["explode", str(path)])
    assert caught.value.code == 2


def test_a_selection_of_nothing_is_wrong_usage(path: Path, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"what was there")
    for arguments in (["inspect", path], ["diff", path, path], ["convert", path, target]):
        assert main([*map(str, arguments), "--select", "heed.*"]) == 2
        assert "--select heed.* matches none of" in capsys.readouterr().err
    assert target.read_bytes() == b"what was there"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flatvars", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_as_a_program(path: Path) -> None:
    done = run("verify", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    piped = f"{sys.executable} -m flatvars inspect {path} | head -1"
    shell = subprocess.run(piped, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shell.returncode, shell.stderr) == (0, "")


def test_colors_on_a_terminal_and_text_without_rich(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="rich is an extra of the tests: pip install -e .[test]")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["inspect", str(path)]) == 0
    drawn = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["inspect", str(path)]) == 0
    plain = capsys.readouterr().out
    assert "\x1b[" in drawn
    assert plain.split() == re.sub(r"\x1b\[[0-9;]*m", "", drawn).split()


def test_what_is_converted_is_verified_first(path: Path, tmp_path: Path, capsys: Any) -> None:
    header_end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    content = bytearray(path.read_bytes())
    content[header_end] ^= 1
    path.write_bytes(content)
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert "is damaged" in capsys.readouterr().err


def test_a_converted_training_checkpoint_is_one_of_values(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 0
    with fv.checkpoint.Checkpoint(tmp_path / "out.safetensors") as file:
        assert len(file.names()) == 8
        assert file.variables["norm.bias"]["frozen"] is True
