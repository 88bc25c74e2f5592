"""How many kernels one optimizer step is, whatever the number of variables and groups; on a GPU the profiler agrees."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from flatvars.backend import use_backend
from tests.parity.pairs import OPTIMIZERS
from tests.support.launches import count_launches, device_work
from tests.support.stores import set_grads, store_of

from .conftest import ON_GPU

NORM, STEP = "accumulate_kernel", "step_kernel"
# The interpreter takes milliseconds for each variable.
COUNTS = [(1, 1), (9, 3), *([(1000, 1), (200, 10)] if ON_GPU else [])]
# Which of its remarks the profiler makes depends on torch's version.
pytestmark = pytest.mark.filterwarnings("ignore:.*[Pp]rofiler:UserWarning")


@pytest.fixture(autouse=True)
def backend():
    """Triton's launches are what is counted here."""
    with use_backend("triton"):
        yield "triton"


def launches_of(call):
    """The launches of a call once everything is made: the first step lays out tables."""
    call()
    with count_launches() as launches:
        call()
    if ON_GPU:
        names = device_work(call)
        assert [name for name in names if name.endswith("_kernel")] == launches.kernels
        assert len(names) == len(launches.kernels) or launches.operators
    return launches


def groups_of(store, count):
    names = list(store)
    return [{"params": names[i::count], "lr": 0.01 * (i + 1)} for i in range(count)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_of_every_optimizer(name, device):
    """Clipped, as what is not takes the same step without the first launch."""
    store = store_of([(3, 1), (4,)], device=device)
    kind, _, arguments = OPTIMIZERS[name]
    optimizer = kind(groups_of(store, 2), store=store, max_norm=1.0, **arguments)
    set_grads(store)
    launches = launches_of(optimizer.step)
    assert launches.kernels == [NORM, STEP]
    assert launches.operators == []


@pytest.mark.parametrize(
    "make",
    [
        fv.optim.StableAdamW,
        fv.optim.LAMB,
        fv.optim.LARS,
        fv.optim.MARS,
        lambda params, **options: fv.optim.AdamW(params, cautious=True, **options),
    ],
    ids=["stable-adamw", "lamb", "lars", "mars", "cautious"],
)
@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["plain", "clip"])
def test_statistics_are_one_launch_more(make, max_norm, device):
    store = store_of([(3, 1), (4,)], device=device)
    optimizer = make(groups_of(store, 2), store=store, max_norm=max_norm)
    set_grads(store)
    launches = launches_of(optimizer.step)
    assert launches.kernels == [*([] if max_norm is None else [NORM]), "statistics_kernel", STEP]
    assert launches.operators == []


def test_numbers_of_variables_take_no_launch(device):
    store = store_of([(3, i % 4) for i in range(5)], device=device)
    optimizer = fv.optim.AdamW(groups_of(store, 2), store=store, stats=True)
    set_grads(store)
    launches = launches_of(optimizer.step)
    assert (launches.kernels, launches.operators) == ([STEP], [])
    assert not bool(optimizer.stats().update_ratio[1:].isnan().all())


@pytest.mark.parametrize("make", [fv.optim.AdamW, fv.optim.SGD, fv.optim.LAMB], ids=["adamw", "sgd", "lamb"])
def test_an_average_takes_no_launch_in_a_step_and_one_to_be_exchanged(make, device):
    store = store_of([(3, 1), (4,)], device=device)
    optimizer = make(groups_of(store, 2), store=store)
    set_grads(store)
    before = launches_of(optimizer.step)
    ema = fv.EMA(optimizer)
    assert launches_of(optimizer.step).kernels == before.kernels
    with ema.swapped():
        pass
    with count_launches() as launches, ema.swapped():
        assert launches.kernels == [STEP]
    assert launches.kernels == [STEP, STEP]


@pytest.mark.parametrize(("variables", "groups"), COUNTS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [STEP]), ({"max_norm": 1.0}, [NORM, STEP]), ({"skip_nonfinite": True}, [NORM, STEP])],
    ids=["plain", "clip", "skip"],
)
def test_step(options, expected, variables, groups, device):
    store = store_of([(3, i % 4) for i in range(variables)], device=device)
    optimizer = fv.optim.AdamW(groups_of(store, groups), store=store, **options)
    set_grads(store)
    launches = launches_of(optimizer.step)
    assert launches.kernels == expected
    assert launches.operators == []


@pytest.mark.parametrize("make", [fv.optim.SGD, fv.optim.Adam, fv.optim.Lion])
def test_every_optimizer_is_one_launch(make, device):
    store = store_of(device=device)
    optimizer = make(store)
    set_grads(store)
    assert launches_of(optimizer.step).kernels == [STEP]


def test_accumulate_and_clipped_step(device):
    """The norm is taken while gradients are gathered: no launch of its own."""
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    grads = set_grads(store)

    def cycle():
        store.accumulate(grads)
        optimizer.step()

    cycle()
    launches = launches_of(cycle)
    assert launches.kernels == [NORM, STEP]
    assert launches.operators == []


def test_views_mode(device):
    """Autograd adds into the stream; nothing is gathered, and nothing copied."""
    store = store_of(device=device, grads="views")
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    store.zero_grad()
    for variable in store.trainable_variables():
        variable.param.grad.add_(1.0)
    launches = launches_of(optimizer.step)
    assert launches.kernels == [NORM, STEP]
    assert launches.operators == []


def some_masks(store):
    store.set_trainable_mask("v0", torch.tensor([[True], [False]] * 3 + [[True]], device=store.device))
    store.set_trainable_mask("v3", torch.arange(33, device=store.device) % 2 == 0)


@pytest.mark.parametrize(
    ("options", "expected"), [({}, [STEP]), ({"max_norm": 1.0, "skip_nonfinite": True}, [NORM, STEP])]
)
def test_a_masked_step(options, expected, device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, **options)
    some_masks(store)
    set_grads(store)
    launches = launches_of(optimizer.step)
    assert launches.kernels == expected
    assert launches.operators == []


def test_masked_accumulation(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    some_masks(store)
    grads = set_grads(store)

    def cycle():
        store.accumulate(grads)
        optimizer.step()

    cycle()
    launches = launches_of(cycle)
    assert launches.kernels == [NORM, STEP]
    assert launches.operators == []


def test_zero_grad_is_free(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store)
    set_grads(store)
    launches = launches_of(optimizer.zero_grad)
    assert launches.kernels == []
    assert launches.operators == []


def test_regions_are_launched_one_by_one(device):
    store = store_of(dtypes=(torch.float32, torch.bfloat16), device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    set_grads(store)
    assert launches_of(optimizer.step).kernels == [NORM, NORM, STEP, STEP]


def test_variable_norms_are_one_launch(device):
    store = store_of(device=device)
    set_grads(store)
    assert launches_of(store.norms).kernels == ["variable_norms_kernel"]


def test_a_changed_learning_rate_is_one_copy(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store)
    set_grads(store)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    with count_launches() as launches:
        optimizer.step()
    assert launches.kernels == [STEP]
    assert [name for name in launches.operators if "copy" in name] == ["copy_"]


@pytest.mark.skipif(not ON_GPU, reason="the profiler looks at a GPU")
def test_the_profiler_sees_a_kernel(device):
    x = torch.ones(10, device=device)
    assert len(device_work(lambda: x.mul_(2.0))) == 1


def test_the_counter_sees_operators(device):
    with count_launches() as launches:
        torch.ones(3, device=device).mul_(2.0)
    assert "mul_" in launches.operators
