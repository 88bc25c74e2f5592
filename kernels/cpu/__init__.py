"""Numba's kernels, for CPUs, over the tables that Triton's walk too; one file a launch, as in `kernels/triton`."""
