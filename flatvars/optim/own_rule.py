"""RuleOptimizer: the fused, masked, multi-tensor step for a rule of your own."""

from __future__ import annotations

from typing import Any

from ..backend import Rule
from .base import Optimizer


class RuleOptimizer(Optimizer):
    """Runs a user's rule.

    Args:
        params: As for `Optimizer`.
        rule: Made with `flatvars.optim.rule`.
        defaults: Values of the names the rule unpacks from `hyper`, given as keywords with the options of `Optimizer`.

    Example:
        >>> import flatvars as fv
        >>> @fv.optim.rule(hyper=("lr", "power"))
        ... def power_descent(p, g, state, hyper, step):
        ...     lr, power = hyper
        ...     return p - lr * power * g, state
        >>> opt = fv.optim.RuleOptimizer(store, power_descent, lr=0.1, power=2.0)
    """

    _options = ("store", "max_norm", "skip_nonfinite", "state_dtype")

    def __init__(self, params: Any, rule: Rule, **defaults: Any) -> None:
        options = {name: defaults.pop(name) for name in self._options if name in defaults}
        self._rule = rule
        super().__init__(params, defaults, **options)

    def rule(self) -> Rule:
        return self._rule
