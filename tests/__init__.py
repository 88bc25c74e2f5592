"""Tests. Run from the checkout with `python -m pytest`, which puts it on the path: helpers are `tests.support.*`."""
