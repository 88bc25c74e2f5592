"""Kernels of flatvars: rules, made into launches by Triton for GPUs and by Numba for CPUs. Import as `flatvars.kernels`."""
