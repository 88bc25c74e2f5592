"""Host synchronizations, found without a GPU: whatever reads a tensor's numbers raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .launches import count_launches

# What waits for the device, because its result lies on the host or its shape depends on numbers.
READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.cpu,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__array__,
    Tensor.__contains__,
    Tensor.nonzero,
    Tensor.masked_select,
    Tensor.equal,
    Tensor.allclose,
    Tensor.unique,
    torch.nonzero,
    torch.masked_select,
    torch.equal,
    torch.allclose,
    torch.unique,
}


class HostSynchronizationError(AssertionError):
    """A tensor's numbers were read on the host."""


class _Refuse(TorchFunctionMode):
    def __init__(self, launches: Any) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_host = func is Tensor.to and _names_the_cpu([*args[1:], *kwargs.values()])
        if not self.launches.inside and (func in READS or to_host):
            raise HostSynchronizationError(f"{getattr(func, '__name__', func)} waits for the device")
        return func(*args, **kwargs)


def _names_the_cpu(values: list[Any]) -> bool:
    return any(isinstance(value, (str, torch.device)) and torch.device(value).type == "cpu" for value in values)


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raises HostSynchronizationError where code outside of a kernel launch reads a tensor's numbers.

    On CPU tensors nothing is slow about that; on a GPU each such place would empty its queue.
    """
    with count_launches() as launches, _Refuse(launches):
        yield
