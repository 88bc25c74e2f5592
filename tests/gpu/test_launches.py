"""What one step launches, as the profiler sees it: kernels, copies and all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import flatvars as fv
from tests.support.launches import count_launches
from tests.support.stores import set_grads, store_of

# Which of its remarks the profiler makes depends on torch's version.
pytestmark = pytest.mark.filterwarnings("ignore:.*[Pp]rofiler:UserWarning")


def device_work(call: Callable[[], object]) -> list[str]:
    """Names of all kernels and copies on the device while `call` ran, once warm."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # `Optimizer.step` marks itself, and the mark is shown on the device's track as well.
    return [event.name for event in on_device if "#" not in event.name]


def groups_of(store, count):
    names = list(store)
    return [{"params": names[i::count], "lr": 0.01 * (i + 1)} for i in range(count)]


def test_the_profiler_sees_a_kernel(device):
    x = torch.ones(10, device=device)
    assert len(device_work(lambda: x.mul_(2.0))) == 1


@pytest.mark.parametrize(("variables", "groups"), [(1, 1), (1000, 1), (200, 10)])
@pytest.mark.parametrize(
    ("options", "launches"),
    [({}, 1), ({"max_norm": 1.0}, 2), ({"skip_nonfinite": True}, 2)],
    ids=["plain", "clip", "skip"],
)
def test_step(options, launches, variables, groups, device):
    store = store_of([(3, 1 + i % 4) for i in range(variables)], device=device)
    optimizer = fv.optim.AdamW(groups_of(store, groups), store=store, **options)
    set_grads(store)
    assert len(device_work(optimizer.step)) == launches


def test_accumulate_clip_and_step(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    grads = set_grads(store)

    def cycle():
        store.accumulate(grads)
        optimizer.step()

    assert len(device_work(cycle)) == 2


def test_counter_and_profiler_agree(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    set_grads(store)
    names = device_work(optimizer.step)
    with count_launches() as launches:
        optimizer.step()
    assert launches.kernels == [name for name in names if name.endswith("_kernel")]
    assert launches.operators == []


def test_zero_grad_is_free(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store)
    set_grads(store)
    optimizer.step()
    assert device_work(optimizer.zero_grad) == []
