"""Taking a finished model in: its parameters move into one buffer and keep their values, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.cases.cell import FORMATS, Cell, Checked, Contender
from bench.cases.material import parameters


def adopt(cell: Cell, device: str, take: Callable[[nn.Module], Any]) -> Contender:
    """Every run adopts a model that was made for it, outside of what is timed."""
    values = parameters(cell.workload, device, FORMATS[cell.format].param)
    kept: dict[str, Any] = {}

    def prepare() -> None:
        kept.clear()
        kept["model"] = nn.ParameterList(nn.Parameter(v.detach().clone()) for v in values)

    def run() -> None:
        kept["taken"] = take(kept["model"])

    def check() -> Checked:
        prepare()
        run()
        pairs = zip(kept["model"], values, strict=True)
        return Checked(float(not all(torch.equal(a, b) for a, b in pairs)), 0.0, note="values bit-equal")

    scaffold = sum(v.nbytes for v in values)
    return Contender(run, check, prepare, close=kept.clear, scaffold_bytes=scaffold, keep=[values])
