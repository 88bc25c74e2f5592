"""A GradScaler's scale and verdict inside the launches: gradients divided, steps left out, nothing read back."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from tests.support.host_sync import no_host_sync
from tests.support.launches import count_launches
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.stepping import check_step
from tests.support.stores import set_grads, store_of
from tests.support.tolerances import assert_close, assert_same_bits

SHAPES = [(20,), (2060,), (3, 5)]
NORM, STEP = "accumulate_kernel", "step_kernel"


def rigs(case, dtype, device):
    """Two rigs of the same values and states."""
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(Rig(SHAPES, dtype, rule=case.rule, device=device))
    return made


@pytest.mark.parametrize(
    ("name", "dtype", "max_norm"),
    [
        ("momentum", torch.float32, None),
        ("adamw", torch.float32, 0.5),
        ("adamw", torch.float16, 0.5),
        ("adamw", torch.float64, None),
    ],
    ids=str,
)
def test_a_scaled_step_is_the_plain_one(name, dtype, max_norm, device):
    """A power of two changes no rounding, so not a bit differs."""
    case = CASES[name]
    plain, scaled = rigs(case, dtype, device)
    scale = torch.tensor(1024.0, device=device)
    for _ in range(2):
        grads = [grad * 0.25 for grad in plain.random_grads()]
        plain.step(grads, [case.group], max_norm=max_norm)
        options = {"grad_scale": scale, "found_inf": torch.zeros((), device=device)}
        scaled.step([grad * 1024.0 for grad in grads], [case.group], max_norm=max_norm, **options)
    for ours, expected in zip(scaled.snapshot(), plain.snapshot(), strict=True):
        assert_same_bits(ours, expected)
    scaled.assert_clean()


def test_any_scale(device):
    case = CASES["adamw"]
    plain, scaled = rigs(case, torch.float32, device)
    grads = plain.random_grads()
    check_step(plain, grads, [case], max_norm=0.5)
    scaled.step([g * 3e3 for g in grads], [case.group], max_norm=0.5, grad_scale=torch.tensor(3e3, device=device))
    assert_close(scaled.norm, plain.norm.double().cpu())
    for ours, expected in zip(scaled.spans(scaled.values.stream), plain.copies(plain.values.stream), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("skip", [False, True])
def test_what_the_scaler_found_skips(skip, device):
    case = CASES["adamw"]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    check_step(rig, rig.random_grads(), [case])
    before = rig.snapshot()
    rig.step(rig.random_grads(), [case.group], skip=skip, found_inf=torch.ones((), device=device))
    for kept, now in zip(before[:-1], rig.snapshot()[:-1], strict=True):
        assert_same_bits(now, kept)
    assert rig.skipped.item() == 1


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=["plain", "clip"])
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_launches_and_no_synchronization(options, device):
    """Also under a scaler: one launch, two with clipping, and no other operator."""
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, **options)
    set_grads(store, 8.0)
    optimizer.grad_scale = torch.tensor(8.0, device=device)
    optimizer.found_inf = torch.zeros((), device=device)
    optimizer.step()
    with count_launches() as launches, no_host_sync():
        optimizer.step()
    assert launches.kernels == ([NORM, STEP] if options else [STEP])
    assert launches.operators == []
