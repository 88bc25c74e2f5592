"""Commands over what no one expects: no traceback, no wait without end, and no number that is not exact."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flatvars.cli import main

from .support import raw

ROOT = Path(__file__).parents[2]


def as_json(capsys: Any, *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


INTEGERS = [
    (torch.int64, 2**53, 2**53 + 1, 1),
    (torch.int64, -(2**63), 2**63 - 1, 2**64 - 1),
    (torch.uint64, 2**64 - 1, 0, 2**64 - 1),
    (torch.uint64, 2**64 - 1, 2**64 - 2, 1),
    (torch.int64, -5, 7, 12),
    (torch.uint8, 255, 3, 252),
    (torch.bool, True, False, 1),
]


@pytest.mark.parametrize(("dtype", "one", "other", "gap"), INTEGERS, ids=str)
def test_differences_of_integers_are_exact(
    dtype: torch.dtype, one: int, other: int, gap: int, tmp_path: Path, capsys: Any
) -> None:
    save_file({"n": torch.tensor([1, one], dtype=dtype)}, tmp_path / "a.safetensors")
    save_file({"n": torch.tensor([1, other], dtype=dtype)}, tmp_path / "b.safetensors")
    code, content = as_json(capsys, "diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert code == 1
    assert content["changed"]["n"]["difference"] == gap
    code, content = as_json(capsys, "inspect", tmp_path / "a.safetensors")
    assert content["tensors"]["n"]["largest"] == max(abs(int(one)), 1)
    main(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")])
    assert capsys.readouterr().out.splitlines()[1].split() == ["n", "values", str(gap)]


def test_a_tolerance_holds_across_dtypes(tmp_path: Path, capsys: Any) -> None:
    save_file({"w": torch.tensor([1.0, 2.0])}, tmp_path / "a.safetensors")
    save_file({"w": torch.tensor([1.0, 2.5]).half()}, tmp_path / "b.safetensors")
    pair = ["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert main([*pair, "--tolerance", "0.5"]) == 0
    assert main([*pair, "--tolerance", "0.4"]) == 1
    assert main(pair) == 1
    save_file({"w": torch.tensor([1.0, 2.0]).half()}, tmp_path / "b.safetensors")
    assert main([*pair, "--tolerance", "0"]) == 0
    assert main(pair) == 1
    for wrong in ("nan", "-1", "inf", "near"):
        with pytest.raises(SystemExit) as caught:
            main([*pair, f"--tolerance={wrong}"])
        assert caught.value.code == 2
        assert "invalid number >= 0" in capsys.readouterr().err


def test_a_difference_of_twenty_thousand_names_takes_linear_time(tmp_path: Path, capsys: Any) -> None:
    """Four times as many names take about four times as long, and not sixteen."""
    took = {}
    for count in (5_000, 20_000):
        for letter in "ab":
            names = {f"{letter}{i}": torch.zeros(1) for i in range(count)}
            save_file(names, tmp_path / f"{letter}.safetensors")
        gc.disable()  # what it walks is everything the process holds, other tests' too
        try:
            began = time.process_time()
            assert main(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--json"]) == 1
            took[count] = time.process_time() - began
        finally:
            gc.enable()
        assert len(json.loads(capsys.readouterr().out)["only_in_b"]) == count
    assert took[20_000] < 8 * took[5_000] + 0.5


def test_what_overflows_is_said(tmp_path: Path, capsys: Any) -> None:
    inf = float("inf")
    save_file({"w": torch.tensor([1e6, 1.0, inf, -7e4]), "v": torch.tensor([inf, 2.0])}, tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    assert main(["convert", str(tmp_path / "a.safetensors"), str(target), "--dtype", "float16"]) == 0
    said = capsys.readouterr().err
    assert "2 elements of w are beyond float16, and infinite now" in said
    assert "of v" not in said
    _, content = as_json(capsys, "convert", tmp_path / "a.safetensors", target, "--dtype", "float16")
    assert content["overflowed"] == {"w": 2}
    _, content = as_json(capsys, "convert", tmp_path / "a.safetensors", target, "--dtype", "float64")
    assert content["overflowed"] == {}


def test_a_size_of_shards_is_not_ignored(tmp_path: Path, capsys: Any) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pt"), "--shard-size", "100B"]) == 2
    assert "is one file whatever its size" in capsys.readouterr().err
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("command", ["inspect", "verify", "diff", "convert", "convert to torch"])
@pytest.mark.parametrize("shape", [[0, 2**62, 2**62], [0, 2**40, 2**20]], ids=str)
def test_huge_shapes_of_nothing(command: str, shape: list[int], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}))
    target = {"diff": [path], "convert": [tmp_path / "b.safetensors"], "convert to torch": [tmp_path / "b.pt"]}
    found = main([command.split()[0], *map(str, [path, *target.get(command, [])])])
    assert found == (1 if shape[1] == 2**62 else 0)


KINDS: dict[str, Any] = {
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "negative": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "sparse": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(2, device="meta"),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "half a complex": lambda: torch.ones(2, dtype=torch.complex32),
    "unsigned": lambda: torch.ones(2, dtype=torch.uint16),
    "eight bits": lambda: torch.ones(2).to(torch.float8_e8m0fnu),
    "empty": lambda: torch.ones(0, 3),
    "scalar": lambda: torch.tensor(3.0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_commands_end_with_words_and_without_warnings(kind: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": KINDS[kind](), "a": torch.ones(2)}, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for arguments in ([], ["--header"], ["--json"]):
            assert main(["inspect", str(path), *arguments]) in (0, 2)
        assert main(["verify", str(path)]) in (0, 2)
        assert main(["diff", str(path), str(path)]) in (0, 2)
        assert main(["convert", str(path), str(tmp_path / "b.safetensors"), "--dtype", "float16"]) in (0, 2)
    assert [str(one.message) for one in caught] == []


def test_no_memory_is_no_traceback(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "a.safetensors")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyboardInterrupt()):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("flatvars.checkpoint.source.SafetensorsFile.read", fail)
        code = main(["inspect", str(tmp_path / "a.safetensors")])
        assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / "one.safetensors")
    (tmp_path / "b.safetensors.index.json").write_text('{"weight_map": {"w": "one.safetensors"}}')
    os.mkfifo(tmp_path / "c.safetensors.index.json")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 2
    assert main(["inspect", str(tmp_path / "b.safetensors")]) == 1
    assert main(["inspect", str(tmp_path / "c.safetensors")]) == 2


def test_words_of_a_file_move_no_cursor(tmp_path: Path, capsys: Any) -> None:
    name = "a\x1b[2J"
    header = {name: {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}
    (tmp_path / "a.safetensors").write_bytes(raw(header, b"\0" * 4))
    for command in ("inspect", "verify"):
        assert main([command, str(tmp_path / "a.safetensors")]) == 1
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err


@pytest.mark.process
def test_a_closed_terminal_is_no_traceback(tmp_path: Path) -> None:
    """Output that nobody reads to its end, of each command that prints rows."""
    names = {f"w{i}": torch.zeros(1) for i in range(3_000)}
    save_file(names, tmp_path / "a.safetensors")
    save_file({}, tmp_path / "b.safetensors")
    for command in (f"inspect {tmp_path}/a.safetensors", f"diff {tmp_path}/a.safetensors {tmp_path}/b.safetensors"):
        piped = f"{sys.executable} -m flatvars {command} | head -1"
        done = subprocess.run(piped, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
