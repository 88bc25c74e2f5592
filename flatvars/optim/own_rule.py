"""RuleOptimizer: the fused, masked, multi-tensor step for a rule of your own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..backend import Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .formats import StateFormat
from .groups import OPTIONS


class RuleOptimizer(Optimizer):
    """Runs a user's rule.

    Args:
        params: As for `Optimizer`.
        rule: Made with `flatvars.optim.rule`.
        store, max_norm, skip_nonfinite, state_dtype, state_format: As for `Optimizer`.
        numbers: Values of what the rule reads from `hyper`, by name.

    Raises:
        TypeError: a keyword that is neither a number of the rule nor an option.
        ValueError: a number of the rule that neither a group nor a keyword gives.

    Example:
        >>> import flatvars as fv
        >>> @fv.optim.rule(hyper=("lr", "power"))
        ... def power_descent(p, g, state, hyper, step):
        ...     return p - hyper.lr * hyper.power * g, state
        >>> opt = fv.optim.RuleOptimizer(store, power_descent, lr=0.1, power=2.0)
    """

    lengths: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        params: Any,
        rule: Rule,
        *,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        **numbers: Any,
    ) -> None:
        unknown = [name for name in numbers if rule.names is not None and name not in rule.names]
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: rule {rule.name!r} reads {_listed(rule)}, and the optimizer takes "
                f"{', '.join(OPTIONS)}; leave out what is neither"
            )
        self._rule = rule
        super().__init__(
            params,
            numbers,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
        )

    def number_names(self, defaults: Mapping[str, Any]) -> Iterable[str]:
        return self._rule.names or ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`'s; the group, or the keywords of the optimizer, must give every number of the rule."""
        given = {**self.defaults, **param_group}
        missing = [name for name in self._rule.names or () if name not in given]
        if missing:
            raise ValueError(
                f"rule {self._rule.name!r} reads {_listed(self._rule)}, and a param group has no {', '.join(missing)}; "
                "give it as a keyword of the optimizer or in the group"
            )
        super().add_param_group(param_group)

    def rule(self) -> Rule:
        return self._rule


def _listed(rule: Rule) -> str:
    return ", ".join(rule.names or ()) or "no numbers"
