"""Steps and whole tails, and their gate: three steps against float64.

Elementwise optimizers are looked at on a sample of the elements of every tensor, beside torch.optim; the others on all
of them, beside a twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.cell import BEYOND, FORMATS, PRODUCTS, CannotRunError, Cell, Checked, Contender, Format, nothing
from bench.cases.hyper import HYPER, TORCH_NAMES
from bench.cases.material import Sample, gradients, parameters, true_norm
from bench.cases.references import FORMULAS, reference_of
from bench.workloads import Workload

MAX_NORM = 1.0
STEPS = 3
# What a loop pauses for that waits for data: threads sleep after less.
COLD_SECONDS = 0.02
# Mean error that products in bfloat16 explain.
PRODUCTS_TOLERANCE = 2e-2
# Error of three steps that values or state of this precision explain, in units of the largest change of a value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}


class ReferenceLion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023) in the plainest form: what torch.optim has not."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            (first, second), lr = group["betas"], group["lr"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(lr * torch.sign(first * m + (1 - first) * p.grad))
                m.mul_(second).add_((1 - second) * p.grad)


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
        scaffold: Whether gradients that are given are copied.
        twin: Makes one of the same mathematics over float64 parameters on the CPU, where the optimizer is in `BEYOND`.
        shown: What the gate looks at, where that is not `params`.
    """

    params: list[nn.Parameter]
    step: Callable[[], object]
    give: Callable[[list[Tensor]], object]
    norm: Callable[[], float] | None
    tolerance: float | None = None
    norm_limit: float = 1e-6
    scaffold: bool = False
    twin: Callable[[list[nn.Parameter]], Trainer] | None = None
    shown: Callable[[], list[Tensor]] | None = None

    @property
    def results(self) -> list[Tensor]:
        """Values, or what is shown in their place."""
        return list(self.params) if self.shown is None else self.shown()


def give_grads(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def gate(cell: Cell, trainer: Trainer, grads: list[Tensor]) -> Checked:
    """Three steps of the peer on the same gradients, and of torch.optim in float64 on a sample of them."""
    form, workload, sample = FORMATS[cell.format], cell.workload, Sample(trainer.params)
    clipped = cell.case == "tail"
    norm = true_norm(grads)
    before = [sample([param]) for param in trainer.params]
    reference = [nn.Parameter(values.clone()) for values in before]
    for i, grad in enumerate(grads):
        reference[i].grad = sample([grad]) * (min(1.0, MAX_NORM / (norm + 1e-6)) if clipped else 1.0)
    followed = _follow(cell, workload, reference)
    norm_error = 0.0
    for _ in range(STEPS):
        # A peer may write into what it is given: torch's clipping does.
        trainer.give([grad.clone() for grad in grads])
        trainer.step()
        followed.step()
        if clipped and trainer.norm is not None:
            norm_error = max(norm_error, abs(trainer.norm() / norm - 1.0))
    after, start, wanted = sample(trainer.results), torch.cat(before), torch.cat([r.detach() for r in reference])
    limit = _limit(form, trainer)
    # A clip coefficient that is off by e moves an update by at most about e of itself.
    limit += 2 * trainer.norm_limit if clipped else 0.0
    error = _distance(after, wanted, start, _rounding(form), worst=trainer.tolerance is None)
    return Checked(error, limit, norm_error, trainer.norm_limit)


def twin_gate(cell: Cell, trainer: Trainer, grads: list[Tensor]) -> Checked:
    """Three steps of the peer on the same gradients, and of its twin: for what looks at whole variables, or at more."""

    def exact(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.detach().to("cpu", torch.float64, copy=True) for tensor in tensors]

    assert trainer.twin is not None
    form, before, wide = FORMATS[cell.format], exact(list(trainer.params)), exact(grads)
    twin = trainer.twin([nn.Parameter(values.clone()) for values in before])
    for _ in range(STEPS):
        trainer.give([grad.clone() for grad in grads])
        trainer.step()
        twin.give([grad.clone() for grad in wide])
        twin.step()
    after, wanted, start = (
        torch.cat([tensor.reshape(-1) for tensor in tensors])
        for tensors in (exact(trainer.results), exact(twin.results), before)
    )
    error = _distance(after, wanted, start, _rounding(form), worst=trainer.tolerance is None)
    return Checked(error, _limit(form, trainer))


def _limit(form: Format, trainer: Trainer) -> float:
    if trainer.tolerance is not None:
        return trainer.tolerance
    return max(TOLERANCE[torch.float32 if form.is_wide else form.param], TOLERANCE[form.state])


def _rounding(form: Format) -> float:
    """What rounding makes of a value in `STEPS` steps, relatively."""
    return STEPS * form.eps


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
    if cell.optimizer == "lion":
        return ReferenceLion(groups, HYPER["lion"])
    return torch_optimizer(cell.optimizer, groups, foreach=len(reference) > 100)


def contender(cell: Cell, device: str, make: Callable[[Cell, list[nn.Parameter]], Trainer]) -> Contender:
    """A step or a tail as something to time: every run finds gradients where autograd would have left them.

    Args:
        make: Builds the peer's optimizer over all parameters of the workload, frozen ones included.
    """
    form = FORMATS[cell.format]
    if cell.optimizer in BEYOND and cell.workload.frozen:
        raise CannotRunError("its gate looks at whole tensors, all of them trained")
    params = parameters(cell.workload, device, form.param)
    trainer = make(cell, params)
    # Behind what may refuse.
    grads = gradients(cell.workload, device, form.param)

    def prepare() -> None:
        trainer.give(grads)

    scaffold = sum(g.nbytes for g in grads) if trainer.scaffold else 0
    check = twin_gate if cell.optimizer in BEYOND else gate
    return Contender(
        trainer.step,
        lambda: check(cell, trainer, grads),
        prepare,
        pause=COLD_SECONDS if cell.case == "cold" else 0.0,
        scaffold_bytes=scaffold,
        keep=[params, trainer],
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
    trainer.tolerance = PRODUCTS_TOLERANCE if tolerance is None and cell.optimizer in PRODUCTS else tolerance
    if cell.optimizer in BEYOND:
        trainer.twin = twin_of(cell)
    return trainer


def twin_of(cell: Cell) -> Callable[[list[nn.Parameter]], Trainer] | None:
    """What a peer of this cell is compared with: torch's optimizer, or a formula; None where there is neither."""
    if cell.optimizer in TORCH_NAMES:
        return partial(torch_twin, cell)
    return partial(formula_twin, cell) if cell.optimizer in FORMULAS else None


def formula_twin(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    """A formula over float64 parameters."""
    trained = [params[i] for i in cell.workload.trained]
    groups = param_groups(cell.workload, params, HYPER[cell.optimizer]["lr"])
    optimizer = reference_of(cell.optimizer, groups)
    return Trainer(trained, optimizer.step, lambda grads: give_grads(trained, grads), None)


def torch_twin(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    """torch's optimizer of a cell over float64 parameters."""
    trained = [params[i] for i in cell.workload.trained]
    optimizer = torch_optimizer(cell.optimizer, param_groups(cell.workload, params, HYPER[cell.optimizer]["lr"]))
    return Trainer(trained, optimizer.step, lambda grads: give_grads(trained, grads), None)


__all__ = ["Trainer", "contender", "gate", "nothing", "param_groups", "usual_trainer"]
