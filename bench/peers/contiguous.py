"""contiguous-params: values and gradients in one buffer, and a torch.optim optimizer over that one tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.adopt import adopt
from bench.cases.cell import CannotRunError, Cell
from bench.cases.hyper import HYPER, TORCH_NAMES
from bench.cases.optimizing import MAX_NORM, Trainer
from bench.cases.optimizing import torch_optimizer as make_torch
from bench.peers.peer import Peer, need_formats, optimizer_cases
from bench.peers.torch_optim import NO_FUSED, SAME_DTYPE


def trainer(cell: Cell, params: list[nn.Parameter]) -> Trainer:
    from contiguous_params import ContiguousParams

    need_formats(cell, SAME_DTYPE, "torch.optim keeps state in the dtype of the parameter")
    if cell.optimizer not in TORCH_NAMES or cell.optimizer in NO_FUSED:
        raise CannotRunError("torch.optim has no fused form of it")
    if cell.workload.groups > 1:
        raise CannotRunError("one buffer is one param group")
    trained = [params[i] for i in cell.workload.trained]
    flat = ContiguousParams(trained)
    (buffer,) = flat.contiguous()
    optimizer = make_torch(cell.optimizer, [{"params": [buffer], "lr": HYPER[cell.optimizer]["lr"]}], fused=True)
    last = torch.zeros(())

    def tail() -> None:
        nonlocal last
        last = torch.nn.utils.clip_grad_norm_([buffer], MAX_NORM)
        optimizer.step()
        # Setting gradients to None would break its views.
        optimizer.zero_grad(set_to_none=False)

    def give(grads: list[Tensor]) -> None:
        torch._foreach_copy_([param.grad for param in trained], grads)

    tails: Any = tail if cell.case == "tail" else optimizer.step
    return Trainer(trained, tails, give, (lambda: float(last)) if cell.case == "tail" else None, None, 5e-3, True)


def _take(module: nn.Module) -> Any:
    from contiguous_params import ContiguousParams

    return ContiguousParams(module.parameters())


CONTIGUOUS = Peer(
    "contiguous-params",
    "contiguous-params",
    "contiguous_params",
    "one dtype and param group, no alignment; torch fused over one tensor; gradients are views: zeros, never None",
    {**optimizer_cases(trainer), "adopt": lambda cell, device: adopt(cell, device, _take)},
    views=True,
)
