"""Muon beside torch.optim.Muon over the matrices of a GPT-2: `python -m bench.muon --width 256 --layers 6`.

First both take a step from the same values and must agree; then rounds are interleaved, and the ratio is the median of
those of each round.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import nn

import flatvars as fv


def matrices(width: int, layers: int, device: torch.device) -> nn.Module:
    """Those of the hidden layers, with gradients."""
    made = torch.Generator().manual_seed(0)
    module = nn.Module()
    shapes = {"qkv": (3 * width, width), "proj": (width, width), "fc": (4 * width, width), "out": (width, 4 * width)}
    for i in range(layers):
        for name, shape in shapes.items():
            param = nn.Parameter((0.02 * torch.randn(shape, generator=made)).to(device))
            param.grad = torch.randn(shape, generator=made).to(device)
            module.register_parameter(f"{name}{i}", param)
    return module


def timed(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def check_agreement(mine: nn.Module, theirs: nn.Module, start: nn.Module) -> None:
    """Raises where the first steps differ by more than bfloat16 does."""
    for (name, one), other, first in zip(mine.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        if (one - other).norm() > 2e-2 * (other - first).norm():
            raise SystemExit(f"{name} moved elsewhere than torch's: no numbers")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 256), ("layers", 6), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    given = parser.parse_args()
    mine, theirs, start = (matrices(given.width, given.layers, given.device) for _ in range(3))
    store = fv.VarStore.from_module(mine)
    ours, torchs = fv.optim.Muon(list(mine.parameters())), torch.optim.Muon(theirs.parameters())
    for optimizer in (ours, torchs):
        optimizer.step()
    check_agreement(mine, theirs, start)
    pairs = [(timed(ours, given.device), timed(torchs, given.device)) for _ in range(given.rounds)]
    first, second = (1e3 * median(times) for times in zip(*pairs, strict=True))
    ratio = median(other / one for one, other in pairs)
    print(f"{len(store)} matrices, width {given.width}: {first:.1f} ms, torch {second:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
