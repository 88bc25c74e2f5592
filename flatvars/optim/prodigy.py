"""Prodigy: an Adam that finds its learning rate from how far the values have come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import PRODIGY, Rule, Sources
from ..gradients.plans import Part, PlanSet
from ..memory.streams import normal_tensors
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas, holds_tensor
from .formats import StateFormat

SHARED = ("d", "d_max", "d_numerator")
"""What all param groups have in common: one float64 tensor [] each, on the device of the store."""


class Prodigy(Optimizer):
    """Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101): lr stays 1, and a distance d finds the size of steps.

    Two launches, three with `max_norm`, and some operators on single numbers between them, which make the next d of
    sums over all variables: they wait for nobody, and a skipped step moves none of them. d is an entry of every param
    group, beside d_max and d_numerator, and so in state dicts and files. Counts for the bias correction are the
    variable's; the authors' are the group's.

    Args:
        params: As for `Optimizer`.
        lr: Factor of the rate that is found; the same in all param groups. Schedules act on it.
        betas: Of the averages of gradients and of squares.
        beta3: Of the averages that d is made of; the root of betas[1] if None.
        eps: Added to the root, times d.
        weight_decay: Decoupled, by the rate, or part of the gradient.
        decouple: Which of the two.
        use_bias_correction: Whether the rate is corrected as Adam's; off, it warms up by itself.
        safeguard_warmup: Leaves lr out of the denominator of d: for schedules that warm up.
        d0: The first d.
        d_coef: Factor of the d that is found.
        growth_rate: By how much d may grow in a step.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or param groups of different lr.
    """

    needs_step = True
    optional = frozenset({"beta3"})

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        *,
        maximize: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "use_bias_correction": use_bias_correction,
            "safeguard_warmup": safeguard_warmup,
            "d0": d0,
            "d_coef": d_coef,
            "growth_rate": growth_rate,
            "maximize": maximize,
            "d": d0,
            "d_max": d0,
            "d_numerator": 0.0,
        }
        super().__init__(
            params,
            defaults,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
            stats=stats,
        )

    def check_numbers(self, numbers: Mapping[str, Any]) -> None:
        if not numbers["d0"] > 0.0:
            raise ValueError(f"Invalid d0 value: {numbers['d0']}; it must be above 0")
        names = ("lr", "eps", "weight_decay", "d_coef", "growth_rate", "d", "d_max")
        check_at_least(0.0, **{name: numbers[name] for name in names if not isinstance(numbers[name], Tensor)})
        check_betas(numbers["betas"] if numbers["beta3"] is None else (*numbers["betas"], numbers["beta3"]))

    def check_changed(self, group: Mapping[str, Any], waits: bool = False) -> None:
        """As `Optimizer`'s; d lies on the device from the first step on, and is no reason not to look at the others."""
        super().check_changed(group, waits)
        names = [name for name in self.defaults if name in group and name not in (*SHARED, "lr")]
        if not any(holds_tensor(group[name]) for name in names):
            self.check_numbers({**self.defaults, **group, "lr": 0.0})

    def rule(self) -> Rule:
        return PRODIGY

    # The distance -----------------------------------------------------------------------------------------------------

    def share(self) -> dict[str, Tensor]:
        """Makes d and what belongs to it one tensor for all param groups, of the first one's values, on the device."""
        device = self.registry.device
        first = self.param_groups[0]
        for name in SHARED:
            number = first[name]
            if not isinstance(number, Tensor) or number.dtype != torch.float64 or number.device != device:
                with normal_tensors():
                    number = torch.as_tensor(number, dtype=torch.float64).to(device, copy=True).reshape(())
            for group in self.param_groups:
                group[name] = number
        return {name: first[name] for name in SHARED}

    def state_dict(self) -> dict[str, Any]:
        """As `Optimizer`'s, with d as it is now; where state is shown from the start, so is d as a tensor."""
        if self.states.is_partial and self.param_groups:
            self.share()
        found = super().state_dict()
        for group in found["param_groups"]:
            group.update({name: group[name].clone() for name in SHARED if isinstance(group[name], Tensor)})
        return found

    def groups_of(self, part: Part) -> list[dict[str, Any]]:
        return [{**group, **self._between} for group in super().groups_of(part)]

    _between: Mapping[str, Any] = {}  # numbers of the step that is under way

    def launch_parts(
        self,
        plans: PlanSet,
        pairs: Sequence[tuple[Part, Sources]],
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
    ) -> None:
        """Moments and sums of all regions, then the distance, then the values of all regions."""
        for group in self.param_groups:  # before any of their numbers is read here
            self.check_changed(group)
        rates = {float(group["lr"]) for group in self.param_groups if not isinstance(group["lr"], Tensor)}
        if len(rates) > 1:
            raise ValueError(
                f"Prodigy finds one rate for all param groups, and their lr are {sorted(rates)}; give all the same, "
                "and make a second optimizer for what should learn at another pace"
            )
        shared = self.share()
        self._between = {"d": shared["d"].clone()}
        try:
            for part, source in pairs:
                self.launch_part(plans, part, source, norm, scaling, "measure")
            sums = [part.plan.sums(self.kept_rule(), source) for part, source in pairs]
            next_d, moves = self._advance(shared, torch.cat(sums), norm, scaling["found_inf"])
            self._between = {**self._between, "next_d": next_d, "moves": moves}
            for part, source in pairs:
                self.launch_part(plans, part, source, norm, scaling, "move")
        finally:
            self._between = {}

    def _advance(
        self, shared: Mapping[str, Tensor], sums: Tensor, norm: Tensor, found_inf: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The next d, and 1 or 0: whether values move. `shared` moves unless the step is skipped.

        Args:
            sums: [variables, 2], 0 of those that take no step; over whole variables, wherever their parts lie.
        """
        group, d = self.param_groups[0], shared["d"]
        # In the order of the numbers: no layout shows.
        found, denominator = sums.sort(dim=0).values.sum(dim=0).unbind(0)
        beta3 = group["betas"][1] ** 0.5 if group["beta3"] is None else group["beta3"]
        numerator = beta3 * shared["d_numerator"] + found
        estimate = group["d_coef"] * numerator / denominator
        first = torch.maximum(d, estimate)
        start = torch.where(d == group["d0"], first, d)
        largest = torch.maximum(shared["d_max"], estimate)
        next_d = torch.minimum(largest, start * group["growth_rate"])
        moves = denominator != 0.0
        if self.skip_nonfinite:
            moves = moves & norm.isfinite()
        if found_inf is not None:
            moves = moves & (found_inf == 0.0)
        for name, number in (("d", next_d), ("d_max", largest), ("d_numerator", numerator)):
            shared[name].copy_(torch.where(moves, number, shared[name]))
        return shared["d"], moves.to(torch.float64)
