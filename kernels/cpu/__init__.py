"""The CPU backend: rules and launches compiled by Numba, through LLVM, over the tables that the GPU kernels walk too."""
