"""How much is sent to the device to initialize a module: one table and one launch per dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.backend import use_backend
from tests.support.launches import count_launches
from tests.support.stores import store_of

RULES = {"*.bias": fv.init.zeros(), "*": fv.init.kaiming_uniform()}


@pytest.fixture(autouse=True)
def backend():
    """Triton's launches are what is counted here."""
    with use_backend("triton"):
        yield "triton"


def meta_layers(count, dtypes=(torch.float32,)):
    with torch.device("meta"):
        return nn.Sequential(*[nn.Linear(3, 2, dtype=dtypes[i % len(dtypes)]) for i in range(count)])


def copies(launches):
    return [name for name in launches.operators if "copy" in name]


@pytest.mark.parametrize("variables", [1, 12])
def test_apply_is_one_launch_and_one_copy(variables, device):
    store = store_of([(3, i + 1) for i in range(variables)], device=device)
    store.check()  # what was added is carved by the first look at it
    with count_launches() as launches:
        fv.init.apply_(store, {"v0": fv.init.normal(), "*": fv.init.xavier_uniform()})
    assert launches.kernels == ["fill_kernel"]
    assert copies(launches) == ["copy_"]


def test_regions_are_launched_one_by_one(device):
    store = store_of(dtypes=(torch.float32, torch.bfloat16), device=device)
    store.check()  # what was added is carved by the first look at it
    with count_launches() as launches:
        fv.init.apply_(store, {"*": fv.init.normal()})
    assert launches.kernels == ["fill_kernel", "fill_kernel"]


def test_orthogonal_and_sparse_need_more(device):
    """One launch for all others and for the normals of the sparse one; one for the normals of each orthogonal one."""
    store = store_of([(3, 4), (4, 3), (5, 2), (7,)], device=device)
    store.check()  # what was added is carved by the first look at it
    with count_launches() as launches:
        fv.init.apply_(store, {"v0": fv.init.orthogonal(), "v1": fv.init.sparse(0.5), "*": fv.init.normal()})
    assert launches.kernels == ["fill_kernel", "fill_kernel"]


def test_a_module_from_meta_is_one_launch_per_region(device):
    module = meta_layers(10, (torch.float32, torch.bfloat16))
    with count_launches() as launches:
        store = fv.VarStore.from_module(module, device, init=RULES, seed=4)
    assert launches.kernels == ["fill_kernel", "fill_kernel"]
    expected = fv.init.tensor(RULES["*"], (2, 3), "8.weight", seed=4, device=device)
    assert torch.equal(module[8].weight, expected)
    store.check()


@pytest.mark.row("J-15")
def test_backends_agree_through_the_library(device):
    if device.type != "cpu":
        pytest.skip("the cpu backend works on host memory; tests/gpu compares both devices")
    stores = []
    for backend in ("triton", "cpu"):
        with use_backend(backend):
            stores.append(fv.VarStore.from_module(meta_layers(6), init=RULES, seed=7))
    assert torch.equal(stores[0].values, stores[1].values)
