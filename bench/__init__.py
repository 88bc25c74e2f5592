"""Benchmarks of flatvars: `python -m bench` against its peers, `python -m bench.train` a whole training job."""
