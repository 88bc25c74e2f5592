"""Modules on the meta device: which values their tensors get, and how they get memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..backend import backend_for
from ..errors import InitError, SpecError
from ..init import Initializer, Rules, choose, fill_, target_of, zeros
from ..init.fills import check_keys, check_seed
from ..memory.spec import VarSpec
from ..variables.registry import Registry
from .tensors import Found

Init = Callable[[nn.Module], object] | Rules


def plan_values(
    registry: Registry, module: nn.Module, needing: Sequence[tuple[Found, VarSpec]], prefix: str, init: Init | None
) -> Callable[[], object]:
    """How tensors that come from the meta device get values; refused before anything is carved if there is no way.

    Args:
        needing: Tensors of the module that lie on meta and will be variables, with their specs.
        init: As for `VarStore.from_module`.
    """
    if isinstance(init, Mapping):
        return plan_rules(registry, module, needing, prefix, init)
    return plan_reset(module, [entry for entry, _ in needing], init)


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
        initializer = choose_values(own, rules, entry.is_parameter, spec.shape)
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
            loose.append((path, choose_values([path], rules, False, tuple(buffer.shape))))
            check_fit(path, loose[-1][1], tuple(buffer.shape), buffer.dtype)
    return loose


def choose_values(names: list[str], rules: Rules, is_parameter: bool, shape: tuple[int, ...]) -> Initializer:
    """The initializer of a tensor that has no values.

    Raises:
        InitError: no rule matches, it says to leave the tensor alone, or it would draw a buffer at random.
    """
    initializer = choose(names, rules, shape if is_parameter else (1, 1))  # buffers take constants alone
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


# Without rules -------------------------------------------------------------------------------------------------------


def plan_reset(
    module: nn.Module, on_meta: list[Found], init: Callable[[nn.Module], object] | None
) -> Callable[[], object]:
    """The same by a function that writes values, or by the modules' own `reset_parameters`."""
    if init is not None:
        check_function(init)
        return keeping(module, lambda: module.apply(init))  # type: ignore[arg-type]
    meta = {id(entry.tensor) for entry in on_meta}
    needing = [
        (path, owner)
        for path, owner in module.named_modules()
        if any(id(p) in meta for p in owner._parameters.values())
        or any(b is not None and b.is_meta for b in owner._buffers.values())
    ]
    for path, owner in needing:
        if not callable(getattr(owner, "reset_parameters", None)):
            raise SpecError(
                f"module {path!r} ({type(owner).__name__}) is on the meta device and has no reset_parameters(), so its "
                "values are unknown; pass init=, a function that is applied to every submodule and writes them"
            )

    if not on_meta:
        return lambda: None

    def reset() -> None:
        for _, owner in needing:
            owner.reset_parameters()  # type: ignore[operator]

    return keeping(module, reset)


def keeping(module: nn.Module, write: Callable[[], object]) -> Callable[[], object]:
    """The same call, after which everything that had values when this one was made has them again."""
    real = [tensor for tensor in (*module.parameters(), *module.buffers()) if not tensor.is_meta]

    def kept() -> None:
        before = [(tensor, tensor.detach().clone()) for tensor in real]
        write()
        for tensor, values in before:
            tensor.copy_(values)

    return kept


def check_function(init: object) -> None:
    """Raises InitError for what is neither rules nor a function of modules."""
    if isinstance(init, Initializer) or not callable(init) or getattr(init, "__module__", "") == zeros.__module__:
        raise InitError(
            f"init= is {init!r}; give rules from name patterns to initializers, {{'*': fv.init.zeros()}}, or a "
            "function that is applied to every submodule and writes its values"
        )


# Memory --------------------------------------------------------------------------------------------------------------


def leave_meta(entry: Found, device: torch.device) -> None:
    """Replaces a Parameter on meta that cannot keep its identity: RNNs hold weak references to theirs."""
    memory = torch.empty(0, dtype=entry.tensor.dtype, device=device)
    fresh = nn.Parameter(memory, entry.tensor.requires_grad) if entry.is_parameter else memory
    fresh.__dict__.update(entry.tensor.__dict__)
    for place in entry.places:
        setattr(place.owner(), place.attribute, fresh)
        renew_references(place.owner())
    entry.tensor = fresh


def renew_references(module: nn.Module | None) -> None:
    """RNNs compare weak references with their weights: where they differ, cuDNN moves the weights out of the store."""
    if isinstance(module, nn.RNNBase):
        module._flat_weight_refs = [None if w is None else weakref.ref(w) for w in module._flat_weights]


def materialize_buffers(module: nn.Module, device: torch.device) -> None:
    """Gives meta buffers that the store did not take memory of their own; initialization writes them."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_meta:
                owner._buffers[name] = torch.zeros_like(buffer, device=device)
