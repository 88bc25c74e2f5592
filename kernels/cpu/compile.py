"""A device function as a function of LLVM.

Numba compiles Python as Python means it, where a number without a decimal point is a 64-bit integer and one with it is
double: a rule in float32 would then run in double. So the function is compiled from its source anew, with every number
in the dtype it computes in, `tl` and its callees replaced by theirs, and nothing else changed. Numba contracts and
reorders nothing unless it is told to.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ..errors import RuleError
from ..lang import PRIMITIVES, WORDS, is_device_function, is_words, source_of, tl, used_names
from . import primitives, saved

# In which rules and norms are computed.
DTYPES: dict[torch.dtype, type] = {torch.float32: np.float32, torch.float64: np.float64}

# `error_model`: division by zero is infinity. `forceinline`: a call in a loop would be neither vectorized nor hoisted.
# Python itself calls none of them: two wrappers fewer to compile.
OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def compiled(function: Callable[..., Any]) -> Any:
    """Numba's function of plain Python that other kernels of this package call."""
    return numba.njit(**OPTIONS)(function)


@dataclass(frozen=True)
class Native:
    """Machine code.

    Attributes:
        symbol: Its name, by which other machine code may call it.
        address: Of the function, by C's calling convention.
        library: What keeps it in memory.
    """

    symbol: str
    address: int
    library: Any

    def __post_init__(self) -> None:
        llvm.add_symbol(self.symbol, self.address)


_natives: dict[str, Native] = {}
"""By key: of all threads, and of functions that two callers wrote alike."""


def native(function: Callable[..., Any], signature: Any) -> Native:
    """Machine code of a function, with its address: what a launch calls. From disk, if a process made it before."""
    try:
        key = saved.key_of(function, signature)
    except saved.UnkeyedError:
        made = _made(function, signature)
        return Native(made.native_name, made.address, made)
    with global_compiler_lock:
        if key not in _natives:
            _natives[key] = _keyed(function, signature, key)
        return _natives[key]


def _keyed(function: Callable[..., Any], signature: Any, key: str) -> Native:
    found = saved.load(key)
    if found is not None:
        name, code = found
        library = _loaded(name, code)
        return Native(f"flatvars.{key}", library.get_pointer_to_function(name), library)
    # Its own symbol must be another than those of all other files: a process loads many.
    named = FunctionType(function.__code__, function.__globals__, function.__name__, None, function.__closure__)
    named.__qualname__ = f"{function.__qualname__}.{key}"
    made = _made(named, signature)
    library = made._library
    symbols = [each.name for each in library.get_defined_functions() if each.linkage == llvm.Linkage.external]
    if all(key in symbol for symbol in symbols):
        saved.save(key, made.native_name, library.serialize_using_object_code()[2][0])
    return Native(f"flatvars.{key}", made.address, made)


def _made(function: Callable[..., Any], signature: Any) -> Any:
    """Numba's callback."""
    return numba.cfunc(signature, error_model="numpy")(function)


def _loaded(name: str, code: bytes) -> Any:
    """Numba's library of an object file."""
    # Numba wants a module that others may link with, and looks for the symbol there.
    shared = llvm.parse_assembly(f'define void @"{name}"() {{ ret void }}').as_bitcode()
    return cpu_target.target_context.codegen().unserialize_library((name, "object", (code, shared)))


@intrinsic
def wide_vectors(typing: Any) -> Any:
    """Lets LLVM use vectors of 512 bits in the function of machine code that calls this, where a processor has them.

    Of many of these LLVM takes half, as their clock falls a little with the whole. Steps gain: AdamW of 4.2 million
    bfloat16 elements took 3.7 ms in place of 4.9, and 5.3 in place of 6.9 with averages of squares rounded at random.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # Past the check of llvmlite's set, which knows no attributes with values.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@functools.cache
def twin(function: Callable[..., Any], dtype: type) -> Any:
    """The device function in `dtype`, np.float32 or np.float64, for other compiled functions to call."""
    if function in PRIMITIVES:
        return getattr(primitives, function.__name__)
    numbers: dict[str, Any] = {}
    tree = _Numbers(dtype, numbers).visit(source_of(function))
    names = {name: _replaced(function, name, value, dtype) for name, value in used_names(function).items()}
    namespace: dict[str, Any] = {**names, **numbers, "__name__": function.__module__}
    code = compile(ast.fix_missing_locations(ast.Module([tree], [])), inspect.getfile(function), "exec")
    exec(code, namespace)
    return compiled(namespace[function.__name__])


class _Numbers(ast.NodeTransformer):
    """Gives every number the dtype of the arithmetic, but for those that count elements of a tuple."""

    def __init__(self, dtype: type, numbers: dict[str, Any]) -> None:
        self.dtype, self.numbers = dtype, numbers

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list = []
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.Subscript:
        node.value = self.visit(node.value)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """-x is 0 - x, as in Triton: it differs in the sign of zero."""
        if not isinstance(node.op, ast.USub):
            node.operand = self.visit(node.operand)
            return node
        difference = ast.BinOp(ast.Constant(0.0), ast.Sub(), node.operand)
        ast.copy_location(difference.left, node)
        return ast.copy_location(self.generic_visit(difference), node)  # type: ignore[return-value]

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            return node
        name = f"number_{len(self.numbers)}"
        self.numbers[name] = self.dtype(node.value)
        return ast.copy_location(ast.Name(name, ast.Load()), node)


@functools.cache
def _words(dtype: type) -> ModuleType:
    module = ModuleType("flatvars_words")
    for name in WORDS:
        setattr(module, name, twin(getattr(tl, name), dtype))
    return module


def _replaced(function: Callable[..., Any], name: str, value: Any, dtype: type) -> Any:
    if is_words(value):
        return _words(dtype)
    if is_device_function(value) or value in PRIMITIVES:
        return twin(value, dtype)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return dtype(value)
    kind = type(value).__name__
    raise RuleError(
        function,
        None,
        f"{name!r} is {kind}, neither a number nor a device function",
        "decorate it with device_function",
    )


def float_type(dtype: type) -> Any:
    """Numba's name of a dtype."""
    return numba.float64 if dtype is np.float64 else numba.float32
