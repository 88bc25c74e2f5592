"""Kernels of flatvars: rules, made into launches by Triton and by Numba. Import as `flatvars.kernels`."""
