"""Kernels of flatvars: Triton on GPUs, `kernels.eager` on torch everywhere else. Import as `flatvars.kernels`."""
