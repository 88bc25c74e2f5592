"""The copy itself: what every percentage is of."""

from __future__ import annotations

import torch

from bench.cases.cell import FORMATS, Cell, Checked, Contender
from bench.peers.peer import Peer, Storage


def copy(cell: Cell, device: str) -> Contender:
    """As many values as the cell trains, from one buffer to another; for "init" they are written only."""
    numel = max(cell.workload.numel, 1)
    source = torch.randn(numel, device=device).to(FORMATS[cell.format].param)
    target = torch.empty_like(source)

    def run() -> None:
        if cell.case == "init":
            target.fill_(0.5)
        else:
            target.copy_(source)

    def check() -> Checked:
        run()
        wanted = torch.full_like(source, 0.5) if cell.case == "init" else source
        return Checked(float(not torch.equal(target, wanted)), 0.0)

    return Contender(run, check, keep=[source, target])


CASES = ("norm", "norms", "accumulate", "accumulate-add", "step", "tail", "init", "adopt")
COPY = Peer(
    "copy",
    "torch",
    "torch",
    "as many values of the same dtype from one buffer to another (only written, for init): the floor",
    dict.fromkeys(CASES, copy),
    storage=lambda cell: Storage("no state", 0.0),
)
