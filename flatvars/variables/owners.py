"""Which module holds a variable, and under which name: noticing that a Parameter was replaced or removed."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from ..errors import AliasError
from .variable import Variable


class Held:
    """What modules must hold for some variables: a look into each module's own dict tells whether they do."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        places = [(owner, attribute, v.param) for v in variables for owner, attribute in living(v)]
        self._dicts = [_home(owner, attribute) for owner, attribute, _ in places]
        self._names = [attribute for _, attribute, _ in places]
        self._params = [param for _, _, param in places]

    def intact(self) -> bool:
        """Whether every module still holds the very Parameter. Three loops in C, about 0.1 us a variable."""
        return all(map(operator.is_, map(dict.get, self._dicts, self._names), self._params))


def living(variable: Variable) -> list[tuple[nn.Module, str]]:
    pairs = [(reference(), attribute) for reference, attribute in variable.owners]
    return [(owner, attribute) for owner, attribute in pairs if owner is not None]


def _home(owner: nn.Module, attribute: str) -> dict[str, Any]:
    return owner._buffers if attribute in owner._buffers else owner._parameters


def check_owners(variables: Sequence[Variable]) -> None:
    """Follows variables that modules hold under another name now (pruning, parametrizations).

    Raises:
        AliasError: a module holds another Parameter, or none, and the variable would be trained for nothing.
    """
    for variable in variables:
        pairs = living(variable)
        moved: list[tuple[weakref.ref[nn.Module], str]] = []
        for owner, attribute in pairs:
            places = [(owner, attribute)] if _home(owner, attribute).get(attribute) is variable.param else None
            moved += [(weakref.ref(module), name) for module, name in places or _search(owner, variable.param)]
        if pairs and not moved and not all(_is_none(owner, attribute) for owner, attribute in pairs):
            _explain(variable, *pairs[0])
        variable.owners = moved


def _is_none(owner: nn.Module, attribute: str) -> bool:
    """`module.bias = None`: the user took the parameter out on purpose."""
    return attribute in owner._parameters and owner._parameters[attribute] is None


def _search(root: nn.Module, param: Tensor) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in root.modules() for name, p in m._parameters.items() if p is param]


def _explain(variable: Variable, owner: nn.Module, attribute: str) -> NoReturn:
    current = _home(owner, attribute).get(attribute)
    place = f"{type(owner).__name__}.{attribute}"
    kind = "Parameter" if isinstance(variable.param, nn.Parameter) else "buffer"
    if current is None:
        raise AliasError(
            f"variable {variable.name!r} is no longer used: {place} is not a parameter any more (weight_norm and other "
            "reparametrizations make new ones). Reparametrize first and adopt the module into a new VarStore; or call "
            f"store.freeze({variable.name!r}) and store.add(name, parameter) for the new ones"
        )
    raise AliasError(
        f"variable {variable.name!r} is no longer used: {place} holds another {kind} of shape "
        f"{tuple(current.shape)} and dtype {current.dtype}, which the store does not hold. Call store.rebind() to "
        "take the new one in under the same name"
    )


def current_param(variable: Variable) -> Tensor:
    """What the owners hold now: another tensor only if all of them agree on it and none holds the old one."""
    held = []
    for owner, attribute in living(variable):
        tensor = _home(owner, attribute).get(attribute)
        if tensor is None or tensor is variable.param or _search(owner, variable.param):
            return variable.param
        held.append(tensor)
    return held[0] if held and all(tensor is held[0] for tensor in held) else variable.param
