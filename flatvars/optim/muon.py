"""Muon for the matrices of hidden layers, and AdamW for everything else, in one object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..variables.registry import HasRegistry
from ..variables.selectors import Selector
from .formats import StateFormat
from .matrix_optimizer import MatrixOptimizer, Split
from .muon_settings import Adjustment
from .newton_schulz import KELLER, CoefficientSet


class Muon(MatrixOptimizer):
    """Muon (Jordan et al. 2024): momentum, made orthogonal by Newton-Schulz iterations; AdamW for what is no matrix.

    `Muon(params, ...)` steps matrices, and is torch.optim.Muon. `Muon(store, ...)` steps all of a store: the matrices
    that `muon` selects by Muon, the rest by AdamW with the numbers of `rest`; `describe()` says who gets what. A param
    group says by its entry "rule", "Muon" or "AdamW", who steps it. Matrices of one shape are one batch of products, in
    the place where they lie: the store lays them side by side, so that nothing is stacked or copied. Other conventions
    than torch's: `muon_settings`.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate, before `adjust_lr_fn`.
        weight_decay: Decoupled, with the learning rate as it is.
        momentum: Of the buffer.
        nesterov: Look ahead by one momentum.
        ns_coefficients: Three numbers, three for each iteration, or a name: "keller", "quintic", "polar", "deepseekv4".
        eps: Least norm of a matrix.
        ns_steps: Iterations; with None, as many as the set of coefficients has.
        adjust_lr_fn: Factor of the learning rate: "original" (or None) sqrt(max(1, rows / columns)), "match_rms_adamw"
            0.2 sqrt(max(rows, columns)), with which AdamW's learning rates fit, "spectral_norm" sqrt(out / in), "none".
        muon: Of a store, which variables are Muon's; by default the matrices but for embeddings, whatever is tied to
            one, the last Linear, and what is named as a norm, bias, gate, scale or head.
        rest: Numbers of AdamW for all others: lr (1e-3; Muon's with "match_rms_adamw"), betas, eps, weight_decay,
            amsgrad.
        split: By name pattern: into how many equal parts (heads; 3 for fused query, key and value), or of which sizes,
            the outputs of a matrix are split, each of which is a matrix of its own.
        in_out: Name patterns of matrices that are stored [in, out], as Conv1D of transformers does.
        sum_momentum: The buffer is a sum, momentum M + g, and no average: 1 / (1 - momentum) times as large.
        add_eps: Add `eps` to the norm.
        cautious_decay: Decay only what the step moves towards zero.
        convolutions: Take tensors of more axes as matrices [out, all others].
        each_shard: Where `fully_shard` divided the matrices, make each rank's rows orthogonal for themselves: without a
            message, but another optimizer, whose steps depend on the mesh. By default one rank puts a matrix together.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`; the norm is that of all
            groups.

    Raises:
        ValueError: a number out of range, or a parameter of Muon's that is no matrix.

    Example:
        >>> fv.optim.Muon(store, lr=0.02, rest=dict(lr=3e-4, betas=(0.9, 0.95)), split={"*.qkv.weight": 3})
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
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
        each_shard: bool = False,
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
            "each_shard": each_shard,
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
