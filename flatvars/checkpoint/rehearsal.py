"""Trying, before anything is written, what only its owner can judge: whether a scheduler takes a state.

Whatever a `load_state_dict` writes in doing so is put back, whether it took the state or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any

import torch
from torch import nn

from ..optim.checks import misfit
from .plain import decode_map

WORDS = 200
"""Characters of an error that is passed on: some hold all they were given."""


def scheduler_problems(saved: Mapping[str, Any], scheduler: Any) -> Iterator[str]:
    """What keeps a scheduler from going on from what a file holds of one; nothing has changed afterwards.

    Args:
        saved: Its class and its state as JSON.

    Raises:
        DamagedFileError: a state that nobody wrote.
    """
    kind = type(scheduler).__name__
    if saved["class"] != kind:
        yield f"the file holds the state of a {saved['class']}, and a {kind} was given"
        return
    state, mine = decode_map(saved["state"], f"the state of a {kind}"), scheduler.state_dict()
    problem = misfit(mine, state, kind) or _of_another(scheduler, state) or _refused(scheduler, state)
    if problem:
        yield f"the file holds no state that this {kind} takes: {problem}"


def _of_another(scheduler: Any, state: Any) -> str | None:
    """A SequentialLR of three takes the states of two without a word, and the other way round it breaks halfway; and
    attributes of a method's name are taken as well."""
    methods = [key for key in state if isinstance(key, str) and callable(getattr(type(scheduler), key, None))]
    if methods:
        return f"{methods[0]} is a method of {type(scheduler).__name__}"
    for name, value in _attributes(scheduler).items():
        if isinstance(value, (list, tuple)) and any(hasattr(item, "load_state_dict") for item in value):
            theirs = state.get(name)
            if not isinstance(theirs, (list, tuple)):
                continue
            if len(theirs) != len(value):
                return f"{name} are {len(theirs)} in the file, and {len(value)} here"
            pairs = [(item, of) for item, of in zip(value, theirs, strict=True) if isinstance(of, Mapping)]
            return next((found for pair in pairs if (found := _of_another(*pair))), None)
    return None


def _refused(scheduler: Any, state: Any) -> str | None:
    kept = [_kept(container) for container in _containers(scheduler)]
    try:
        scheduler.load_state_dict(state)
    except Exception as error:  # of any scheduler's own
        return words_of(error)
    finally:
        for container, content in kept:
            container.clear()
            container.update(content) if isinstance(container, MutableMapping) else container.extend(content)
    return None


def words_of(error: Exception) -> str:
    """An error in words, whatever it holds."""
    return f"{type(error).__name__}: {str(error)[:WORDS]}"


def _kept(container: Any) -> tuple[Any, Any]:
    return container, dict(container) if isinstance(container, MutableMapping) else list(container)


def _attributes(thing: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(thing, "__dict__", {})
    return found


def _containers(scheduler: Any) -> list[Any]:
    """All that a load may write in: attributes of a scheduler, of those within it and of its functions; its numbers in
    the groups of its optimizer. The optimizer itself and modules hold what is no scheduler's."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [_attributes(scheduler)]
    while waiting:
        container = waiting.pop()
        if id(container) in found:
            continue
        found[id(container)] = container
        for item in list(container.values() if isinstance(container, MutableMapping) else container):
            if isinstance(item, torch.optim.Optimizer):
                found.update((id(group), group) for group in item.param_groups)
            elif isinstance(item, (MutableMapping, MutableSequence)):
                waiting.append(item)
            elif isinstance(item, tuple):
                waiting += [_attributes(each) for each in item if _is_part(each)]
            elif _is_part(item):
                waiting.append(_attributes(item))
    return list(found.values())


def _is_part(item: Any) -> bool:
    if isinstance(item, (torch.optim.Optimizer, nn.Module, type)) or not hasattr(item, "__dict__"):
        return False
    return hasattr(item, "load_state_dict") or callable(item)
