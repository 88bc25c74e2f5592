"""`python -m tests machine --seed N --minutes M`: sequences that nobody has run yet, one seed after the other."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings

import torch

from tests.machine.machine import run_sequences

SEQUENCES = 20
"""Of a seed: about ten seconds."""


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests machine", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first one; the time if not given")
    parser.add_argument("--minutes", type=float, default=0.0, help="how long to go on; one seed is always run")
    parser.add_argument("--shrink", action="store_true", help="look for a shorter sequence that fails as well")
    return parser.parse_args(arguments)


def is_clean(seed: int, shrink: bool) -> bool:
    """Runs the sequences of one seed, and prints what failed and how to repeat it."""
    try:
        run_sequences(seed, SEQUENCES, shrink)
    except Exception as error:
        traceback.print_exception(error)
        print(f"\nto repeat it: python -m tests machine --seed {seed} --shrink", flush=True)
        return False
    return True


def main(arguments: list[str]) -> int:
    """Runs seeds until time is over.

    Returns:
        How many of them failed.
    """
    given = options(arguments)
    warnings.simplefilter("error")  # as pytest is set up to do
    torch.set_num_threads(1)
    end, seed, failed = time.monotonic() + 60.0 * given.minutes, given.seed, 0
    while True:
        failed += not is_clean(seed, given.shrink)
        seed += 1
        if time.monotonic() >= end:
            break
    runs = seed - given.seed
    print(f"seeds {given.seed} to {seed - 1}: {runs * SEQUENCES} sequences, {failed} of {runs} seeds failed")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
