"""Machine code that processes keep for each other: what it is known by, and what happens to bad files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types

from flatvars.kernels.cpu import compile as compiler
from flatvars.kernels.cpu import saved
from flatvars.kernels.cpu.compile import compiled, native
from flatvars.kernels.cpu.memory import address_of, caller, stack
from flatvars.kernels.cpu.threads import callable_of

ROOT = Path(__file__).resolve().parents[2]
TWO = types.int64(types.int64, types.int64)
SCALE = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLATVARS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_natives", Forgetful())
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is compiled from here on."""
    names, make = [], compiler._made

    def counted(function: Callable[..., Any], signature: Any) -> Any:
        names.append(function.__name__)
        return make(function, signature)

    monkeypatch.setattr(compiler, "_made", counted)
    return names


class Forgetful(dict[str, Any]):
    """What a process has made; asked whether it has, it has not."""

    def __contains__(self, key: object) -> bool:
        return False


def sums(factor: int) -> Callable[..., Any]:
    """`a + factor b`, with a callee and a number that is not its own."""

    @compiled
    def times(number: Any) -> Any:
        return factor * number

    def run(a: Any, b: Any) -> Any:
        return a + times(b)

    return run


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.process
def test_a_second_process_compiles_nothing_and_steps_alike(tmp_path: Path) -> None:
    """Every kernel that a step of each kind of format needs: none of them has an address of its process in it."""
    program = """
import sys, zlib, numba, torch
import flatvars as fv
from flatvars.kernels.cpu import compile
compiled, make = [], compile._made
compile._made = lambda *given: compiled.append(1) or make(*given)

sums = []
for stored, kept in (
    ({}, {}),
    ({"dtype": torch.bfloat16, "values": "split"}, {"state_format": {"exp_avg": "root8", "exp_avg_sq": "log4"}}),
    ({"dtype": torch.bfloat16, "values": "stochastic"}, {"state_dtype": torch.bfloat16}),
):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(20)])
    store = fv.VarStore.from_module(model, **stored)
    optimizer = fv.optim.AdamW(store, max_norm=1.0, **kept)
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.zero_grad()
    values = torch.cat([param.detach().float().flatten() for param in model.parameters()])
    sums.append(zlib.crc32(values.numpy().tobytes()))
print(len(compiled), sums)
"""
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "FLATVARS_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": str(len(outputs) + 1)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout.split(maxsplit=1))
    (first, bits), (second, again) = outputs
    assert int(first) == len(files(tmp_path)) > 5
    assert (int(second), again) == (0, bits)


def test_code_is_known_by_all_that_it_is_made_of(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable_of(native(sums(2), TWO))(1, 10) == 21
    assert callable_of(native(sums(2), TWO))(1, 10) == 21
    assert callable_of(native(sums(3), TWO))(1, 10) == 31
    assert len(made) == len(files(folder)) == 2

    def scaled(a: Any, b: Any) -> Any:
        return a + SCALE * b

    assert callable_of(native(scaled, TWO))(1, 10) == 31
    monkeypatch.setitem(globals(), "SCALE", 4)
    assert callable_of(native(scaled, TWO))(1, 10) == 41
    assert len(made) == len(files(folder)) == 4


def test_keys_differ_in_types_intrinsics_and_signatures() -> None:
    def of(held: Any, signature: Any = TWO) -> str:
        def run(a: Any, b: Any) -> Any:
            return held

        return saved.key_of(run, signature)

    one = [1, 1.0, True, np.float32(1), np.float64(1), "1", (1,), [1], range(1), frozenset({1}), None, types.int64]
    others = [types.float32, stack(8), stack(16), caller([types.int64]), caller([types.float32]), address_of("a")]
    keys = [of(each) for each in [*one, *others]] + [of(1, types.int64(types.int64))]
    assert len(set(keys)) == len(keys)
    assert keys == [of(each) for each in [*one, *others]] + [of(1, types.int64(types.int64))]


def test_keys_tell_the_order_of_names_in_named_tuples() -> None:
    """Machine code finds a number by its place."""

    def of(held: Any) -> str:
        def run(a: Any, b: Any) -> Any:
            return held

        return saved.key_of(run, TWO)

    one, other = namedtuple("numbers", ("lr", "beta")), namedtuple("numbers", ("beta", "lr"))
    both = [types.NamedUniTuple(types.float32, 2, each) for each in (one, other)]
    assert of(one) != of(other)
    assert of(both[0]) != of(both[1])
    assert of(types.Tuple([both[0]])) != of(types.Tuple([both[1]]))


def test_what_no_key_can_be_made_of_is_compiled_and_not_kept(folder: Path) -> None:
    unknown = object()

    def run(a: Any, b: Any) -> Any:
        return a + b

    run.__defaults__ = (unknown,)
    with pytest.raises(saved.UnkeyedError, match="object"):
        saved.key_of(run, TWO)
    assert callable_of(native(run, TWO))(1, 2) == 3
    assert not files(folder)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"\7"])
def test_a_damaged_file_is_made_anew(folder: Path, made: list[str], damage: Callable[[bytes], bytes]) -> None:
    native(sums(5), TWO)
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert callable_of(native(sums(5), TWO))(1, 10) == 51
    assert len(made) == 2
    native(sums(5), TWO)
    assert len(made) == 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes here")
def test_nothing_is_loaded_that_others_may_have_written(folder: Path, made: list[str]) -> None:
    native(sums(6), TWO)
    (path,) = files(folder)
    path.parent.chmod(0o777)
    assert callable_of(native(sums(6), TWO))(1, 10) == 61
    assert len(made) == 2
    path.parent.chmod(0o700)
    native(sums(6), TWO)
    assert len(made) == 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes here")
def test_a_file_that_others_may_have_written_is_not_loaded(folder: Path, made: list[str], tmp_path: Path) -> None:
    native(sums(9), TWO)
    (path,) = files(folder)
    path.chmod(0o666)
    assert callable_of(native(sums(9), TWO))(1, 10) == 91
    assert len(made) == 2
    assert path.stat().st_mode & 0o777 == 0o600, "it was made anew"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    native(sums(9), TWO)
    assert len(made) == 3


def test_a_file_of_another_key_is_not_loaded(folder: Path, made: list[str]) -> None:
    native(sums(10), TWO)
    (path,) = files(folder)
    path.rename(path.with_name(saved.key_of(sums(11), TWO)))
    assert callable_of(native(sums(11), TWO))(1, 10) == 111
    assert len(made) == 2


def test_the_latest_generations_stay_and_all_that_is_somebody_elses(folder: Path) -> None:
    names = [f"code-{age:032x}" for age in range(6)]
    others = ["thesis", *(f"{age:032x}" for age in range(6)), "code-of-mine"]
    for age, name in enumerate([*names, *others]):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (1_000 - age, 1_000 - age))
    native(sums(7), TWO)
    left = {path.name for path in folder.iterdir()}
    assert left.issuperset(others)
    assert left.intersection(names) == set(names[: saved.KEPT - 1])
    assert len(left) == len(others) + saved.KEPT


def test_none_are_kept_where_the_folder_has_no_name(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATVARS_CACHE_DIR", "")
    monkeypatch.setattr(compiler, "_natives", Forgetful())
    monkeypatch.setattr(saved, "_folder", lambda _: pytest.fail("a folder was looked for"))
    for _ in range(2):
        assert callable_of(native(sums(8), TWO))(1, 10) == 81
    assert len(made) == 2


def test_threads_that_want_the_same_code_at_once_share_one(made: list[str]) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(native(sums(9), TWO))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) <= 1
    assert len({id(result) for result in results}) == 1 == len(results) // 4
