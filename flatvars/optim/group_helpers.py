"""Param groups that people write by hand in every project: who decays, and learning rates by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..variables.registry import HasRegistry, Registry
from ..variables.selectors import Pattern, Selector, as_select, fits
from ..variables.variable import Variable
from .muon_choice import EMBEDDINGS

NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)
NO_DECAY = frozenset({"bias", "norm", "ln", "embed", "embedding", "embeddings", "wte", "wpe"})
"""Parts of names, between dots and underscores, of what does not decay where no module says what it is."""


@dataclass(frozen=True)
class Decaying:
    """A predicate for selectors: what weight decay is usually for, of the variables that fit `within`.

    Matrices and kernels, but for weights of norms and of embeddings, whatever is tied to one, and what is named so.
    Vectors and scalars, biases among them, do not decay.

    Attributes:
        within: Only these; all if None.
        exclude: None of these decays.
        beyond: None of these is meant.
        decays: Whether those are meant that decay, or the others.
    """

    within: Selector = None
    exclude: Selector = None
    beyond: Selector = None
    decays: bool = True

    def __call__(self, variable: Variable) -> bool:
        if not variable.is_parameter or not fits(variable, as_select(self.within)):
            return False
        if self.beyond is not None and fits(variable, as_select(self.beyond)):
            return False
        return self._decay(variable) is self.decays

    def _decay(self, variable: Variable) -> bool:
        if len(variable.shape) < 2 or (self.exclude is not None and fits(variable, as_select(self.exclude))):
            return False
        if any(isinstance(place.owner(), (*EMBEDDINGS, *NORMS)) for place in variable.places):
            return False
        words = {word for name in variable.names for part in name.split(".") for word in part.lower().split("_")}
        return not words & NO_DECAY


def decay_groups(store: HasRegistry, weight_decay: float = 0.1, *, exclude: Selector = None) -> list[dict[str, Any]]:
    """Two param groups: matrices and kernels with weight decay; norms, biases, embeddings and all vectors without.

    Variables that are declared later join the one or the other.

    Args:
        store: The variables; give it to the optimizer as well.
        weight_decay: Of the first group.
        exclude: Patterns of what should not decay either.

    Example:
        >>> optimizer = fv.optim.AdamW(fv.optim.decay_groups(store, 0.1), store=store, lr=3e-4)
    """
    _check(store, "decay_groups")
    return [
        {"params": Decaying(exclude=_kept(exclude)), "weight_decay": weight_decay},
        {"params": "*", "weight_decay": 0.0},
    ]


def layerwise_lr(
    store: HasRegistry,
    lr: float = 1e-3,
    decay: float = 0.75,
    *,
    weight_decay: float | None = None,
    blocks: str | None = None,
) -> list[dict[str, Any]]:
    """Param groups whose learning rates fall from the output to the input: layer-wise learning rate decay.

    Layers are what comes before the first block (embeddings), each block, and what comes after the last (head): layer
    i of n gets lr decay^(n - 1 - i), as BEiT's and timm's `layer_decay`. Blocks are variables whose names have a number
    in one place, "encoder.layer.3.attention.weight"; of several such places, the one with most numbers. Variables that
    are declared later join their block, or the last layer.

    Args:
        store: The variables; give it to the optimizer as well.
        lr: Of the last layer.
        decay: From a layer to the one before it.
        weight_decay: Each layer becomes two groups, as those of `decay_groups`; one, without an entry for it, if None.
        blocks: What stands before the number, "encoder.layer".

    Raises:
        ValueError: no variable has a number in its name, or `decay` is not above 0.

    Example:
        >>> groups = fv.optim.layerwise_lr(store, lr=1e-3, decay=0.8, weight_decay=0.05)
        >>> optimizer = fv.optim.AdamW(groups, store=store)
    """
    registry = _check(store, "layerwise_lr")
    if not decay > 0.0:
        raise ValueError(f"decay={decay}: give the factor from a layer to the one before it, above 0")
    variables = [v for v in registry.variables if v.is_parameter]
    prefix, numbers = _blocks(variables, blocks)
    first = next(i for i, v in enumerate(variables) if _number(v.name, prefix) is not None)
    before = tuple(v.name for v in variables[:first])
    layers: list[tuple[Pattern, ...]] = [before] if before else []
    layers += [(re.compile(rf"^{re.escape(prefix)}{number}\."),) for number in numbers]
    groups: list[dict[str, Any]] = []
    known = tuple(pattern for patterns in layers for pattern in patterns)
    for i, patterns in enumerate([*layers, None]):
        rate = lr * decay ** (len(layers) - i)
        if weight_decay is None:
            groups.append({"params": "*" if patterns is None else list(patterns), "lr": rate})
            continue
        for decays, number in ((True, weight_decay), (False, 0.0)):
            chosen = Decaying(patterns, beyond=known if patterns is None else None, decays=decays)
            groups.append({"params": chosen, "lr": rate, "weight_decay": number})
    return groups


def _number(name: str, prefix: str) -> int | None:
    """Of the block that a variable is in."""
    found = re.match(rf"{re.escape(prefix)}(\d+)\.", name)
    return None if found is None else int(found[1])


def _blocks(variables: Iterable[Variable], blocks: str | None) -> tuple[str, list[int]]:
    """What stands before the numbers of blocks, and the numbers."""
    numbers: dict[str, set[int]] = {}
    for variable in variables:
        found = re.match(r"((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.", variable.name)
        if found is not None:
            numbers.setdefault(found[1], set()).add(int(found[2]))
    if blocks is not None:
        prefix = f"{blocks.rstrip('.')}." if blocks else ""
        chosen = {number for v in variables if (number := _number(v.name, prefix)) is not None}
        numbers = {prefix: chosen} if chosen else {}
    if not numbers:
        about = "" if blocks is None else f" behind {blocks!r}"
        raise ValueError(
            f"no variable of the store has a number in its name{about}, so there are no layers to tell apart; write "
            'the param groups by hand, [{"params": "encoder.*", "lr": 1e-4}, {"params": "*"}]'
        )
    prefix = max(numbers, key=lambda one: len(numbers[one]))
    return prefix, sorted(numbers[prefix])


def _check(store: HasRegistry, name: str) -> Registry:
    if not isinstance(store, HasRegistry):
        raise TypeError(
            f"{name} takes a store, and a {type(store).__name__} was given; make one with VarStore.from_module(module)"
        )
    store.registry.settle()
    return store.registry


def _kept(selector: Selector) -> Selector:
    """A selector that stays what it is."""
    return tuple(selector) if isinstance(selector, list) else selector
