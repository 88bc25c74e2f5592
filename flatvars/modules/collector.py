"""Python's collector of cycles, which counts new objects: thousands of tensors would start it again and again.

What adoption makes is all to stay, so each of its turns finds nothing; they took a quarter of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """Inside, nothing is collected on the way, where the caller has not turned that off anyhow."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
