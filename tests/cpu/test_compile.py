"""What machine code is compiled for."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
import pytest
from numba import types

from flatvars.kernels.cpu.compile import compiled, wide_vectors
from flatvars.kernels.cpu.memory import read_float, write_float


def test_whole_vectors_are_used() -> None:
    """LLVM takes half of 512 bits where it is not told, and llvmlite is told past its check of attributes."""
    if not llvm.get_host_cpu_features().get("avx512f"):
        pytest.skip("this processor has no vectors of 512 bits")

    @compiled
    def double(address: Any, count: Any) -> None:
        wide_vectors()
        for i in range(count):
            write_float(address, i, read_float(address, i) + read_float(address, i))

    def run(address: Any, count: Any) -> None:
        double(address, count)

    made = numba.cfunc(types.void(types.int64, types.int64))(run)
    assert "<16 x float>" in made.inspect_llvm()
