"""Compiled code without a GPU: what a launcher would launch, for any target."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from flatvars.kernels.triton.launch import TILE, Launch, tile_of
from flatvars.kernels.triton.philox import SHORT_A, SHORT_B

SM80, SM90, SM100 = (GPUTarget("cuda", capability, 32) for capability in (80, 90, 100))
GFX942 = GPUTarget("hip", "gfx942", 64)
# What random words are multiplied by, as signed numbers.
PHILOX = {str(factor.value - 2**32) for factor in (SHORT_A, SHORT_B)}


@dataclass(frozen=True)
class Captured:
    """A launch that was caught on its way to the device: kernel, arguments, options."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def _caught(launches: list[Captured]) -> Iterator[None]:
    run = JITFunction.run

    def catch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Captured(kernel, args, kwargs))

    JITFunction.run = catch
    try:
        yield
    finally:
        JITFunction.run = run


def captured(launch: Callable[[], object]) -> Captured:
    """The one launch that a call makes; nothing runs."""
    (only,) = captured_all(launch, 1)
    return only


def captured_all(launch: Callable[[], object], count: int) -> list[Captured]:
    """The launches that a call makes, in order; nothing runs."""
    launches: list[Captured] = []
    with _caught(launches):
        launch()
    assert len(launches) == count, f"{len(launches)} launches instead of {count}"
    return launches


def threads(target: GPUTarget, tile: Launch = TILE) -> int:
    """Threads of a program."""
    return (tile.hip_warps if target.backend == "hip" else tile.warps) * target.warp_size


def options_of(launch: Captured, target: GPUTarget) -> dict[str, object]:
    """The compiler options of a launch on a target, which may not be this machine's."""
    return tile_of(launch.kwargs["BLOCK"]).options(target.backend == "hip") if "BLOCK" in launch.kwargs else {}


_KNOWN: dict[tuple[Any, ...], Code] = {}


def compile_for(target: GPUTarget, launch: Captured) -> Code:
    """Compiles a launch as Triton would on that target: same specialization of pointers and integers, same options.

    Once in a process: what has the same source, target and options is the same code.
    """
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    kwargs = {**launch.kwargs, **options_of(launch, target), "debug": False}
    bound, specialization, options = bind(*launch.args, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(backend, kwargs, bound, specialization, options)
    source = ASTSource(kernel, signature, constexprs, attrs)
    key = (source.hash(), target, str(options))
    if key not in _KNOWN:
        compiled = triton.compile(source, target=target, options=options.__dict__)
        _KNOWN[key] = Code(target, compiled, signature, launch.kwargs.get("BLOCK", TILE.block))
    return _KNOWN[key]


@dataclass(frozen=True)
class Code:
    """What came out of the compiler.

    Attributes:
        signature: Type of every argument, as the launcher's values decide it.
        block: Elements of a tile.
    """

    target: GPUTarget
    compiled: Any
    signature: dict[str, Any]
    block: int = TILE.block

    @property
    def ttir(self) -> str:
        return self.compiled.asm["ttir"]

    @property
    def assembly(self) -> str:
        """PTX, or AMD's assembly."""
        return self.compiled.asm["ptx" if self.target.backend == "cuda" else "amdgcn"]

    def wide(self, kind: str) -> int:
        """How many 16-byte accesses of a kind ("ld" or "st") a thread makes, in all branches together."""
        return self.widths[kind].count(16)

    @property
    def tile(self) -> Launch:
        """Its row of the launch table."""
        return tile_of(self.block)

    @cached_property
    def widths(self) -> dict[str, list[int]]:
        """Bytes of every global load and store instruction, by "ld" and "st"."""
        widths: dict[str, list[int]] = {"ld": [], "st": []}
        if self.target.backend == "cuda":
            pattern = r"\b(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.[bfsu](\d+)\b"
            for kind, vector, bits in re.findall(pattern, self.assembly):
                widths[kind].append(int(vector or 1) * int(bits) // 8)
        else:
            pattern = r"\b(?:global|buffer|flat)_(load|store)_(dwordx(\d)|dword|ushort|short|ubyte|byte|u16|b16)"
            for kind, name, count in re.findall(pattern, self.assembly):
                size = 4 * int(count or 1) if name.startswith("dword") else 1 if "byte" in name else 2
                widths["ld" if kind == "load" else "st"].append(size)
        return widths

    def more_loads_than(self, other: Code) -> Counter[int]:
        """How many loads of which width the other code does without."""
        assert not Counter(other.widths["ld"]) - Counter(self.widths["ld"])
        return Counter(self.widths["ld"]) - Counter(other.widths["ld"])

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a program: more where tiles change hands between threads."""
        return int(self.compiled.metadata.shared)

    def masked_scalars(self, itemsize: int) -> int:
        """PTX: loads of one element behind a predicate, as a ragged end needs."""
        return len(re.findall(rf"@%p\d+ ld\.global\.b{8 * itemsize} ", self.assembly))

    def double_arithmetic(self) -> list[str]:
        """PTX: instructions that compute in double precision; a conversion from it does not."""
        named = set(re.findall(r"^\s*(?:@!?%p\d+ )?(\w+[\w.]*\.f64)\b", self.assembly, re.MULTILINE))
        return sorted(name for name in named if not name.startswith(("cvt.", "ld.", "st.", "mov.")))

    def double_per_tile(self) -> list[str]:
        """Arithmetic in double precision, in Triton's own language, of what every program does before it arrives."""
        tiles, arrived, _ = self.ttir.partition("tt.atomic_rmw")
        assert arrived
        return re.findall(r"(arith\.(?:add|sub|mul|div)f|math\.\w+) [^\n]*f64", tiles)

    def arrivals(self) -> list[bool]:
        """PTX: of every arrival with release and acquire, whether a barrier lies between it and the store before."""
        *before, _ = re.split(r"atom\.global\.gpu\.acq_rel\.add", self.assembly)
        return ["bar.sync" in text[text.rindex("st.global") :] if "st.global" in text else False for text in before]

    def narrow_products(self) -> list[str]:
        """Multiplications of 32-bit integers in Triton's own language: where an offset would wrap.

        But for those of Philox, which are meant to.
        """
        constants = dict(re.findall(r"(%\S+) = arith\.constant (?:dense<)?(-?\d+)", self.ttir))
        found = re.findall(r"arith\.muli [^\n]*[:x ]i32\b", self.ttir)
        return [line for line in found if not {constants.get(x) for x in re.findall(r"%[^\s,]+", line)} & PHILOX]

    @cached_property
    def spilled(self) -> int:
        """Bytes of a thread's stack (on AMD: registers) that do not fit into registers."""
        if self.target.backend == "hip":
            return sum(map(int, re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", self.assembly)))
        on_stack = self._resources["STACK"] + self._resources["LOCAL"]
        # Triton 3.7 assembles with an option against a fault of ptxas 13, by which registers are given out otherwise:
        # the norm in blocks of 1,024 keeps one on the stack of sm_100, once a program. Without it, none is.
        return self._spilled_without_option() if on_stack and self.target.arch >= 100 else on_stack

    @property
    def registers(self) -> int:
        """NVIDIA: of a thread."""
        return self._resources["REG"]

    def machine_code(self) -> list[str]:
        """NVIDIA: the instructions, in the order of the file."""
        listing = self._read(triton.knobs.nvidia.nvdisasm.path, "-c")
        return [line for line in listing.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/", line)]

    @cached_property
    def _resources(self) -> dict[str, int]:
        """What a thread takes, as the machine code says: registers, and bytes of stack."""
        listing = self._read(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
        found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
        assert set(found) == {"REG", "STACK", "LOCAL"}, listing
        return found

    def _spilled_without_option(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "kernel.ptx"
            source.write_text(self.assembly)
            name = re.search(r"^\.target (\w+)", self.assembly, re.MULTILINE)
            assert name is not None
            tool = triton.knobs.nvidia.ptxas_blackwell.path
            command = [tool, "-v", "--fmad=false", "--gpu-name", name[1], str(source), "-o", f"{folder}/kernel.cubin"]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        spilled = re.findall(r"(\d+) bytes spill", said)
        assert spilled
        return sum(map(int, spilled))

    def _read(self, tool: str, option: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder) / "kernel.cubin"
            binary.write_bytes(self.compiled.asm["cubin"])
            return subprocess.run([tool, option, str(binary)], check=True, capture_output=True, text=True).stdout
