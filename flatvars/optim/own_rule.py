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
    """Runs a user's rule, or several: a param group may have one of its own, and is then stepped by it.

    Each rule is one launch over the variables of its groups, under one norm, and its states cover those alone.

    Args:
        params: As for `Optimizer`.
        rule: Made with `flatvars.optim.rule`.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.
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

    several = True

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
        stats: bool | int = False,
        **numbers: Any,
    ) -> None:
        unknown = [name for name in numbers if rule.names is not None and name not in rule.names]
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: rule {rule.name!r} reads {_listed(rule)}, and the optimizer takes "
                f"{', '.join(OPTIONS)}; leave out what is neither"
            )
        self._rule, self._rules = rule, {rule.name: rule}
        super().__init__(
            params,
            numbers,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
            stats=stats,
        )

    def number_names(self, defaults: Mapping[str, Any]) -> Iterable[str]:
        return dict.fromkeys(name for rule in self._rules.values() for name in rule.names or ())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`'s; the group, or the keywords of the optimizer, must give every number of its rule.

        The entry "rule" of a group is a rule that steps it in the place of the optimizer's, or the name of one that
        another group has. The group keeps the name.
        """
        if isinstance(param_group, dict):
            param_group = self._named(param_group)
            rule, given = self.rule_of(param_group), {**self.defaults, **param_group}
            missing = [name for name in rule.names or () if name not in given]
            if missing:
                raise ValueError(
                    f"rule {rule.name!r} reads {_listed(rule)}, and a param group has no {', '.join(missing)}; "
                    "give it as a keyword of the optimizer or in the group"
                )
        super().add_param_group(param_group)

    def _named(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group with the name of its rule, which is known from now on."""
        rule = group.get("rule")
        if not isinstance(rule, Rule):
            return group
        if self._rules.setdefault(rule.name, rule) is not rule:
            raise ValueError(
                f"two rules of one optimizer are called {rule.name!r}, and param groups know theirs by its name; "
                "rename one of the functions"
            )
        return {**group, "rule": rule.name}

    def rule(self) -> Rule:
        """Of groups that name none."""
        return self._rule

    def rule_of(self, group: Mapping[str, Any]) -> Rule:
        name = group.get("rule", self._rule.name)
        if name not in self._rules:
            raise ValueError(
                f"a param group names the rule {name!r}, and the optimizer has {', '.join(map(repr, self._rules))}; "
                "add a group with the rule itself first"
            )
        return self._rules[name]


def _listed(rule: Rule) -> str:
    return ", ".join(rule.names or ()) or "no numbers"
