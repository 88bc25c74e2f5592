"""Counting what one call sends to a device: Triton launches, and torch operators beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that make a view or an empty tensor, or tell a profiler: no kernel runs for them on a GPU.
VIEWS = {"alias", "as_strided", "detach", "expand", "select", "slice", "squeeze", "t", "transpose", "unsqueeze", "view"}
FREE = {
    *VIEWS,
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "_record_function_enter_new",
    "_record_function_exit",
}


@dataclass
class Launches:
    """What ran, in order.

    Attributes:
        kernels: Names of Triton kernels.
        operators: Names of torch operators that are kernels or copies on a GPU.
        inside: Whether a launch is running; the interpreter works on tensors there, as hardware would not.
    """

    kernels: list[str] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    inside: bool = False


class _Operators(TorchDispatchMode):
    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.launches.inside and name not in FREE:
            self.launches.operators.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def count_operators() -> Iterator[list[str]]:
    """Names of the torch operators that run: without Triton, and where none of its kernels does."""
    launches = Launches()
    with _Operators(launches):
        yield launches.operators


@contextmanager
def count_launches() -> Iterator[Launches]:
    """Counts every launch of this process's kind of kernel, interpreted or compiled, and every torch operator.

    Example:
        >>> with count_launches() as launches:
        ...     optimizer.step()
        >>> launches.kernels
        ['accumulate_kernel', 'step_kernel']
    """
    from flatvars.kernels.triton.handles import Handles
    from flatvars.kernels.triton.step import step_kernel

    launches = Launches()

    def counted(launch: Callable[..., Any], place: int) -> Callable[..., Any]:
        """A launch whose argument `place` is the kernel."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if launches.inside:  # a handle asks Triton the first time
                return launch(*args, **kwargs)
            launches.kernels.append(args[place].fn.__name__)
            launches.inside = True
            try:
                return launch(*args, **kwargs)
            finally:
                launches.inside = False

        return call

    kind = type(step_kernel)
    with (
        patch.object(kind, "run", counted(kind.run, 0)),
        patch.object(Handles, "launch", counted(Handles.launch, 1)),
        _Operators(launches),
    ):
        yield launches


def device_work(call: Callable[[], object]) -> list[str]:
    """Names of all kernels and copies on a GPU while `call` ran, once warm, as the profiler sees them."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # `Optimizer.step` marks itself, and the mark is shown on the device's track as well.
    return [event.name for event in on_device if "#" not in event.name]
