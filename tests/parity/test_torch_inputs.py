"""torch's own inputs for the tests of its optimizers: every class that flatvars has steps as torch's does with each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import optim_db

import flatvars as fv
from tests.support.models import Bag

from .pairs import TOLERANCES, Pair

STEPS = 6
SHAPES = {"matrix": (33, 5), "row": (130,), "scalar": (), "none": (0,)}

# What flatvars leaves to torch, and why.
LEFT = {
    "LBFGS": "a closure of one group",
    "SparseAdam": "sparse gradients alone",
    "Muon": "matrices, with tests of their own",
}
# torch keeps a scalar of these in float32.
FLOAT32_SCALARS = ("NAdam", "ASGD")
INFOS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ not in LEFT}


def inputs_of(info: Any) -> list[Any]:
    return info.optim_inputs_func(device="cpu")


CASES = [
    pytest.param(name, number, id=f"{name}-{one.desc.replace(' ', '-')}")
    for name, info in INFOS.items()
    for number, one in enumerate(inputs_of(info))
]


def test_no_class_of_torch_is_forgotten() -> None:
    assert {name for name in INFOS if not hasattr(fv.optim, name)} == set()


def run(name: str, number: int, dtype: torch.dtype, foreach: bool) -> Pair:
    """Six steps of both, under a schedule, with gradients that are zero or not there in some steps."""
    kwargs = inputs_of(INFOS[name])[number].kwargs
    kwargs = {key: value for key, value in kwargs.items() if key not in ("foreach", "fused", "capturable")}
    # torch's Adafactor divides by the number of elements.
    shapes = {key: shape for key, shape in SHAPES.items() if name != "Adafactor" or key != "none"}
    pair = Pair.of(Bag(shapes, [dtype]))
    flags = {"foreach": foreach} if "foreach" in INFOS[name].optim_cls.__init__.__annotations__ else {}
    pair.opt = getattr(fv.optim, name)(pair.store, **copy.deepcopy(kwargs))
    pair.ref = getattr(torch.optim, name)(pair.theirs.parameters(), **copy.deepcopy(kwargs), **flags)
    generator = torch.Generator().manual_seed(5)
    for step in range(STEPS):
        pair.zero_grad()
        pair.backward(generator, {"row"} if step == 2 else ())
        if step == 3:
            for module in (pair.ours, pair.theirs):
                module.get_parameter("matrix").grad.zero_()
        pair.step()
        for optimizer in (pair.opt, pair.ref):
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.7
    return pair


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize(("name", "number"), CASES)
def test_float32_follows_torch(name: str, number: int, foreach: bool) -> None:
    pair = run(name, number, torch.float32, foreach)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize(("name", "number"), CASES)
def test_float64_follows_torch(name: str, number: int) -> None:
    pair = run(name, number, torch.float64, False)
    bound = TOLERANCES[torch.float32] if name in FLOAT32_SCALARS else None
    pair.assert_values_close(bound)
    pair.assert_states_close(bound)
