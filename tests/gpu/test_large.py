"""Variables beyond 2^31 elements: a 32-bit offset would wrap, and write somewhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import flatvars as fv
from tests.support import reference
from tests.support.rules import adam_group
from tests.support.tolerances import assert_close

NUMEL = 2_200_000_000
BOUNDARY = 2**31
# Windows to look at: the start, both sides of 2^31 elements and of 2^31 bytes, the ragged end.
WINDOW = 64
STARTS = [0, 2**30 - WINDOW // 2, BOUNDARY - WINDOW // 2, BOUNDARY + 5 * 2048, NUMEL - WINDOW]
# Values, gradient and two states in bfloat16, and room for torch to fill them.
BYTES = NUMEL * 2 * 4 + 4 * 2**30


@pytest.fixture
def store(alone: None, device: torch.device) -> Iterator[fv.VarStore]:
    free, _ = torch.cuda.mem_get_info(device)
    if free < BYTES:
        pytest.skip(f"{BYTES / 2**30:.0f} GiB of GPU memory are needed, {free / 2**30:.0f} are free")
    store = fv.VarStore(device, dtype=torch.bfloat16)
    store.add("large", torch.empty(NUMEL, dtype=torch.bfloat16, device=device))
    store["large"].value.normal_()
    yield store
    store["large"].param.grad = None


def windows(tensor):
    return [tensor[start : start + WINDOW].double().cpu() for start in STARTS]


@pytest.mark.slow
def test_adamw_step(store, device):
    variable = store["large"]
    before = windows(variable.value)
    gradient = torch.empty(NUMEL, dtype=torch.bfloat16, device=device).normal_()
    variable.param.grad = gradient
    optimizer = fv.optim.AdamW(store, lr=0.01, weight_decay=0.1)
    optimizer.step()
    zeros = (torch.zeros(WINDOW, dtype=torch.float64),) * 2
    after, gradients = windows(variable.value), windows(gradient)
    state = optimizer.state[variable.param]
    averages = windows(state["exp_avg"]), windows(state["exp_avg_sq"])
    for i, (value, grad) in enumerate(zip(before, gradients, strict=True)):
        expected, (m, v) = reference.adamw(value, grad, zeros, adam_group(weight_decay=0.1), 1)
        assert_close(after[i].bfloat16(), expected)
        assert_close(averages[0][i].bfloat16(), m)
        assert_close(averages[1][i].bfloat16(), v)
    assert state["step"].item() == 1
    store.check()


@pytest.mark.slow
def test_norm_sees_both_sides_of_the_boundary(store, device):
    gradient = torch.zeros(NUMEL, dtype=torch.bfloat16, device=device)
    store["large"].param.grad = gradient
    for index, value in ((0, 3.0), (BOUNDARY - 1, 4.0), (BOUNDARY, 12.0), (NUMEL - 1, 84.0)):
        gradient[index] = value
    assert store.grad_norm().item() == 85.0
    assert store.norms()["large"][1].item() == 85.0
    assert store.grad_norm(1.0).item() == 103.0


@pytest.mark.slow
def test_second_variable_beyond_the_boundary(store, device):
    """Its offset in the region, not its length, passes 2^31."""
    store["large"].param.requires_grad_(False)
    small = store.add("small", torch.ones(100, dtype=torch.bfloat16, device=device))
    kept = windows(store["large"].value)
    small.grad = torch.full((100,), 2.0, dtype=torch.bfloat16, device=device)
    fv.optim.SGD(store, lr=0.25).step()
    assert small.tolist() == [0.5] * 100
    for now, before in zip(windows(store["large"].value), kept, strict=True):
        assert torch.equal(now, before)
