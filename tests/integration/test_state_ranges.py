"""A state stream covers what its optimizer's variables need, and not the whole store."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.memory.layout import plan_layout
from flatvars.memory.spec import VarSpec
from flatvars.memory.streams import Streams, hull

CPU = torch.device("cpu")


def state_bytes(store: fv.VarStore) -> int:
    streams = store.registry.streams
    found = [
        streams.find(name, r.dtype) for name in streams.names() if "optimizer" in name for r in streams.layout.regions
    ]
    return sum(held.buffer.nbytes for held in found if held is not None)


def stepped(module: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for param in module.parameters():
        param.grad = torch.ones_like(param) if param.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
    for param in module.parameters():
        param.grad = None


def test_forty_optimizers_of_one_variable_hold_the_state_of_one_optimizer() -> None:
    module = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(40)))
    store = fv.VarStore.from_module(module)
    many = [fv.optim.AdamW([p]) for p in module.parameters()]
    stepped(module, *many)
    assert state_bytes(store) == 2 * store.values.nbytes
    twin = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(40)))
    one = fv.VarStore.from_module(twin)
    optimizer = fv.optim.AdamW(one)
    stepped(twin, optimizer)
    assert state_bytes(one) == state_bytes(store)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_some_variables_cover_their_range(dtype: torch.dtype) -> None:
    """256 elements each: the second to the third of five; then the fourth joins, and what was there stays."""
    module = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(5))).to(dtype)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.SGD([module[1].weight, module[2].weight], momentum=0.9)
    stepped(module, optimizer)
    assert state_bytes(store) == 512 * dtype.itemsize
    before = {k: optimizer.state[module[k].weight]["momentum_buffer"].clone() for k in (1, 2)}
    optimizer.add_param_group({"params": [module[3].weight]})
    assert all(torch.equal(optimizer.state[module[k].weight]["momentum_buffer"], before[k]) for k in before)
    stepped(module, optimizer)
    assert state_bytes(store) == 768 * dtype.itemsize
    assert not torch.equal(optimizer.state[module[1].weight]["momentum_buffer"], before[1])


def test_state_stays_with_its_variable_through_a_carve() -> None:
    """A variable of room before the range, growth behind it, another dtype."""
    module = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(4)))
    module[0].weight.requires_grad_(False)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW([module[2].weight])
    stepped(module, optimizer)
    state = {name: value.clone() for name, value in optimizer.state[module[2].weight].items()}
    store.unfreeze("0.weight")
    store.add("later", torch.ones(7))
    assert all(torch.equal(optimizer.state[module[2].weight][name], value) for name, value in state.items())
    assert state_bytes(store) == 2 * 512 * 4  # 400 elements from a multiple of 128 to another
    store.double()
    assert optimizer.state[module[2].weight]["exp_avg"].dtype == torch.float64
    assert torch.equal(optimizer.state[module[2].weight]["exp_avg"].float(), state["exp_avg"])


def test_a_stream_grows_to_both_ranges_and_keeps_what_it_holds() -> None:
    layout = plan_layout([VarSpec(f"v{i}", (300,), torch.float32) for i in range(6)])
    streams = Streams(layout, CPU)
    spans = layout.spans
    first = streams.get("state", torch.float32, cover=hull(spans[2:3]))
    assert (first.base % 128, len(first.buffer) % 128) == (0, 0)
    assert first.base <= spans[2].offset
    assert first.cover[1] >= spans[2].stop
    first.write(spans[2], torch.full((300,), 3.0))
    assert streams.get("state", torch.float32, cover=hull(spans[2:3])) is first
    grown = streams.get("state", torch.float32, cover=hull(spans[4:5]))
    assert torch.equal(grown.read(spans[2]), torch.full((300,), 3.0))
    assert not grown.buffer[: spans[2].offset - grown.base].any()
    assert not grown.read(spans[4]).any()
    assert streams.nbytes == streams.values(torch.float32).nbytes + grown.buffer.nbytes
    last = streams.get("state", torch.float32, cover=hull(spans[5:]))
    assert last.cover[1] == layout.region_of[torch.float32].trainable_numel
    moved = streams.recarve(layout, CPU, {i: i for i in range(6)})
    again = moved.find("state", torch.float32)
    assert again is not None
    assert again.cover == last.cover
    assert torch.equal(again.read(spans[2]), torch.full((300,), 3.0))
