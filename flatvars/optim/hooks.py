"""The hooks of `step`, and its mark in a profile, at no cost where nobody listens.

torch.optim puts a `record_function` and its hooks around the step of every class, which takes 20 to 40 microseconds
whether a profiler runs or not: as long as the step of a small model. Here torch's own wrapper is called where there is
a hook or a profiler, and only there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.optim import optimizer as torch_optimizer

Step = TypeVar("Step", bound=Callable[..., Any])

_PRE, _POST = torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks
_is_profiled: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


def hooked(step: Step) -> Step:
    """A `step` that torch.optim leaves as it is.

    A subclass whose own `step` calls this one was given torch's wrapper: hooks are called there, and not again.
    """
    recorded = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(self: Any, *arguments: Any, **options: Any) -> Any:
        is_heard = _PRE or _POST or self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _is_profiled()
        if is_heard and type(self).step is wrapper:
            return recorded(self, *arguments, **options)
        return step(self, *arguments, **options)

    wrapper.hooked = True  # type: ignore[attr-defined]
    return cast(Step, wrapper)
