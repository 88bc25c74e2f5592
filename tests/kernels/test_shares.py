"""Launches over the shares of several ranks, one after another in one process: the same bits as one launch over all."""

from __future__ import annotations

from dataclasses import replace

import torch

from flatvars.distributed.squares import SharedSquares
from flatvars.memory.layout import plan_layout
from flatvars.memory.ranks import Ranks
from flatvars.memory.spec import VarSpec
from tests.support.rig import plan_of
from tests.support.rules import CASES

CASE = CASES["adamw"]
# With three ranks, borders lie inside of variables and groups of 1,024 units; some variables are on one rank alone.
# The interpreter takes 20 ms a tile, so its first variable is a tenth.
SHAPES = ((7,), (0,), (2060,), (33, 40))
ROWS = {"cpu": 300, "triton": 30}


def test_shares_are_the_whole(backend: str, device: torch.device) -> None:
    size = 3
    specs = [VarSpec(f"v{i}", shape, torch.float32) for i, shape in enumerate([(ROWS[backend], 501), *SHAPES])]
    layout = plan_layout(specs, ranks=Ranks(0, size))
    numel = layout.regions[0].trainable_numel
    segments = layout.segments(range(len(specs)))[1]
    values, grads, states = torch.zeros(numel), torch.zeros(numel), [torch.zeros(numel) for _ in CASE.rule.states]
    for start, count in zip(segments.starts, segments.numels, strict=True):
        for stream in (values, grads, *states):
            stream[start : start + count] = torch.rand(count)
    values, grads = values.to(device), grads.to(device)
    states = [state.to(device) for state in states]
    borders = [layout.share(torch.float32, rank)[0] for rank in range(1, size)]
    found = []
    for shares in ([None], [layout.share(torch.float32, rank) for rank in range(size)]):
        norm, sums = torch.zeros((), device=device), torch.zeros(1, dtype=torch.float64, device=device)
        plans = [plan_of(backend, replace(segments, share=share), device, None, norm, sums, 0) for share in shares]
        sources = [plan.gathered(grads, [True, True, True, True, False]) for plan in plans]
        for plan, source in zip(plans, sources, strict=True):
            plan.norm_(source)
        if shares != [None]:
            norm.copy_(norm_of(plans, borders, device))
        out, moved = values.clone(), [state.clone() for state in states]
        for plan, source, share in zip(plans, sources, shares, strict=True):
            steps = torch.ones(len(specs), device=device)
            first, stop = share or (0, numel)
            parts = [state[first:stop] for state in moved]
            rest = {"steps": steps, "base": first, "norm": norm, "max_norm": 0.5, "skip": True}
            skipped = torch.zeros((), dtype=torch.int32, device=device)
            plan.step_(source, CASE.rule, out, parts, [CASE.group], skipped=skipped, **rest)
            assert steps.tolist() == [2.0, 2.0, 2.0, 2.0, 1.0], "every rank counts the steps of all variables"
        found.append([norm, out, *moved])
    assert all(map(torch.equal, *found))
    assert not torch.equal(found[0][1], values)


def norm_of(plans: list, borders: list[int], device: torch.device) -> torch.Tensor:
    """As ranks make it of what they exchange."""
    numbers, squares = [], []
    for plan in plans:
        squares.append(SharedSquares(plan.segments, borders, plan.launches.lanes, device))
        numbers.append(torch.zeros(squares[-1].numel, dtype=torch.float64, device=device))
        squares[-1].write(plan.launches.squares(), numbers[-1])
    together = torch.stack(numbers)
    assert int((together != 0.0).sum(dim=0).max()) == 1, "each number comes from one rank"
    totals = {float(one.total(together.sum(dim=0))) for one in squares}
    assert len(totals) == 1
    return torch.tensor(totals.pop(), dtype=torch.float64).sqrt()
