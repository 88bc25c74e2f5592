"""The words a rule may use, and what a device function is.

A device function is plain Python over these words. It has three lives, all of the same bits:

- called as it is, over NumPy scalars and arrays: the reference that people and tests read;
- `kernels.triton.compile.twin`: a function of Triton, for GPUs;
- `kernels.cpu.compile.twin`: a function of LLVM, by Numba.

Each compiler replaces the primitives below by its own; all else is made of them and of single IEEE operations, so there
is no library function whose last bit depends on the machine. Importing this module imports no compiler.
"""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import os
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from .errors import RuleError

HAS_TRITON = find_spec("triton") is not None
# Triton reads the same variable when a kernel is decorated: the kernels of this process then run on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

# Packages of kernels that can compile a rule, loaded when they are asked for.
COMPILERS = ("cpu", "triton") if HAS_TRITON else ("cpu",)

_F = TypeVar("_F", bound=Callable[..., Any])


def device_function(function: _F) -> _F:
    """Says that `function` may be called from rules and kernels; compilers find it when one that calls it is compiled.

    The body may use its arguments, arithmetic, comparisons, tuples, numbers, other device functions, and the words of
    `tl`. `Rule.check` says which line is not allowed.
    """
    function.__flatvars_device__ = True  # type: ignore[attr-defined]
    return function


def is_device_function(value: Any) -> bool:
    return isinstance(value, FunctionType) and hasattr(value, "__flatvars_device__")


def used_names(function: Any) -> dict[str, Any]:
    """What the names that a function does not define mean: of its module, and of the functions around it.

    Raises:
        RuleError: there is no such name.
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    around = {name: cell.cell_contents for name, cell in cells}
    found: dict[str, Any] = {}
    line = function.__code__.co_firstlineno
    for instruction in dis.get_instructions(function):
        line = _line_of(instruction) or line
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"):
            name = instruction.argval
            known = next((names for names in (around, function.__globals__, vars(builtins)) if name in names), None)
            if known is None:
                raise RuleError(function, line, f"{name!r} is not defined", "define it above, or pass it in `hyper`")
            found[name] = known[name]
    return found


def _line_of(instruction: Any) -> int | None:
    # Python 3.10 has no positions, and 3.13 made a truth value of `starts_line`.
    positions = getattr(instruction, "positions", None)
    line: int | None = instruction.starts_line if positions is None else positions.lineno
    return line


def source_of(function: Any) -> ast.FunctionDef:
    """The syntax tree of a function, with the line numbers of its file.

    Raises:
        RuleError: its source is not to be found.
    """
    try:
        lines, first = inspect.getsourcelines(function)
    except OSError:
        raise RuleError(
            function, None, "its source, which compilers read, is not to be found", "define it in a file or a notebook"
        ) from None
    tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise RuleError(function, first, "it is not a plain function", "write it with def")
    ast.increment_lineno(tree, first - 1)
    return tree


# Primitives: every compiler has its own -------------------------------------------------------------------------------


def sqrt_rn(x: Any) -> Any:
    """IEEE square root."""
    return np.sqrt(x)


def div_rn(x: Any, y: Any) -> Any:
    """IEEE quotient; `/` is one too, but on a GPU."""
    return x / y


def where(condition: Any, x: Any, y: Any) -> Any:
    return np.where(condition, x, y)[()]


def absolute(x: Any) -> Any:
    return np.abs(x)


def nearest(x: Any) -> Any:
    """The nearest integer, ties to even, of |x| < 2^22."""
    return np.rint(x) + 0.0  # without a sign of zero, as the others


def power_of_two(n: Any) -> Any:
    """2^n of an integer in the dtype of a number, within the range of normal numbers; else the end of that range."""
    wide = np.asarray(n).dtype == np.float64
    low, high = (-1022.0, 1023.0) if wide else (-126.0, 127.0)
    kept = np.where(n < high, n, high)
    kept = np.where(kept > low, kept, low)
    return np.ldexp(np.ones_like(kept, dtype=np.float64 if wide else np.float32), kept.astype(np.int32))[()]


def split_exponent(x: Any) -> tuple[Any, Any]:
    """x = mantissa * 2^exponent of a normal positive number, mantissa in [sqrt(1/2), sqrt(2)), both of x's dtype."""
    x = np.asarray(x)
    # Bits of sqrt(1/2), length of the mantissa, of float64 and float32.
    integer, half, length = (np.int64, 0x3FE6A09E667F3BCD, 52) if x.dtype == np.float64 else (np.int32, 0x3F3504F3, 23)
    bits = x.view(integer) - integer(half)
    mantissa = ((bits & integer((1 << length) - 1)) + integer(half)).view(x.dtype)
    return mantissa[()], (bits >> integer(length)).astype(x.dtype)[()]


PRIMITIVES = (sqrt_rn, div_rn, where, absolute, nearest, power_of_two, split_exponent)


# Words made of them, without annotations, which Triton would look up ----------------------------------------------


@device_function
def maximum(x, y):
    """The larger one; NaN of NaN, as torch's."""
    return where((x > y) | (x != x), x, y)


@device_function
def minimum(x, y):
    return where((x < y) | (x != x), x, y)


@device_function
def sign(x):
    """-1, 0 or 1; NaN of NaN."""
    return where(x > 0.0, 1.0, where(x < 0.0, -1.0, x))


@device_function
def exp(x):
    """e^x within 2 ulp, gradual underflow and overflow included.

    x = n log(2) + r with |r| < 0.35, and the Taylor series of e^r to the 13th power, whose rest is below 1e-17.
    """
    kept = where(x > -800.0, where(x < 800.0, x, 800.0), -800.0)
    n = nearest(kept * 1.4426950408889634)
    # log(2) in two parts: the first has few bits, so its product with an integer is exact.
    r = (kept - n * 0.693359375) - n * -2.1219444005469058e-04
    series = r * 1.6059043836821613e-10 + 2.08767569878681e-09
    series = series * r + 2.505210838544172e-08
    series = series * r + 2.755731922398589e-07
    series = series * r + 2.7557319223985893e-06
    series = series * r + 2.48015873015873e-05
    series = series * r + 1.984126984126984e-04
    series = series * r + 1.388888888888889e-03
    series = series * r + 8.333333333333333e-03
    series = series * r + 4.1666666666666664e-02
    series = series * r + 1.6666666666666666e-01
    series = series * r + 0.5
    series = (series * r) * r + r + 1.0
    half = nearest(n * 0.5)
    power = (series * power_of_two(half)) * power_of_two(n - half)
    return where(x == x, power, x)


@device_function
def log(x):
    """Natural logarithm within 2 ulp; of zero -inf, below it NaN.

    log(m) = 2 atanh((m - 1) / (m + 1)), as a series in the square, which is below 0.03: to the 23rd power.
    """
    small = x < 1e-30
    mantissa, exponent = split_exponent(where(small, x * 18446744073709551616.0, x))
    exponent = where(small, exponent - 64.0, exponent)
    s = div_rn(mantissa - 1.0, mantissa + 1.0)
    z = s * s
    series = z * 0.08695652173913043 + 0.09523809523809523
    series = series * z + 0.10526315789473684
    series = series * z + 0.11764705882352941
    series = series * z + 0.13333333333333333
    series = series * z + 0.15384615384615385
    series = series * z + 0.18181818181818182
    series = series * z + 0.2222222222222222
    series = series * z + 0.2857142857142857
    series = series * z + 0.4
    series = series * z + 0.6666666666666666
    high = exponent * 0.693359375
    low = (series * z) * s + exponent * -2.1219444005469058e-04
    result = (low + 2.0 * s) + high
    result = where(x > 0.0, result, where(x == 0.0, -INFINITY, x - x + QUIET))
    return where(x < INFINITY, result, where(x == INFINITY, x, result))


@device_function
def power(x, exponent):
    """x^exponent of x >= 0 and an exponent above 0: as good as the product of the exponent and log(x) is."""
    return where(x == 0.0, 0.0, exp(exponent * log(x)))


INFINITY = float("inf")
QUIET = float("nan")

# What rules call `tl`, after `triton.language`: the one name that their file needs.
WORDS = ("sqrt_rn", "div_rn", "where", "abs", "maximum", "minimum", "exp", "log", "sign")
_NAMED: dict[str, Any] = {"abs": absolute}
tl: Any = SimpleNamespace(**{name: _NAMED.get(name) or globals()[name] for name in WORDS})


def is_words(value: Any) -> bool:
    """Whether a name in a rule's file means the words: `tl` from here, or triton.language itself."""
    return value is tl or (isinstance(value, ModuleType) and value.__name__ == "triton.language")
