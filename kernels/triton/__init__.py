"""Triton's kernels, for GPUs (CUDA, HIP) and in its interpreter; one file a launch, as in `kernels/cpu`."""
