"""VarStore: the object users hold. It delegates: carving to the registry, gradients to `grads`, modules to `bind`.

One file per kind of call: `making` (modules, names), `looking` (buffers, variables), `training` (masks, gradients),
`moving` (device, dtype, values of others), `saving` (files, snapshots).
"""

from __future__ import annotations

from .making import Making
from .moving import Moving
from .saving import Saving

__all__ = ["VarStore"]


class VarStore(Making, Moving, Saving):
    """Named variables in one contiguous buffer per dtype, with a parallel stream of gradients.

    Args:
        device: Where the buffers lie. The CPU if not given.
        dtype: Of variables that are declared without one.
        seed: Of initializers that the store runs.
        on_duplicate: What `Path` does with a name in use: "suffix" (declares `name__N`, as tch does) or "error".
        grads: "gather" (gradients stay where autograd leaves them until a step or `accumulate` reads them) or "views"
            (every `.grad` is a view of the flat gradient stream and autograd adds into it in place).

    Example:
        >>> store = VarStore.from_module(nn.Linear(4, 2))
        >>> store["weight"].shape
        torch.Size([2, 4])
    """
