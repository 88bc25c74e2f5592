"""The safetensors header: written, and read from files that nobody vouches for.

Source of the format: https://github.com/huggingface/safetensors#format. Whatever a file claims is checked against its
size before memory is taken for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NoReturn

import torch

from ..errors import DamagedFileError

MAX_HEADER = 100_000_000
"""Bytes. The limit of the reference implementation: what we write loads there, and nothing larger is read."""

METADATA = "__metadata__"
"""The name in a header that is no tensor's."""

MAX_AXES = 64
"""Axes of a tensor in torch."""

_DTYPES = {
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "C64": "complex64",
    "F32": "float32",
    "I32": "int32",
    "U32": "uint32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I16": "int16",
    "U16": "uint16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPE_OF: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in _DTYPES.items()}
CODE_OF: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPE_OF.items()}

UNREAD_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
"""Of an element of dtypes that others write, and that are no dtype of a variable."""

CODE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
"""How the format names a dtype, today's and tomorrow's."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file: bytes `start` to `stop`, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor whose dtype is not read here: it is named, and its bytes are compared, but it has no values.

    Attributes:
        code: What the file calls the dtype.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def as_bytes(self) -> TensorInfo:
        return TensorInfo(torch.uint8, (self.stop - self.start,), self.start, self.stop)


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        entries: Tensors by name, in the order of their bytes.
        unread: Those among them whose dtype is not read, which `entries` does not hold.
        metadata: The strings under `__metadata__`.
        data_start: Byte of the file where the tensors begin.
    """

    entries: dict[str, TensorInfo]
    unread: dict[str, Unread]
    metadata: dict[str, str]
    data_start: int


def encode_entries(entries: Mapping[str, TensorInfo]) -> str:
    """The tensors as members of a JSON object."""
    # By hand: a checkpoint of 10,000 variables has 30,000 of them, and json.dumps would take most of a save's time.
    return ",".join(
        f'{quote(name)}:{{"dtype":"{CODE_OF[entry.dtype]}","shape":[{",".join(map(str, entry.shape))}],'
        f'"data_offsets":[{entry.start},{entry.stop}]}}'
        for name, entry in entries.items()
    )


def encode_header(entries: str, metadata: Mapping[str, str]) -> bytes:
    """The bytes before the data: a length and JSON, padded with spaces to a multiple of 8.

    Args:
        entries: What `encode_entries` returned.
    """
    text = f'{{"{METADATA}":{json.dumps(dict(metadata))}{"," if entries else ""}{entries}}}'.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(read: Callable[[int, int], Any], size: int, where: str) -> Header:
    """Reads and checks a header.

    Args:
        read: From (first byte, count) to bytes.
        size: Bytes of the whole file.
        where: Its name, for errors.

    Raises:
        DamagedFileError: anything that the format does not allow; what, is said.
    """
    if size < 8:
        raise DamagedFileError(f"{where} has {size} bytes and is no safetensors file: those start with 8 of length")
    length = int.from_bytes(bytes(read(0, 8)), "little")
    if length > MAX_HEADER or length > size - 8:
        raise DamagedFileError(
            f"{where} claims a header of {length:,} bytes, but has {size:,} and headers are at most {MAX_HEADER:,}; it "
            "is truncated, damaged or no safetensors file"
        )
    content = parse_json(bytes(read(8, length)), f"the header of {where}")
    if not isinstance(content, dict):
        raise DamagedFileError(f"the header of {where} is a JSON {type(content).__name__}, not an object")
    metadata = _metadata(content.pop(METADATA, None), where)
    found = {name: _entry(name, value, where) for name, value in content.items()}
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)))
    _check_cover(ordered, size - 8 - length, where)
    unread = {name: entry for name, entry in ordered.items() if isinstance(entry, Unread)}
    entries = {name: entry for name, entry in ordered.items() if not isinstance(entry, Unread)}
    return Header(entries, unread, metadata, 8 + length)


def parse_json(text: bytes, where: str) -> Any:
    """JSON of a file: UTF-8, no duplicate keys, no NaN, no nesting that would exhaust the stack.

    Raises:
        DamagedFileError: anything else.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in result if names.count(name) > 1)
            raise DamagedFileError(f"{where} has the name {twice!r} twice")
        return result

    def constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{where} is not JSON that can be read: {error}") from error


def _metadata(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise DamagedFileError(f"the __metadata__ of {where} is not an object of strings")
    return value


def _is_list_of_sizes(value: Any, limit: int) -> bool:
    # `type`, not isinstance: True is an int, too.
    return (
        isinstance(value, list)
        and len(value) <= limit
        and all(type(number) is int and 0 <= number < 2**63 for number in value)
    )


def _entry(name: str, value: Any, where: str) -> TensorInfo | Unread:
    label = f"tensor {name!r} of {where}"
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DamagedFileError(f"{label} has a name that is no Unicode text") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{label} is described by a JSON {type(value).__name__}, not an object")
    fields: list[Any] = [value.get(key) for key in ("dtype", "shape", "data_offsets")]
    code, shape, offsets = fields
    if not isinstance(code, str) or not CODE.fullmatch(code):
        raise DamagedFileError(f"{label} has dtype {str(code)[:40]!r}; known are {', '.join(DTYPE_OF)}")
    if not _is_list_of_sizes(shape, MAX_AXES):
        raise DamagedFileError(f"{label} has shape {str(shape)[:80]}, which is not up to {MAX_AXES} lengths >= 0")
    if not _is_list_of_sizes(offsets, 2) or len(offsets) != 2:
        raise DamagedFileError(f"{label} has data_offsets {str(offsets)[:80]}, which are not two bytes >= 0")
    start, stop = offsets
    dtype = DTYPE_OF.get(code)
    bits = UNREAD_BITS.get(code) if dtype is None else 8 * dtype.itemsize
    needed = stop - start if bits is None else -(-math.prod(shape) * bits // 8)
    if stop - start != needed or needed < 0:
        raise DamagedFileError(
            f"{label} has {stop - start} bytes (data_offsets {offsets}), but {code} of shape {shape} needs {needed}"
        )
    if math.prod(max(length, 1) for length in shape) >= 2**63:
        raise DamagedFileError(f"{label} has shape {shape}: there is no tensor of so many elements, even of none")
    if dtype is None:
        return Unread(code, tuple(shape), start, stop)
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_cover(entries: Mapping[str, TensorInfo | Unread], size: int, where: str) -> None:
    """Tensors lie one behind the other and fill the file: none overlaps, nothing is hidden between or behind them."""
    end = 0
    for name, entry in entries.items():
        if entry.start != end:
            problem = "overlaps the one before it" if entry.start < end else "leaves a gap before it"
            raise DamagedFileError(f"tensor {name!r} of {where} starts at byte {entry.start} and {problem} ({end})")
        end = entry.stop
    if end != size:
        problem = "truncated" if end > size else "longer than its header says"
        raise DamagedFileError(f"{where} is {problem}: its tensors take {end:,} bytes, and {size:,} are there")


def listing(items: Iterable[object], limit: int = 5) -> str:
    """A few items in words: for errors that would otherwise be as long as the model."""
    shown = [repr(item) for item in items]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more
