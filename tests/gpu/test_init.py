"""Initialization on a GPU: the CPU's values, in one launch, also beyond 2^31 elements."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.init.fills import Target, fill_
from tests.support.launches import count_launches, device_work
from tests.support.tolerances import assert_same_bits

INITIALIZERS = {
    "uniform": fv.init.uniform(-1.0, 3.0),
    "normal": fv.init.normal(0.5, 2.0),
    "trunc_normal": fv.init.trunc_normal(std=0.7),
    "kaiming": fv.init.kaiming_uniform(),
    "sparse": fv.init.sparse(0.3),
    "eye": fv.init.eye(),
    "constant": fv.init.constant(0.1),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def layers(count):
    with torch.device("meta"):
        return nn.Sequential(
            *[nn.Linear(64, 64, dtype=torch.bfloat16 if i % 2 else torch.float32) for i in range(count)]
        )


@pytest.mark.row("J-15")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("initializer", INITIALIZERS.values(), ids=INITIALIZERS)
def test_values_are_the_cpus(initializer, dtype, device):
    """Bit by bit: every operation of a value is a single IEEE operation on both."""
    on_gpu, on_cpu = (
        fv.init.tensor(initializer, (999, 301), "w", seed=3, dtype=dtype, device=d) for d in (device, None)
    )
    assert_same_bits(on_gpu, on_cpu)


def test_orthogonal(device):
    on_gpu, on_cpu = (fv.init.tensor(fv.init.orthogonal(), (64, 200), "w", device=d) for d in (device, None))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-5)
    torch.testing.assert_close((on_gpu @ on_gpu.T).cpu(), torch.eye(64), rtol=0, atol=1e-5)


def test_a_thousand_layers_are_one_launch_per_region(device):
    rules = {"*.bias": fv.init.zeros(), "*": fv.init.kaiming_uniform()}
    module = layers(1000)
    with count_launches() as launches:
        store = fv.VarStore.from_module(module, device, init=rules, seed=5)
    assert launches.kernels == ["fill_kernel", "fill_kernel"]
    twin = layers(1000)
    fv.VarStore.from_module(twin, "cpu", init=rules, seed=5)
    for param, expected in zip(module.parameters(), twin.parameters(), strict=True):
        assert_same_bits(param, expected)
    store.check()


def test_the_profiler_sees_a_copy_and_a_kernel(device):
    module = nn.Sequential(*[nn.Linear(16, 16) for _ in range(100)]).to(device)
    fv.VarStore.from_module(module)
    names = device_work(lambda: fv.init.apply_(module, {"*": fv.init.normal()}))
    assert [name for name in names if name.endswith("_kernel")] == ["fill_kernel"]
    assert len(names) == 2


@pytest.mark.slow
def test_beyond_2_to_the_31_elements(alone, device):
    numel = 2**31 + 5000
    stream = torch.zeros(numel + 16, dtype=torch.bfloat16, device=device)
    fill_([Target("w", fv.init.normal(), stream, 16, (numel,), (1,))], 1)
    for first in (0, 2**31 - 100, numel - 100):
        expected = torch.zeros(100, dtype=torch.bfloat16)
        fill_([Target("w", fv.init.normal(), expected, 0, (numel,), (1,), first, 100)], 1)
        assert_same_bits(stream[16 + first : 116 + first].clone(), expected)
    assert not stream[:16].any()
