"""Modules on the meta device: which values their tensors get, by rules from name patterns to initializers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..backend import backend_for
from ..errors import InitError
from ..init import Initializer, Rules, choose, fill_, target_of
from ..init.fills import check_keys, check_seed
from ..memory.spec import VarSpec
from ..variables.registry import Registry

if TYPE_CHECKING:
    from .adopt import Found


def plan_rules(
    registry: Registry, module: nn.Module, needing: Sequence[tuple[Found, VarSpec]], prefix: str, rules: Rules
) -> Callable[[], object]:
    """How variables without values get them, one launch per dtype; everything is checked before anything is carved.

    Args:
        needing: Tensors of the module that lie on meta and will be variables, with their specs.
        prefix: Of the store's names; patterns match the module's own.

    Returns:
        What to call once they are carved.

    Raises:
        InitError: no rule for a tensor, or one that does not fit.
    """
    check_seed(registry.seed)
    backend_for(registry.device)
    check_keys(entry.names[0] for entry, _ in needing)
    chosen: list[tuple[str, Initializer]] = []
    for entry, spec in needing:
        own = [name.removeprefix(f"{prefix}.") if prefix else name for name in entry.names]
        initializer = choose_values(own, rules, isinstance(entry.tensor, nn.Parameter))
        check_fit(own[0], initializer, spec.shape, spec.dtype)
        chosen.append((entry.names[0], initializer))
    loose = choose_buffers(module, {id(entry.tensor) for entry, _ in needing}, rules)

    def fill() -> None:
        variables = [(registry.by_name[name], initializer) for name, initializer in chosen]
        fill_([target_of(registry, variable, initializer) for variable, initializer in variables], registry.seed)
        for variable, initializer in variables:
            variable.initializer = initializer
        for path, initializer in loose:
            buffer = module.get_buffer(path)
            (value,) = initializer.draw(tuple(buffer.shape), buffer.dtype).numbers
            buffer.fill_(value)

    return fill


def choose_buffers(module: nn.Module, taken: set[int], rules: Rules) -> list[tuple[str, Initializer]]:
    """Buffers on meta that the store does not take, by name, with their constants."""
    loose = []
    for path, buffer in module.named_buffers():
        if buffer.is_meta and id(buffer) not in taken:
            loose.append((path, choose_values([path], rules, False)))
            check_fit(path, loose[-1][1], tuple(buffer.shape), buffer.dtype)
    return loose


def choose_values(names: list[str], rules: Rules, is_parameter: bool) -> Initializer:
    """The initializer of a tensor that has no values.

    Raises:
        InitError: no rule matches, it says to leave the tensor alone, or it would draw a buffer at random.
    """
    initializer = choose(names, rules)
    if initializer is None:
        raise InitError(
            f"{names[0]!r} is on the meta device and has no values that a rule None could leave alone; "
            "give it an initializer"
        )
    if not is_parameter and not initializer.is_constant:
        raise InitError(
            f"buffer {names[0]!r} is on the meta device and the first rule that matches is {initializer}; buffers take "
            "zeros(), ones() or constant(): put a rule for it before that one"
        )
    return initializer


def check_fit(name: str, initializer: Initializer, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises InitError where an initializer does not fit."""
    try:
        if torch.Size(shape).numel():
            initializer.draw(shape, dtype)
    except InitError as error:
        raise InitError(f"variable {name!r}: {error}") from None
