"""Norms of gradients, norms of every variable, and gathering of micro-batches; their gates against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.cases.cell import FORMATS, Cell, Checked, Contender
from bench.cases.material import Sample, gradients, parameters, true_norm
from bench.cases.optimizing import give_grads

# torch adds all squares of a tensor in float32 one after the other on a CPU; rows show the error that is behind.
NORM_LIMIT = 5e-3
Params = list[nn.Parameter]
Norms = Tensor | Sequence[Tensor]
"""Of all tensors, as a peer hands them out: one tensor, [tensors], or so many, []."""


def _material(cell: Cell, device: str) -> tuple[Params, list[Tensor]]:
    form = FORMATS[cell.format]
    params = parameters(cell.workload, device, form.param)
    trained = [params[i] for i in cell.workload.trained]
    return trained, gradients(cell.workload, device, form.param)


def norm(cell: Cell, device: str, make: Callable[[Params], Callable[[], Tensor]]) -> Contender:
    """The norm of all gradients as one vector, which lie in `.grad`."""
    params, grads = _material(cell, device)
    run = make(params)
    give_grads(params, grads)

    def check() -> Checked:
        return Checked(abs(float(run()) / true_norm(grads) - 1.0), NORM_LIMIT)

    return Contender(run, check, keep=[params])


def norms(cell: Cell, device: str, make: Callable[[Params], Callable[[], tuple[Norms, Norms]]]) -> Contender:
    """The norm of every value and of every gradient."""
    params, grads = _material(cell, device)
    run = make(params)
    give_grads(params, grads)

    def check() -> Checked:
        found = torch.stack([n.double() for both in run() for n in both]).cpu()
        wanted = [torch.linalg.vector_norm(t.detach(), dtype=torch.float64) for t in (*params, *grads)]
        return Checked(float((found / torch.stack(wanted).cpu() - 1.0).abs().max()), NORM_LIMIT)

    return Contender(run, check, keep=[params])


@dataclass
class Gatherer:
    """A peer's way to add up micro-batches.

    Attributes:
        overwrite, add: Take the gradients of the first and of a later micro-batch in, and their norm.
        sums: The gathered gradients, in the order of the parameters.
    """

    overwrite: Callable[[list[Tensor]], object]
    add: Callable[[list[Tensor]], object]
    sums: Callable[[], list[Tensor]]


def accumulate(cell: Cell, device: str, make: Callable[[Params], Gatherer]) -> Contender:
    """Gathers gradients and takes their norm; overwrites, or adds if the case says so."""
    params, grads = _material(cell, device)
    gatherer = make(params)
    sample = Sample(grads)

    def check() -> Checked:
        gatherer.overwrite(grads)
        gatherer.overwrite(grads)
        once = sample(gatherer.sums())
        gatherer.add(grads)
        wanted = sample(grads)
        error = (once - wanted).abs().max() + (sample(gatherer.sums()) - 2.0 * wanted).abs().max()
        return Checked(float(error), 1e-6)

    chosen = gatherer.add if cell.case == "accumulate-add" else gatherer.overwrite
    scaffold = sum(g.nbytes for g in grads)
    return Contender(lambda: chosen(grads), check, scaffold_bytes=scaffold, keep=[params, gatherer])
