"""Everything that may be done to a store and its optimizer, in every storage format: a run goes on bit for bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import flatvars as fv

SMALLEST = {"exp_avg": "root8", "exp_avg_sq": "log4"}
HALF = {"state_dtype": torch.bfloat16}
FORMATS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "root8": (None, {"state_format": "root8"}),
    "split": ("split", {}),
    "split, log4": ("split", {"state_format": SMALLEST}),
    "corrected, bfloat16": ("corrected", HALF),
    "corrected, log4": ("corrected", {"state_format": SMALLEST}),
    "stochastic": ("stochastic", {}),
    "stochastic, root8": ("stochastic", {"state_format": "root8"}),
}
"""Values, and arguments of AdamW."""


class Run(NamedTuple):
    """What is trained."""

    module: nn.Module
    store: Any
    optimizer: Any
    ema: Any

    @classmethod
    def new(cls, name: str) -> Run:
        values, options = FORMATS[name]
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = nn.Sequential(conv, nn.Flatten(), nn.Linear(37, 9), nn.BatchNorm1d(9))
        dtype = None if values is None else torch.bfloat16
        store = fv.VarStore.from_module(module, dtype=dtype, values=values, seed=3)  # type: ignore[arg-type]
        store.set_trainable_mask("2.weight", torch.arange(37) % 3 > 0)
        optimizer = fv.optim.AdamW(store, lr=0.01, **options)
        return cls(module, store, optimizer, fv.EMA(optimizer, decay=0.5))

    def train(self, *steps: int) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for param in self.module.parameters():
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            self.optimizer.step()

    def numbers(self) -> list[torch.Tensor]:
        """Values, states and averages, as they are shown."""
        found = [self.store.float32(name) for name, v in self.store.variables().items() if v.dtype.is_floating_point]
        for param in self.module.parameters():
            found += [self.optimizer.state[param][state].clone() for state in SMALLEST]
            found.append(self.ema[param].clone())
        return found


def through_a_file(run: Run, name: str, folder: Path) -> Run:
    run.store.save(folder / "run.safetensors", run.optimizer)
    other = Run.new(name)
    other.store.load(folder / "run.safetensors", other.optimizer, dtype="file")
    return other


def through_state_dicts(run: Run, name: str, folder: Path) -> Run:
    other = Run.new(name)
    other.store.copy_(run.store)
    other.optimizer.load_state_dict(run.optimizer.state_dict())
    return other


def through_a_snapshot(run: Run, name: str, folder: Path) -> Run:
    snapshot = run.store.snapshot(run.optimizer)
    run.train(99)
    run.store.restore(snapshot)
    return run


def carved_anew(run: Run, name: str, folder: Path) -> Run:
    """Grown, in front and behind; frozen and back; sent to a device."""
    dtype = next(run.module.parameters()).dtype
    added = [run.store.add(f"later{i}", torch.ones(300, dtype=dtype)) for i in range(2)]
    run.store.freeze("later0")
    run.store.to("cpu").unfreeze("later0")
    assert all(bool((param == 1.0).all()) for param in added)
    run.store.remove("later*")
    return run


def read_and_written(run: Run, name: str, folder: Path) -> Run:
    """As one vector, by name, and as an average with itself."""
    for key, tensor in run.store.unravel(run.store.ravel()).items():
        run.store.write(key, tensor)
    return Run(run.module, run.store.lerp_(run.store.clone(), 0.25), run.optimizer, run.ema)


def with_averages_swapped(run: Run, name: str, folder: Path) -> Run:
    before = run.store.float32("2.weight")
    with run.ema.swapped():
        assert not torch.equal(run.store.float32("2.weight"), before)
    return run


def deepcopied(run: Run, name: str, folder: Path) -> Run:
    return copy.deepcopy(run)


def pickled(run: Run, name: str, folder: Path) -> Run:
    return pickle.loads(pickle.dumps(run))


WAYS = [
    through_a_file,
    through_state_dicts,
    through_a_snapshot,
    carved_anew,
    read_and_written,
    with_averages_swapped,
    deepcopied,
    pickled,
]


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Beside one that nothing is done to, with a mask and an average; what is masked stays."""
    run, other = Run.new(name), Run.new(name)
    start = other.store.float32("2.weight")
    for run_ in (run, other):
        run_.train(0, 1)
    for step, way in enumerate(WAYS):
        other = way(other, name, tmp_path)
        for run_ in (run, other):
            run_.train(2 + step)
        assert all(map(torch.equal, run.numbers(), other.numbers())), way.__name__
    moved = other.store.float32("2.weight") != start
    assert torch.equal(moved.any(0), torch.arange(37) % 3 > 0)
