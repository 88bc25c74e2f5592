"""Flags of torch.optim that a fused step answers for all optimizers alike."""

from __future__ import annotations


def refuse_differentiable(differentiable: bool) -> None:
    """Raises for `differentiable=True`: the step writes in place, outside autograd."""
    if differentiable:
        raise ValueError("differentiable=True is not possible: the fused step writes in place; use torch.optim for it")
