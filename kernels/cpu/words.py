"""Functions of a few instructions of LLVM, for compiled functions to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba.extending import intrinsic


def word_of(result: Any, arguments: Sequence[Any], generate: Callable[..., Any]) -> Any:
    """A function that `generate(builder, *values)` writes.

    Args:
        result, arguments: Numba's types; what it is called with is converted.
    """

    def produce(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = generate(builder, *values)
        return context.get_dummy_value() if found is None else found

    signature = result(*arguments)
    # Numba asks a function for the names of its arguments.
    names = ", ".join(f"x{i}" for i in range(len(arguments)))
    space: dict[str, Any] = {"signature": signature, "produce": produce}
    exec(f"def word(typing, {names}): return signature, produce", space)
    return intrinsic(space["word"])
