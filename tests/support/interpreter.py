"""Triton's interpreter without what it does again at each call of a device function.

It replaces the words of `tl` by those that compute, about two thousand names looked at each time, when a kernel is
launched, and once more in every device function that the kernel calls, where nothing is left to replace: 60 % of a
step's time (27 of 46 s of the steps in `test_masked_launches.py -k 'every_rule and adam'`, by cProfile).
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    # Outside of a launch nothing has been replaced, and within one only what the kernel's own module sees: `tl`.
    # Triton's own device functions (`tl.zeros_like`) see its core.
    seen = set(map(id, self.fn.__globals__.values()))
    missing = any(id(module) in seen and tl.core.is_builtin(module.load) for module in (tl, tl.core))
    scope = interpreter._patch_lang(self.fn) if missing else None
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error
    finally:
        if scope is not None:
            scope.restore()


def replace_words_once() -> None:
    interpreter.InterpretedFunction.__call__ = _call
