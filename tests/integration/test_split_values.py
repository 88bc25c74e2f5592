"""`values="split"`: float32 in a bfloat16 and 16 bits beside, wherever values are read, written and moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import flatvars as fv
from flatvars.kernels.formats import SPLIT
from flatvars.kernels.split import fingerprints


@fv.optim.rule(states=("sum",), hyper=("lr",))
def falling(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    """A rule of a user."""
    moved = 0.5 * state[0] + g
    return p - hyper.lr * moved, (moved,)


# Options by which a class has all its states, or a rule of its own; without them as it comes.
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "ASGD": {"t0": 2.0},
    "LARS": {"lr": 0.1},
    "ScheduleFreeSGD": {"lr": 0.1},
    "RuleOptimizer": {"rule": falling, "lr": 0.01},
}
CLASSES = {name: getattr(fv.optim, name) for name in fv.optim.__all__ if name != "Optimizer"}
KINDS = [name for name, kind in CLASSES.items() if isinstance(kind, type) and issubclass(kind, fv.optim.Optimizer)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(37, 9), nn.BatchNorm1d(9))


def split(module: nn.Module, **options: Any) -> Any:
    return fv.VarStore.from_module(module, dtype=torch.bfloat16, values="split", **options)


def step(module: nn.Module, optimizer: Any, steps: range, dtype: torch.dtype = torch.bfloat16) -> None:
    """With the same gradients in every store: those that bfloat16 has."""
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        for param in module.parameters():
            param.grad = torch.randn(param.shape, generator=generator).bfloat16().to(dtype)
        optimizer.step()


def numbers(store: Any) -> dict[str, torch.Tensor]:
    return {name: store.float32(name) for name, v in store.variables().items() if v.dtype.is_floating_point}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", KINDS)
def test_training_is_that_of_float32(name: str) -> None:
    """With an average of the values, where the optimizer's rule can be wrapped in one."""
    trained = []
    for make, dtype in ((fv.VarStore.from_module, torch.float32), (split, torch.bfloat16)):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(33, 9), nn.Linear(9, 5))
        store = make(module)
        optimizer = getattr(fv.optim, name)(store, **OPTIONS.get(name, {}))
        ema = None if name in ("Adafactor", "Muon") else fv.EMA(optimizer, decay=0.9)
        step(module, optimizer, range(50), dtype)
        averages = {} if ema is None else {key: ema[param].clone() for key, param in module.named_parameters()}
        trained.append((numbers(store), averages))
    assert same(trained[0][0], trained[1][0])
    assert same(trained[0][1], trained[1][1])


def test_a_float32_model_loses_nothing() -> None:
    module = network()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    store = split(module)
    for name, value in before.items():
        assert torch.equal(store.float32(name), value)
        seen = store[name].value
        assert seen.dtype == torch.bfloat16
        assert (seen.float() - value).abs().max() <= 2.0**-8 * value.abs().max()
    assert store.registry.streams.values(torch.bfloat16).data_ptr() == min(p.data_ptr() for p in module.parameters())


def test_files_and_other_stores_hold_float32(tmp_path: Any) -> None:
    module = network()
    store = split(module)
    optimizer = fv.optim.AdamW(store, lr=0.01, state_format="root8")
    step(module, optimizer, range(2))
    store.save(tmp_path / "run.safetensors", optimizer)
    file = safetensors.torch.load_file(tmp_path / "run.safetensors")
    assert all(file[v.name].dtype == torch.float32 for v in store.registry.trained())
    wide = fv.VarStore.from_module(network())
    wide.load(tmp_path / "run.safetensors")
    wanted = numbers(store)
    assert same(numbers(wide), wanted)
    assert same(numbers(store.set_dtype(torch.float32).set_dtype(torch.bfloat16)), wanted)
    assert same(numbers(fv.VarStore.merge([store])), wanted)


def test_what_is_written_to_a_parameter_is_its_value() -> None:
    """Also zeros over low bits that are large, which other libraries join to NaN."""
    module = nn.Linear(64, 32)
    store = split(module)
    optimizer = fv.optim.SGD(store, lr=0.0)
    exact = store.float32("weight")
    with torch.no_grad():
        module.weight[:16] = 0.0
        module.weight[20, 0] = 2.5
    expected = module.weight.detach().float()
    expected[22:] = exact[22:]  # units of 128 elements, two rows each, that nobody wrote to
    expected[16:20] = exact[16:20]
    assert torch.equal(store.float32("weight"), expected)
    step(module, optimizer, range(1))
    assert torch.equal(store.float32("weight"), expected)


def test_reading_and_writing() -> None:
    store = split(nn.Linear(40, 10))
    given = torch.randn(10, 40)
    store.write("weight", given)
    assert torch.equal(store.float32("weight"), given)
    assert torch.equal(store.ravel()[:400], given.flatten())
    assert store.unravel(store.ravel())["weight"].dtype == torch.float32
    torch.testing.assert_close(store.norms()["weight"][0], given.norm(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(store["weight"].norm(), given.norm(), rtol=1e-6, atol=0.0)
    other = split(nn.Linear(40, 10))
    start = other.float32("weight")
    other.lerp_(store, 0.25)
    assert torch.equal(other.float32("weight"), start.lerp(given, 0.25))
    clone = store["weight"].clone("again")
    assert torch.equal(store.float32(clone.name), given)


def test_bytes_of_a_parameter() -> None:
    """Values and states of AdamW, beside the gradient: states in 8 bits, in 8 and 4, and in bfloat16."""
    smallest = {"state_format": {"exp_avg": "root8", "exp_avg_sq": "log4"}}
    for options, expected in (
        ({"state_format": "root8"}, 6 + 3 / 32),
        (smallest, 5.5 + 3 / 32),
        ({"state_dtype": torch.bfloat16}, 8 + 1 / 32),
    ):
        store = fv.VarStore(dtype=torch.bfloat16, values="split")
        store.add("weight", torch.zeros(128, 1024, dtype=torch.bfloat16))
        optimizer = fv.optim.AdamW(store, **options)
        store["weight"].param.grad = torch.ones(128, 1024, dtype=torch.bfloat16)
        optimizer.step()
        assert store.registry.streams.nbytes == expected * 128 * 1024


GOLDEN = """3F800000 3F80 0000
BF800000 BF80 0000
3F808000 3F81 8000
3F818000 3F82 8000
40490FDB 4049 0FDB
BDCCCCCD BDCD CCCD
7F7FFFFF 7F80 FFFF
000116C2 0001 16C2
80000000 8000 0000
7F800000 7F80 0000
7FFFFFFF 7FC0 0000
FFFF8000 FFC0 0000"""


def float_of(words: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(words, dtype=np.uint32).view(np.float32))


def half_words(tensor: torch.Tensor) -> list[int]:
    return [word & 0xFFFF for word in tensor.view(torch.int16).tolist()]


def test_golden_words() -> None:
    rows = [[int(word, 16) for word in line.split()] for line in GOLDEN.splitlines()]
    values, low, _ = SPLIT.encode(float_of([row[0] for row in rows]))
    assert half_words(values) == [row[1] for row in rows]
    assert half_words(low) == [row[2] for row in rows]
    seen = torch.tensor([0x3F80, 0xBF80, 0x3F81, 0x4049, 0xBDCD, 0x3EAB, 0x3A83, 1, 0x7F80, 0x7FC0])
    halves = torch.where(seen < 0x8000, seen, seen - 0x10000).to(torch.int16).view(torch.bfloat16)
    assert fingerprints(halves).item() & 0xFFFFFFFF == 0xA773EF5C


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_every_upper_half_comes_back(low: int) -> None:
    """NaN as NaN; what is shown is within half the last bit, ties away from zero."""
    words = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(low)
    given = float_of(words)
    parts = SPLIT.encode(given)
    back = SPLIT.decode(parts)
    assert torch.equal(back.view(torch.int32)[~given.isnan()], given.view(torch.int32)[~given.isnan()])
    assert torch.equal(back.isnan(), given.isnan())
    assert torch.equal(parts[0].isnan(), given.isnan())
    seen, finite = parts[0], given.isfinite()
    ties = low == 0x8000
    assert ties or torch.equal(seen[finite], given.bfloat16()[finite])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="pass dtype="):
        fv.VarStore.from_module(nn.Linear(2, 2), values="split")
    with pytest.raises(ValueError, match="is no format"):
        fv.VarStore(dtype=torch.bfloat16, values="halved")  # type: ignore[arg-type]
    with pytest.raises(fv.FlatvarsError, match="no other process would see"):
        split(nn.Linear(2, 2)).share_memory_()
