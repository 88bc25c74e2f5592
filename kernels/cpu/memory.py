"""Memory by address, as compiled functions read and write it: words of tables, elements of streams, counters.

Streams of one launch never overlap. LLVM is told so by a scope for each stream; without it, a loop over three states
would check ten pairs of addresses, or run element by element.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .formats import Format

I8, I16, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(64)


def pointer(builder: Any, address: Any, type_: Any, index: Any = None) -> Any:
    found = builder.inttoptr(address, type_.as_pointer())
    return found if index is None else builder.gep(found, [index])


def _reader(type_: Any, result: Any) -> Any:
    @intrinsic
    def read(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, index = (
                context.cast(builder, a, t, types.int64) for a, t in zip(arguments, signature.args, strict=True)
            )
            return builder.load(pointer(builder, address, type_, index))

        return result(address, index), generate

    return read


def _writer(type_: Any, kind: Any) -> Any:
    @intrinsic
    def write(typing: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, index = (
                context.cast(builder, a, t, types.int64) for a, t in zip(arguments[:2], signature.args[:2], strict=True)
            )
            value = context.cast(builder, arguments[2], signature.args[2], kind)
            builder.store(value, pointer(builder, address, type_, index))
            return context.get_dummy_value()

        return types.void(address, index, value), generate

    return write


read_byte = _reader(I8, types.uint8)
read_int = _reader(I64, types.int64)
read_int32 = _reader(ir.IntType(32), types.int32)
read_float = _reader(ir.FloatType(), types.float32)
read_double = _reader(ir.DoubleType(), types.float64)
write_byte = _writer(I8, types.uint8)
write_int16 = _writer(I16, types.int16)
write_int = _writer(I64, types.int64)
write_int32 = _writer(ir.IntType(32), types.int32)
write_float = _writer(ir.FloatType(), types.float32)
write_double = _writer(ir.DoubleType(), types.float64)


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Asks for the cache line of an address, which may be any, and waits for nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, i32 = pointer(builder, arguments[0], I8), ir.IntType(32)
        type_ = ir.FunctionType(ir.VoidType(), [place.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, type_, "llvm.prefetch.p0")
        builder.call(function, [place, i32(0), i32(3), i32(1)])  # to read, to stay, of data
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _adder(type_: Any, result: Any) -> Any:
    """Adds to an integer that other threads add to as well, and returns what it was; orders memory both ways."""

    @intrinsic
    def add(typing: Any, address: Any, amount: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = context.cast(builder, arguments[0], signature.args[0], types.int64)
            amount = context.cast(builder, arguments[1], signature.args[1], result)
            return builder.atomic_rmw("add", pointer(builder, address, type_), amount, "acq_rel")

        return result(address, amount), generate

    return add


fetch_add = _adder(I64, types.int64)
fetch_add_int32 = _adder(ir.IntType(32), types.int32)


def stack(size: int) -> Any:
    """`memory()`: the address of `size` bytes of the call's own stack."""

    @intrinsic
    def memory(typing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            # Not `alloca_once`, whose zeros LLVM takes seconds to look at.
            with builder.goto_entry_block():
                found = builder.alloca(ir.ArrayType(I8, size))
            found.align = 64
            return builder.ptrtoint(found, I64)

        return types.int64(), generate

    return memory


def address_of(symbol: str) -> Any:
    """`address()`: that of what LLVM knows by a name. In the code itself stands the name: it is kept for processes in
    which addresses are others."""

    @intrinsic
    def address(typing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            type_ = ir.FunctionType(ir.VoidType(), [])
            return builder.ptrtoint(cgutils.get_or_insert_function(builder.module, type_, symbol), I64)

        return types.int64(), generate

    return address


def caller(arguments: list[Any], result: Any = types.void) -> Any:
    """`call(address, arguments...)`: machine code of another function, by its address.

    Compiled into every launch that needs it, it would take longer than the launch itself.
    """

    @intrinsic
    def call(typing: Any, address: Any, *given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            packed = signature.args[1]
            found = [
                context.cast(builder, builder.extract_value(values[1], i), is_, wanted)
                for i, (is_, wanted) in enumerate(zip(packed, arguments, strict=True))
            ]
            returned = ir.VoidType() if result == types.void else context.get_value_type(result)
            type_ = ir.FunctionType(returned, [value.type for value in found])
            answer = builder.call(builder.inttoptr(values[0], type_.as_pointer()), found)
            return context.get_dummy_value() if result == types.void else answer

        return result(types.int64, types.StarArgTuple(given)), generate

    return call


# Elements of streams --------------------------------------------------------------------------------------------------


def mark(builder: Any, instruction: Any, streams: int, stream: int) -> None:
    """Says that an access is to one of several streams that do not overlap."""
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, f"flatvars {streams} streams")])
    scopes = [
        module.add_metadata([ir.MetaDataString(module, f"flatvars {streams} {i}"), domain]) for i in range(streams)
    ]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[stream]]))
    others = [scope for i, scope in enumerate(scopes) if i != stream]
    if others:
        instruction.set_metadata("noalias", module.add_metadata(others))


def load_raw(builder: Any, format_: Format, address: Any, index: Any, streams: int, stream: int) -> Any:
    instruction = builder.load(pointer(builder, address, format_.stored, index))
    mark(builder, instruction, streams, stream)
    return instruction


def store_raw(builder: Any, raw: Any, address: Any, index: Any, streams: int, stream: int) -> None:
    mark(builder, builder.store(raw, pointer(builder, address, raw.type, index)), streams, stream)


def element_load(format_: Format, compute: Any, streams: int, stream: int) -> Any:
    """`load(address, index)`: an element of a stream, as a number of `compute`, Numba's float32 or float64."""

    @intrinsic
    def load(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, index = arguments
            raw = load_raw(builder, format_, address, index, streams, stream)
            return format_.widen(builder, raw, context.get_value_type(compute))

        return compute(types.int64, types.int64), generate

    return load


def element_store(format_: Format, compute: Any, streams: int, stream: int) -> Any:
    """`store(address, index, x)`: rounds to nearest even."""

    @intrinsic
    def store(typing: Any, address: Any, index: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, index, x = arguments
            store_raw(builder, format_.round(builder, x), address, index, streams, stream)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, compute), generate

    return store
