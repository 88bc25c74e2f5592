"""NorMuon: Muon whose directions are as long for every output as for the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..variables.registry import HasRegistry
from ..variables.selectors import Selector
from ..variables.variable import Variable
from .formats import StateFormat
from .matrices import MatrixShape
from .matrix_optimizer import MatrixOptimizer, Split
from .matrix_shapes import output_axis
from .muon_settings import Adjustment
from .newton_schulz import KELLER, CoefficientSet
from .row_moments import SECOND_MOMENT, Outputs


class NorMuon(MatrixOptimizer):
    """NorMuon (Li et al. 2025, arXiv 2510.05491): Muon, with a second moment of each output of a matrix.

    What Newton-Schulz iterations make of the momentum has rows of other lengths for every output; here each is divided
    by the root of an average of its mean square, and the matrix then has the norm that it had: see `row_moments.py` for
    the formula. All else is `Muon`'s: defaults, conventions, and AdamW for what is no matrix. The authors take
    lr=0.02 and weight_decay=0. One number for each output is kept, "second_momentum_buffer", in float32 (float64 for
    float64): [outputs, 1], or [1, outputs] of a matrix of `in_out`.

    Args:
        params: As for `Muon`, and so are all that are not here.
        beta2: Of the average of mean squares of an output.
        lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn: As for `Muon`.
        muon, rest, split, in_out, sum_momentum, add_eps, cautious_decay, convolutions: As for `Muon`.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a number out of range, or a parameter that is no matrix.

    Example:
        >>> fv.optim.NorMuon(store, lr=0.02, weight_decay=0.0, rest=dict(lr=3e-4, betas=(0.9, 0.95)))
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        beta2: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: CoefficientSet | Sequence[float] | Sequence[Sequence[float]] = KELLER,
        eps: float = 1e-7,
        ns_steps: int | None = 5,
        adjust_lr_fn: Adjustment | None = None,
        *,
        muon: Selector = None,
        rest: Mapping[str, Any] | None = None,
        split: Split | None = None,
        in_out: str | Iterable[str] = (),
        sum_momentum: bool = False,
        add_eps: bool = False,
        cautious_decay: bool = False,
        convolutions: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "beta2": beta2,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        options = {
            "split": split,
            "in_out": in_out,
            "sum_momentum": sum_momentum,
            "add_eps": add_eps,
            "cautious_decay": cautious_decay,
            "convolutions": convolutions,
        }
        super().__init__(
            params,
            defaults,
            options,
            muon,
            rest,
            store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
            stats=stats,
        )

    def check_numbers(self, numbers: Mapping[str, Any]) -> None:
        super().check_numbers(numbers)
        if numbers.get("rule") != "AdamW" and not 0.0 <= numbers["beta2"] < 1.0:
            raise ValueError(f"Invalid beta2: {numbers['beta2']}; it must be at least 0 and below 1")

    def loose_states(
        self, shape: tuple[int, ...], group: Mapping[str, Any], names: Iterable[str]
    ) -> dict[str, tuple[int, ...]]:
        if group.get("rule") == "AdamW" or len(shape) < 2:
            return {}
        return {SECOND_MOMENT: Outputs(output_axis(names, group), 0).kept_shape(shape)}

    def matrix_shapes(self, variables: Sequence[Variable]) -> list[MatrixShape]:
        numbers = {v.id: number for number, some in enumerate(self.membership.groups) for v in some}
        groups = [self.param_groups[numbers[v.id]] for v in variables]
        outputs = [Outputs(output_axis(v.names, g), numbers[v.id]) for v, g in zip(variables, groups, strict=True)]
        shapes = super().matrix_shapes(variables)
        return [replace(shape, outputs=one) for shape, one in zip(shapes, outputs, strict=True)]
