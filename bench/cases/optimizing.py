"""Steps and whole tails, and their gate: three steps against float64, on a sample of the elements of every tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.cell import FORMATS, PRODUCTS, Cell, Checked, Contender, nothing
from bench.cases.hyper import HYPER, TORCH_NAMES
from bench.cases.material import Sample, gradients, parameters, true_norm
from bench.cases.references import FORMULAS, reference_of
from bench.workloads import Workload

MAX_NORM = 1.0
STEPS = 3
# Error of three steps that values or state of this precision explain, in units of the largest change of a value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
# Mean error that products in bfloat16 explain, of five iterations.
PRODUCTS_TOLERANCE = 3e-2


def param_groups(workload: Workload, params: list[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """The trained parameters by group; every group has a learning rate of its own."""
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": lr * (1 - 0.5 * i / workload.groups)} for i in range(workload.groups)
    ]
    for i in workload.trained:
        groups[workload.group_of[i] if workload.group_of else 0]["params"].append(params[i])
    return groups


def torch_optimizer(name: str, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    kind, extra = TORCH_NAMES[name]
    if kind == "Muon":
        options.pop("foreach", None)  # it has no other form
    return getattr(torch.optim, kind)(groups, **HYPER[name], **extra, **options)


@dataclass
class Trainer:
    """A peer's optimizer over given parameters.

    Attributes:
        params: Those that are trained, in the workload's order.
        step: The optimizer's step; for tails everything between backward and the next forward.
        give: Puts gradients where autograd would.
        norm: The norm that the last tail clipped by.
        tolerance: Mean error that the peer's own format explains, where it is not the cell's.
        norm_limit: How far the norm may be off.
    """

    params: list[nn.Parameter]
    step: Callable[[], object]
    give: Callable[[list[Tensor]], object]
    norm: Callable[[], float] | None
    tolerance: float | None = None
    norm_limit: float = 1e-6
    scaffold: bool = False


def give_grads(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def gate(cell: Cell, trainer: Trainer, grads: list[Tensor]) -> Checked:
    """Three steps of the peer on the same gradients, and of torch.optim in float64 on a sample of them."""
    form, workload, sample = FORMATS[cell.format], cell.workload, Sample(trainer.params, whole=cell.is_coupled)
    if trainer.tolerance is None and cell.optimizer in PRODUCTS:
        trainer.tolerance = PRODUCTS_TOLERANCE
    clipped = cell.case == "tail"
    norm = true_norm(grads)
    before = [sample([param]) for param in trainer.params]
    shapes = [param.shape if cell.is_coupled else one.shape for param, one in zip(trainer.params, before, strict=True)]
    reference = [nn.Parameter(one.clone().view(shape)) for one, shape in zip(before, shapes, strict=True)]
    for i, grad in enumerate(grads):
        picked = sample([grad]).view(shapes[i])
        reference[i].grad = picked * (min(1.0, MAX_NORM / (norm + 1e-6)) if clipped else 1.0)
    followed = _follow(cell, workload, reference)
    norm_error = 0.0
    for _ in range(STEPS):
        # A peer may write into what it is given: torch's clipping does.
        trainer.give([grad.clone() for grad in grads])
        trainer.step()
        followed.step()
        if clipped and trainer.norm is not None:
            norm_error = max(norm_error, abs(trainer.norm() / norm - 1.0))
    after, start, wanted = (
        sample(trainer.params),
        torch.cat(before),
        torch.cat([r.detach().flatten() for r in reference]),
    )
    limit = max(TOLERANCE[form.param], TOLERANCE[form.state]) if trainer.tolerance is None else trainer.tolerance
    # A clip coefficient that is off by e moves an update by at most about e of itself.
    limit += 2 * trainer.norm_limit if clipped else 0.0
    rounding = STEPS * torch.finfo(form.param).eps
    error = _distance(after, wanted, start, rounding, worst=trainer.tolerance is None)
    return Checked(error, limit, norm_error, trainer.norm_limit)


def _distance(after: Tensor, wanted: Tensor, start: Tensor, rounding: float, *, worst: bool) -> float:
    """How far values are off beyond `rounding` of themselves, in units of how far they should have moved.

    Args:
        worst: Of the element that is off most; else the root of the mean square, for states in 8 bits, where single
            elements are off by a whole update.
    """
    off = ((after - wanted).abs() - rounding * wanted.abs()).clamp(min=0.0)
    moved = wanted - start
    if worst:
        return float(off.max() / moved.abs().max())
    return float(off.square().mean().sqrt() / moved.square().mean().sqrt())


def _follow(cell: Cell, workload: Workload, reference: list[nn.Parameter]) -> torch.optim.Optimizer:
    everywhere = dict(zip(workload.trained, reference, strict=True))
    params = [everywhere.get(i, nn.Parameter(torch.zeros(()))) for i in range(len(workload.shapes))]
    groups = param_groups(workload, params, HYPER[cell.optimizer]["lr"])
    if cell.optimizer in FORMULAS:
        return reference_of(cell.optimizer, groups)
    return torch_optimizer(cell.optimizer, groups, foreach=len(reference) > 100)


def contender(cell: Cell, device: str, make: Callable[[Cell, list[nn.Parameter]], Trainer]) -> Contender:
    """A step or a tail as something to time: every run finds gradients where autograd would have left them.

    Args:
        make: Builds the peer's optimizer over all parameters of the workload, frozen ones included.
    """
    form = FORMATS[cell.format]
    params = parameters(cell.workload, device, form.param)
    grads = gradients(cell.workload, device, form.param)
    trainer = make(cell, params)

    def prepare() -> None:
        trainer.give(grads)

    scaffold = sum(g.nbytes for g in grads) if trainer.scaffold else 0
    return Contender(
        trainer.step, lambda: gate(cell, trainer, grads), prepare, scaffold_bytes=scaffold, keep=[params, trainer]
    )


def usual_tail(
    params: list[nn.Parameter], optimizer: torch.optim.Optimizer, foreach: bool | None = None, norm_limit: float = 5e-3
) -> Trainer:
    """torch's way to finish a step: clip_grad_norm_, step, zero_grad(set_to_none=True).

    Its float32 norm of tens of millions of elements is off by a thousandth on a CPU; the table shows by how much.
    """
    last = torch.zeros(())

    def tail() -> None:
        nonlocal last
        last = torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=foreach)
        optimizer.step()
        optimizer.zero_grad()

    return Trainer(params, tail, lambda grads: give_grads(params, grads), lambda: float(last), norm_limit=norm_limit)


def usual_trainer(
    cell: Cell,
    params: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    foreach: bool | None = None,
    tolerance: float | None = None,
) -> Trainer:
    """A trainer for any peer that is a torch.optim.Optimizer over the tensors as they are."""
    trained = [params[i] for i in cell.workload.trained]
    if cell.case == "tail":
        trainer = usual_tail(trained, optimizer, foreach)
    else:
        trainer = Trainer(trained, optimizer.step, lambda grads: give_grads(trained, grads), None)
    trainer.tolerance = tolerance
    return trainer


__all__ = ["Trainer", "contender", "gate", "nothing", "param_groups", "usual_trainer"]
