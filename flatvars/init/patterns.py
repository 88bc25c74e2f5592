"""Whole modules and stores by name patterns, in one launch per dtype.

    rules = {**fv.init.keep_norms(model), "*.bias": fv.init.zeros(), "*": fv.init.kaiming_uniform()}
    fv.init.apply_(model, rules, seed=7)

Values depend on the seed, the variable's name and the element's index alone; `fills.py` says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..distributed.shards import stretches_of
from ..errors import ForeignParameterError, InitError
from ..memory.spec import contiguous_stride
from ..variables.registry import HasRegistry, Registry, variable_of
from ..variables.selectors import names as fits_pattern
from ..variables.variable import Variable
from .fills import Target, fill_, prepare
from .initializers import Constant, Initializer, Scaled, check_initializer

# Names, globs or regular expressions, as selectors have them.
Rules = Mapping["str | re.Pattern[str]", "Initializer | None"]


def choose(names: Iterable[str], rules: Rules, shape: tuple[int, ...]) -> Initializer | None:
    """The initializer of the first rule whose pattern matches one of a variable's names; None says leave alone.

    Raises:
        InitError: no rule matches, a rule is neither an initializer nor None, or a pattern brings an initializer that
            is meant for matrices to a vector.
    """
    names = list(names)
    if not isinstance(rules, Mapping):
        raise InitError(
            f"rules are {rules!r}; give a dict from name patterns to initializers: {{'*': fv.init.zeros()}}"
        )
    for pattern, initializer in rules.items():
        if any(fits_pattern(name, pattern) for name in names):
            if initializer is not None:
                check_initializer(initializer, f"rule {pattern!r}")
                if isinstance(initializer, Scaled) and pattern not in names:
                    check_matrix(names[0], pattern, initializer, shape)
            return initializer
    raise InitError(
        f"no rule matches {names[0]!r} (rules: {', '.join(map(repr, rules)) or 'none'}); add a pattern, "
        "or '*': None to leave all others alone"
    )


def check_matrix(name: str, pattern: str | re.Pattern[str], initializer: Scaled, shape: tuple[int, ...]) -> None:
    """Raises InitError for a vector that a pattern brought to an initializer which takes its scale from a matrix."""
    if len(shape) < 2 and initializer.fan_in is None and initializer.fan_out is None:
        raise InitError(
            f"rule {pattern!r} brings {initializer}, which takes its scale from the widths of a matrix, to {name!r} of "
            f"shape {shape}: a bias, or the gain of a norm. Put rules for these before it: "
            "{**fv.init.keep_norms(model), '*.bias': fv.init.zeros(), ...}; or name the variable exactly, or give "
            "fan=, if that is meant"
        )


def keep_norms(module: nn.Module) -> dict[str | re.Pattern[str], Initializer | None]:
    """Rules that keep normalization layers as they are: put them before others.

    A layer is one whose class has "Norm" in its name and whose parameters have at most one axis, as those of torch and
    of most libraries. What has values keeps them; from the meta device gains are ones, all else zeros, and running
    variances ones.

    Args:
        module: Whose names the rules have: what `apply_` or `from_module` will be given.

    Returns:
        A rule for each parameter and buffer of these layers, by its exact name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> fv.init.keep_norms(model)
        {'1.weight': None, '1.bias': None}
    """
    rules: dict[str | re.Pattern[str], Initializer | None] = {}
    for path, layer in module.named_modules():
        tensors = {**layer._parameters, **layer._buffers}
        own = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if "Norm" not in type(layer).__name__ or any(tensor.dim() > 1 for tensor in own.values()):
            continue
        for name, tensor in own.items():
            begins = Constant(1) if name in ("weight", "scale", "gamma", "running_var") else Constant(0)
            rules[f"{path}.{name}" if path else name] = begins if tensor.is_meta else None
    return rules


def targets_of(registry: Registry, variable: Variable, initializer: Initializer) -> list[Target]:
    """The same, in pieces where this rank has a shard: what it holds is what all of the variable would hold there."""
    if variable.whole is variable.param:
        return [target_of(registry, variable, initializer)]
    shape, spec = tuple(variable.whole.shape), variable.spec
    stream = variable.param.detach().as_strided((spec.numel,), (1,))
    if spec.stride != contiguous_stride(spec.shape) and spec.numel:
        raise InitError(f"the shard of {variable.name!r} has strides {spec.stride}, and row-major ones are needed")
    found, offset = [], 0
    for first, count in stretches_of(variable.whole):
        about = variable.name, initializer, stream, offset, shape, contiguous_stride(shape), first, count
        found.append(Target(*about))
        offset += count
    return found


def target_of(registry: Registry, variable: Variable, initializer: Initializer) -> Target:
    """A variable of a store as something to fill; the generator's key is its first name there."""
    if registry.sharding is not None:  # a plain parameter beside shards lies where it lay
        flat = variable.param.detach().as_strided((variable.spec.numel,), (1,))
        return Target(variable.name, initializer, flat, 0, variable.spec.shape, variable.spec.stride)
    spec = variable.spec
    return Target(
        variable.name, initializer, registry.streams.values(spec.dtype), variable.span.offset, spec.shape, spec.stride
    )


def refill_(registry: Registry, variables: Iterable[Variable], seed: int | None = None) -> None:
    """Runs the variables' own initializers again: one launch per dtype.

    Args:
        seed: In [0, 2^64); the registry's if not given.

    Raises:
        InitError: variables that no initializer wrote; nothing is written then.
    """
    variables = list(variables)
    unknown = [v.name for v in variables if not isinstance(v.initializer, Initializer)]
    if unknown:
        raise InitError(
            f"no initializer wrote {', '.join(map(repr, unknown[:10]))}, so their first values cannot be drawn again; "
            "leave them out, or use fv.init.apply_"
        )
    registry.check_aliases()
    targets = [target for variable in variables for target in targets_of(registry, variable, variable.initializer)]
    for work in prepare(targets, registry.seed if seed is None else seed):
        work()
    torch.autograd.graph.increment_version([variable.param for variable in variables])


def apply_(module_or_store: nn.Module | HasRegistry, rules: Rules, seed: int | None = None) -> None:
    """Writes new values into the parameters of an adopted module or of a store: one launch per dtype.

    Args:
        module_or_store: For a module, patterns match its own parameter names; for a store, the store's. Values follow
            from the store's names in both cases. Buffers are left alone.
        rules: From names, globs or compiled regular expressions to initializers; the first that matches one of a
            parameter's names wins. None leaves a parameter alone.
        seed: In [0, 2^64); the store's if not given.

    Raises:
        ForeignParameterError: a parameter that no store holds.
        InitError: a parameter that no rule matches, or an initializer that does not fit one.
        AliasError: a parameter that left its store's memory. Nothing is written in all three cases.

    Example:
        >>> store = fv.VarStore.from_module(model)
        >>> rules = {**fv.init.keep_norms(model), "*.bias": fv.init.zeros(), "*": fv.init.xavier_uniform()}
        >>> fv.init.apply_(model, rules, seed=1)
    """
    named = _of_module(module_or_store) if isinstance(module_or_store, nn.Module) else _of_store(module_or_store)
    plans: dict[Registry, dict[Variable, Initializer]] = {}
    for registry, variable, names in named:
        initializer = choose(names, rules, tuple(variable.whole.shape))
        if initializer is not None:
            plans.setdefault(registry, {})[variable] = initializer
    works: list[Callable[[], None]] = []
    for registry, chosen in plans.items():
        registry.check_aliases()
        pairs = chosen.items()
        targets = [target for variable, how in pairs for target in targets_of(registry, variable, how)]
        works += prepare(targets, registry.seed if seed is None else seed)
    for work in works:
        work()
    for chosen in plans.values():
        # Kernels do not move version counters: a backward pass over the old values must notice.
        torch.autograd.graph.increment_version([variable.param for variable in chosen])
        for variable, initializer in chosen.items():
            variable.initializer = initializer


# Parameters with the names that patterns are matched with.
Named = Iterable[tuple[Registry, Variable, list[str]]]


def _of_store(store: HasRegistry) -> Named:
    registry = store.registry
    return [(registry, v, v.names) for v in registry.variables if not v.is_buffer]


def _of_module(module: nn.Module) -> Named:
    names: dict[int, list[str]] = {}
    params: dict[int, nn.Parameter] = {}
    for name, param in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
        params[id(param)] = param
    found = []
    for key, param in params.items():
        place = variable_of(param)
        if place is None:
            raise ForeignParameterError(
                f"parameter {names[key][0]!r} belongs to no store, and initialization writes stores; adopt the module "
                "first: fv.VarStore.from_module(module)"
            )
        found.append((*place, names[key]))
    return found


def tensor(
    initializer: Initializer,
    shape: Iterable[int],
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A new tensor with the values that a variable of this name and shape gets in a store of this seed.

    Raises:
        InitError: the initializer does not fit.

    Example:
        >>> fv.init.tensor(fv.init.eye(), (2, 2), "weight")
        tensor([[1., 0.],
                [0., 1.]])
    """
    shape = tuple(shape)
    flat = torch.empty(torch.Size(shape).numel(), dtype=dtype, device=device)
    fill_([Target(name, initializer, flat, 0, shape, contiguous_stride(shape))], seed)
    return flat.view(shape)
