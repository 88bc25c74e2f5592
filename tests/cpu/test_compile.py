"""What machine code is compiled for."""

from __future__ import annotations

from flatvars.kernels.cpu.fill import drawer


def test_whole_vectors_are_asked_for() -> None:
    """LLVM takes half of 512 bits where it is not told, and llvmlite is told past its check of attributes."""
    assert '"prefer-vector-width"="512"' in drawer().inspect_llvm()
