"""Each kernel against the copy of the same run: bytes it must move over the time it takes (GPU only)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import flatvars as fv


@dataclass(frozen=True)
class KernelCase:
    """A launch and the bytes it must move at least, modelled: every input read once, every output written once."""

    name: str
    run: Callable[[], None]
    nbytes: int


def kernel_cases(numel: int, device: str) -> Iterator[KernelCase]:
    """One variable of `numel` float32 elements under each kernel."""
    param = nn.Parameter(torch.randn(numel, device=device))
    store = fv.VarStore(device)
    store.add("w", param)
    grad = torch.randn(numel, device=device)
    param.grad = grad

    def accumulate() -> None:
        store.accumulate([grad])

    def overwrite() -> None:
        store.zero_grad()
        accumulate()

    yield KernelCase("norm of gradients", lambda: void(store.grad_norm()), 4 * numel)
    yield KernelCase("norms of variables", lambda: void(store.norms()), 8 * numel)
    yield KernelCase("accumulate, overwrite", overwrite, 8 * numel)
    yield KernelCase("accumulate, add", accumulate, 12 * numel)
    store.zero_grad()
    param.grad = grad
    for optimizer, states in ((fv.optim.SGD, 0), (fv.optim.Lion, 1), (fv.optim.Adam, 2), (fv.optim.AdamW, 2)):
        step = optimizer(store, lr=1e-4).step
        yield KernelCase(f"step, {optimizer.__name__}", lambda step=step: void(step()), (12 + 8 * states) * numel)


def void(_: object) -> None:
    """Drops a result, so that a lambda is a procedure."""


def copy_case(numel: int, device: str) -> KernelCase:
    source = torch.randn(numel, device=device)
    target = torch.empty_like(source)
    return KernelCase("copy", lambda: void(target.copy_(source)), 8 * numel)
