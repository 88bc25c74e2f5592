"""Benchmarks of flatvars; each runs as a module, for example ``python -m bench.train``."""
