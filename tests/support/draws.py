"""What numbers are rounded by at random, by NumPy: the specification."""

from __future__ import annotations

import numpy as np

VALUES, STATES = 0x100, 0x200


def short_philox(counter, key):
    """Philox4x32-7: four words of each counter, uint32 [n, 4] from [n, 4]; the key is 64 bits."""
    c0, c1, c2, c3 = np.array(counter, np.uint64).T & np.uint64(0xFFFFFFFF)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(7):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0), b & np.uint64(0xFFFFFFFF)
        c2, c3 = (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1), a & np.uint64(0xFFFFFFFF)
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def draws(seed, key, step, purpose, count):
    """16 bits of each element of a variable, uint32 [count]; `purpose` is VALUES, or STATES and the state's place."""
    block = np.arange(-(-count // 8), dtype=np.uint64)
    counter = [block, block >> np.uint64(32), np.full_like(block, step), np.full_like(block, purpose)]
    words = short_philox(np.stack(counter, axis=1), seed ^ key)
    return words.view(np.uint16).reshape(-1)[:count].astype(np.uint32)
