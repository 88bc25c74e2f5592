"""One small model and what every test here does with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def backward(module: nn.Module, width: int = 3) -> None:
    """Gradients of all ones' worth; in the dtype the module has now."""
    dtype = next(module.parameters()).dtype
    module(torch.ones(1, width, dtype=dtype)).sum().backward()


def adopted(
    mode: str = "gather", steps: int = 1, on_moved: str = "follow"
) -> tuple[nn.Linear, fv.VarStore, fv.optim.AdamW]:
    """A linear layer in a store, stepped `steps` times; no gradient is pending."""
    module = linear()
    store = fv.VarStore.from_module(module, grads=mode, on_moved=on_moved)
    opt = fv.optim.AdamW(store, lr=0.1)
    for _ in range(steps):
        backward(module)
        opt.step()
        opt.zero_grad()
    return module, store, opt


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in module.named_parameters()}


def states(opt: Any) -> dict[tuple[int, str], Tensor]:
    entries = opt.state_dict()["state"]
    return {(index, key): value.clone() for index, state in entries.items() for key, value in state.items()}


def assert_same(left: dict[Any, Tensor], right: dict[Any, Tensor]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype, key
        assert torch.equal(value, right[key]), key
