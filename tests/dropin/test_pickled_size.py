"""What pickle and torch.save write of models, stores and optimizers: each value once, and plain torch."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.integration.training import adopted, backward


def saved_bytes(item: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(item, buffer)
    return buffer.getvalue()


@pytest.mark.row("P-A-12")
@pytest.mark.parametrize("dump", [pickle.dumps, saved_bytes], ids=["pickle", "file"])
def test_the_buffer_is_written_once(dump: Callable[[Any], bytes]) -> None:
    """A view drags its buffer along: 20 layers and their statistics would be 40 times too large."""
    make = lambda: nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32)) for _ in range(10)))  # noqa: E731
    plain, module = make(), make()
    size = len(dump(plain))
    store = fv.VarStore.from_module(module, buffers=True)
    opt = fv.optim.Adam(store)
    store.accumulate({name: torch.ones_like(v.value) for name, v in store.variables().items() if v.requires_grad})
    opt.step()
    values_alone = store.numel * 4
    # Each tensor has a record of its own: 64 bytes of alignment and some hundred of description.
    records = 1000 * len(store)
    assert len(dump(module)) < 1.1 * size
    assert len(dump(module[0][0].weight)) < 32 * 32 * 4 + 2000
    assert len(dump(store)) < values_alone + records
    assert len(dump((module, store))) < size + 2 * records
    assert len(dump((module, store, opt))) < 3 * values_alone + 5 * records


@pytest.mark.row("P-A-12")
@pytest.mark.parametrize("dump", [pickle.dumps, saved_bytes], ids=["pickle", "file"])
def test_state_dicts_are_written_once(dump: Callable[[Any], bytes]) -> None:
    module = nn.Sequential(*(nn.Linear(32, 32) for _ in range(10)))
    opt = fv.optim.Adam(fv.VarStore.from_module(module))
    backward(module, 32)
    opt.step()
    whole = 10 * (32 * 32 + 32) * 4
    assert len(dump(module.state_dict())) < 1.2 * whole
    assert len(dump(opt.state_dict())) < 1.5 * 2 * whole  # and a step count for each
    assert len(dump(module[0].bias)) < 32 * 4 + 2000


@pytest.mark.row("P-A-12")
def test_a_pickled_module_needs_no_flatvars() -> None:
    module, _, _ = adopted()
    assert b"flatvars" not in pickle.dumps(module)
    assert b"flatvars" not in pickle.dumps(module.state_dict())


def test_other_tensors_are_pickled_as_ever() -> None:
    base = torch.arange(6.0)
    a, b = pickle.loads(pickle.dumps([base, base]))
    assert a is b
    view = copy.copy(base[2:])
    assert view.data_ptr() == base[2:].data_ptr()
    param = nn.Parameter(base, requires_grad=False)
    param.note = "kept"
    twin = pickle.loads(pickle.dumps(param))
    assert type(twin) is nn.Parameter
    assert twin.note == "kept"
    assert not twin.requires_grad
    assert torch.equal(twin, base)
