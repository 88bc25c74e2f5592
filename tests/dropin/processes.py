"""Two processes that train one model with DistributedDataParallel over gloo; run as a script, one per rank.

python -m tests.dropin.processes RANK FILE OUT CASE...
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flatvars as fv
from tests.support.models import Chain

WORLD, STEPS = 2, 4


# Kinds of nets: one that is trained whole, one with a frozen layer, one of which not every layer is always used, one
# with statistics, which the first rank sends to the other before each forward pass.
WHOLE, FROZEN, UNUSED, NORMED = range(4)
# Layers that are used in a step by each rank: all by both, one by none, one by the first alone.
ACTIVE = [([0, 1, 2], [0, 1, 2]), ([0, 2], [0, 2]), ([0, 1, 2], [0, 2]), ([0, 2], [0, 2])]


def train(rank: int, optimizer: str, mode: str, bucket_view: bool, accumulate: int, kind: int) -> dict[str, Tensor]:
    """Trains `STEPS` steps of `accumulate` micro-batches, all but the last of them without communication."""
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2))
    net, frozen = normed if kind == NORMED else Chain(), kind == FROZEN
    if frozen:
        net.layers[0].requires_grad_(False)
    ours = optimizer == "flatvars"
    store = fv.VarStore.from_module(net, grads=mode) if ours else None
    model = DistributedDataParallel(net, gradient_as_bucket_view=bucket_view, find_unused_parameters=kind == UNUSED)
    opt: Any = (fv.optim.AdamW if ours else torch.optim.AdamW)(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        net.active = ACTIVE[step][rank] if kind == UNUSED else [0, 1, 2]
        for micro in range(accumulate):
            last = micro == accumulate - 1
            with nullcontext() if last else model.no_sync():
                model(torch.randn(8 if kind == NORMED else 2, 4, generator=generator)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
        opt.zero_grad()
        if frozen and step == 1 and store is not None:
            store.check()
    if store is not None:
        store.check()
    return {name: value.clone() for name, value in net.state_dict().items()}


def main(rank: str, file: str, out: str, *cases: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=WORLD)
    results = {}
    for case in cases:
        optimizer, mode, bucket_view, accumulate, kind = case.split(",")
        results[case] = train(int(rank), optimizer, mode, bucket_view == "1", int(accumulate), int(kind))
    torch.save(results, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
