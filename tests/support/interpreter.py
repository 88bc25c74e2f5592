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
    if tl.core.is_builtin(tl.load):  # outside of a launch nothing has been replaced
        interpreter._patch_lang(self.fn)
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def replace_words_once() -> None:
    interpreter.InterpretedFunction.__call__ = _call
