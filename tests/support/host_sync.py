"""Host synchronizations: whatever reads a tensor's numbers raises, and on a GPU CUDA itself where it would wait."""

from __future__ import annotations

import warnings
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

    On CPU tensors nothing is slow about that; on a GPU each such place would empty its queue, and CUDA raises a
    RuntimeError for those that no function shows.
    """
    with cuda_raises(), count_launches() as launches, _Refuse(launches):
        yield


class _RefuseUploads(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.on_host: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor:
            waits = kwargs.get("device") is not None
        else:
            moved = {Tensor.to: 0, Tensor.copy_: 1, Tensor.__setitem__: 2}.get(func)
            known = moved is not None and any(args[moved] is tensor for tensor in self.on_host)
            waits = known and not kwargs.get("non_blocking", False)
        if waits:
            raise HostSynchronizationError(f"{func.__name__} of numbers of the host waits for the device")
        result = func(*args, **kwargs)
        if func is torch.tensor:
            self.on_host.append(result)
        elif func is Tensor.to:  # on a CPU, it is the tensor itself
            self.on_host = [tensor for tensor in self.on_host if tensor is not result]
        return result


@contextmanager
def no_waiting_upload() -> Iterator[None]:
    """Raises HostSynchronizationError where numbers that Python has are copied to the device, and this is waited for.

    On a GPU such a copy comes behind all that was launched before. On a CPU the calls are the same.
    """
    with _RefuseUploads():
        yield


@contextmanager
def cuda_raises() -> Iterator[None]:
    """Where a GPU is: RuntimeError from torch where it waits for it."""
    if not torch.cuda.is_available():
        yield
        return
    with warnings.catch_warnings():
        # torch says once per process that the mode is a prototype.
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
