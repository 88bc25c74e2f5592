"""The value of an element depends on (seed, name, index) alone: whatever else changes, bits stay."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import flatvars as fv
from flatvars.init import Initializer
from flatvars.init.fills import Target, fill_
from flatvars.memory.layout import plan_layout
from flatvars.memory.spec import VarSpec, contiguous_stride
from tests.support.tolerances import assert_same_bits

SHAPES: dict[str, tuple[int, ...]] = {
    "a.weight": (33, 7),
    "a.bias": (33,),
    "b": (),
    "c.kernel": (4, 3, 5, 2),
    "d": (1030,),
}
INITIALIZERS: dict[str, Initializer] = {
    "uniform": fv.init.uniform(-1.0, 3.0),
    "normal": fv.init.normal(0.5, 2.0),
    "trunc_normal": fv.init.trunc_normal(0.1, 1.0, -0.5, 2.0),
    "kaiming": fv.init.kaiming_normal(),
}
each_initializer = pytest.mark.parametrize("initializer", INITIALIZERS.values(), ids=INITIALIZERS)


def lay_out(
    initializer: Initializer,
    order: list[str],
    *,
    dtype: torch.dtype = torch.float32,
    alignment: int = 128,
    trainable: frozenset[str] = frozenset(SHAPES),
    seed: int = 9,
) -> dict[str, Tensor]:
    """Values of all variables after one fill of a layout."""
    specs = [VarSpec(name, SHAPES[name], dtype, has_room=name in trainable) for name in order]
    layout = plan_layout(specs, alignment)
    stream = torch.zeros(layout.region_of[dtype].numel, dtype=dtype)
    targets = [Target(s.spec.name, initializer, stream, s.offset, s.spec.shape, s.spec.stride) for s in layout.spans]
    fill_(targets, seed)
    return {target.name: target.view().clone() for target in targets}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in actual:
        assert_same_bits(actual[name], expected[name])


@pytest.mark.row("J-10")
@pytest.mark.row("J-15")
@each_initializer
def test_creation_order(initializer: Initializer) -> None:
    expected = lay_out(initializer, list(SHAPES))
    assert_same(lay_out(initializer, list(reversed(SHAPES))), expected)


@pytest.mark.row("J-10")
@pytest.mark.row("J-15")
@each_initializer
def test_other_variables(initializer: Initializer) -> None:
    """Adding a layer elsewhere changes no other."""
    expected = lay_out(initializer, list(SHAPES))
    assert_same(lay_out(initializer, ["a.weight", "d"]), expected)


@pytest.mark.row("J-15")
@pytest.mark.parametrize("alignment", [16, 64, 4096])
@each_initializer
def test_alignment(initializer: Initializer, alignment: int) -> None:
    assert_same(lay_out(initializer, list(SHAPES), alignment=alignment), lay_out(initializer, list(SHAPES)))


@pytest.mark.row("J-15")
@each_initializer
def test_masks(initializer: Initializer) -> None:
    """Frozen variables lie behind the others."""
    expected = lay_out(initializer, list(SHAPES))
    assert_same(lay_out(initializer, list(SHAPES), trainable=frozenset({"d"})), expected)


@pytest.mark.row("J-15")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_initializer
def test_dtype(initializer: Initializer, dtype: torch.dtype) -> None:
    """The same float32, rounded to nearest even last, or widened."""
    expected = {name: value.to(dtype) for name, value in lay_out(initializer, list(SHAPES)).items()}
    assert_same(lay_out(initializer, list(SHAPES), dtype=dtype), expected)


@pytest.mark.row("J-15")
@pytest.mark.parametrize("inference", [False, True])
@each_initializer
def test_threads(initializer: Initializer, inference: bool) -> None:
    expected = lay_out(initializer, list(SHAPES))
    """Which thread makes which tile is no part of a value."""
    with patch("flatvars.kernels.cpu.threads.threads_for", return_value=(3, False)), torch.inference_mode(inference):
        assert_same(lay_out(initializer, list(SHAPES)), expected)


@pytest.mark.row("J-15")
@pytest.mark.parametrize(
    "stride", [(30, 1, 6, 3), (1, 4, 12, 60), (10, 40, 2, 1)], ids=["channels-last", "reversed", "swap"]
)
@pytest.mark.parametrize("initializer", [*INITIALIZERS.values(), fv.init.dirac()], ids=[*INITIALIZERS, "dirac"])
def test_memory_order(initializer: Initializer, stride: tuple[int, ...]) -> None:
    shape = SHAPES["c.kernel"]
    streams = [torch.full((160,), 7.0) for _ in range(2)]
    for stream, order in zip(streams, (stride, contiguous_stride(shape)), strict=True):
        fill_([Target("c.kernel", initializer, stream, 16, shape, order)], 3)
    assert_same_bits(streams[0].as_strided(shape, stride, 16), streams[1][16:136].view(shape))
    assert streams[0][:16].tolist() + streams[0][136:].tolist() == [7.0] * 40


@pytest.mark.row("J-11")
@pytest.mark.row("J-12")
@pytest.mark.parametrize("name", INITIALIZERS)
@given(cuts=st.lists(st.integers(0, 1030), max_size=5), offset=st.integers(0, 40))
def test_shards(name: str, cuts: list[int], offset: int) -> None:
    """Each rank fills its stretch by the index in the whole variable; together they are the whole."""
    initializer = INITIALIZERS[name]
    whole = fv.init.tensor(initializer, (103, 10), "w", seed=2)
    bounds = [0, *sorted(cuts), 1030]
    for first, stop in itertools.pairwise(bounds):
        stream = torch.full((offset + stop - first + 3,), 7.0)
        fill_([Target("w", initializer, stream, offset, (103, 10), (10, 1), first, stop - first)], 2)
        assert torch.equal(stream[offset : len(stream) - 3], whole.view(-1)[first:stop])
        assert stream[:offset].tolist() + stream[-3:].tolist() == [7.0] * (offset + 3)


@pytest.mark.row("J-11")
@pytest.mark.parametrize("initializer", [fv.init.eye(), fv.init.constant(2.0)], ids=["eye", "constant"])
def test_shards_of_patterns(initializer: Initializer) -> None:
    whole = fv.init.tensor(initializer, (9, 7), "w").view(-1)
    stream = torch.full((40,), 7.0)
    fill_([Target("w", initializer, stream, 5, (9, 7), (7, 1), 20, 30)], 0)
    assert torch.equal(stream[5:35], whole[20:50])
    assert stream[:5].tolist() + stream[35:].tolist() == [7.0] * 10


@pytest.mark.row("J-13")
@pytest.mark.parametrize("initializer", list(INITIALIZERS.values())[:3], ids=list(INITIALIZERS)[:3])
def test_length(initializer: Initializer) -> None:
    """A longer variable begins with the values of a shorter one of its name: on CUDA, torch's do not."""
    short, long = (fv.init.tensor(initializer, (n,), "w") for n in (100, 5000))
    assert_same_bits(long[:100].clone(), short)


@pytest.mark.row("J-11")
def test_seeds_and_names_give_other_values() -> None:
    values = [
        fv.init.tensor(fv.init.uniform(), (64,), name, seed=s) for name in ("v", "w") for s in (0, 1, 2**32, 2**63)
    ]
    assert len({tuple(value.tolist()) for value in values}) == 8
    joined = torch.stack(values).double()
    assert torch.corrcoef(joined).fill_diagonal_(0.0).abs().max() < 0.5


@pytest.mark.row("J-10")
def test_modules_with_another_layer_elsewhere() -> None:
    rules = {"*": fv.init.normal()}
    models = [nn.ModuleDict({"extra": nn.Linear(3, 3)}) if extra else nn.ModuleDict() for extra in (False, True)]
    stores = []
    for model in models:
        model["head"] = nn.Linear(6, 5)
        stores.append(fv.VarStore.from_module(model, seed=4))
        fv.init.apply_(model, rules)
    assert_same_bits(stores[0]["head.weight"].value, stores[1]["head.weight"].value)
