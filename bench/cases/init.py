"""First values: every parameter of a model drawn from a normal distribution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bench.cases.cell import FORMATS, Cell, Checked, Contender
from bench.cases.material import parameters

STD = 0.02


def init(cell: Cell, device: str, make: Callable[[list[nn.Parameter]], Callable[[], object]]) -> Contender:
    """Writes all values anew; the gate looks at mean and deviation, which five of their own errors bound."""
    params = parameters(cell.workload, device, FORMATS[cell.format].param)
    run = make(params)

    def check() -> Checked:
        with torch.no_grad():
            for param in params:
                param.fill_(torch.nan)
        run()
        values = torch.cat([param.detach().double().reshape(-1) for param in params])
        error = max(abs(float(values.std()) / STD - 1.0), abs(float(values.mean())) / STD)
        return Checked(error, 5.0 / values.numel() ** 0.5 + 1e-4)

    return Contender(run, check, keep=[params])
