"""Binding: a Parameter's memory is its variable's span, and the Parameter stays the same object."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from .variable import Variable


def is_bound(param: Tensor, view: Tensor) -> bool:
    """Whether a tensor is this view: address, strides and dtype."""
    return param.data_ptr() == view.data_ptr() and param.stride() == view.stride() and param.dtype == view.dtype


def describe_stray(variable: Variable, reason: str) -> str:
    """What to tell of a variable whose parameter is not its span, and why it is not simply taken back in."""
    param, spec = variable.param, variable.spec
    return (
        f"variable {variable.name!r} no longer lies in its store: its Parameter now holds a {param.dtype} tensor of "
        f"shape {tuple(param.shape)} on {param.device} (the store holds {spec.dtype}, {tuple(variable.shape)}), and "
        f"{reason}. Something replaced its memory: module.to(), half(), double(), load_state_dict(assign=True), "
        "vector_to_parameters, share_memory() or `.data =`. Call store.rebind() to take the new values in, or "
        "store.restore_aliases() to go back to the store's. Instead of share_memory(), call store.share_memory_()"
    )


def bind(variable: Variable, view: Tensor) -> None:
    """Makes a parameter's memory the view, keeping the object: optimizers, hooks and modules hold on to it."""
    param = variable.param
    variable.memory = weakref.ref(view.untyped_storage())
    grad = param.grad if param.is_leaf else None  # a buffer may be a result
    if param.is_meta or param.is_inference():  # one that inference mode made would never count versions
        fresh = nn.Parameter(view, param.requires_grad) if isinstance(param, nn.Parameter) else view
        fresh.__dict__.update(param.__dict__)
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            setattr(fresh, hooks, getattr(param, hooks))
        torch.utils.swap_tensors(param, fresh)  # type: ignore[no-untyped-call]
        return
    if grad is not None and (grad.dtype != view.dtype or grad.device != view.device):
        param.grad = None
        param.data = view
        param.grad = grad.to(view.device, view.dtype)
    else:
        param.data = view
