"""`python -m flatvars`, and the command `flatvars`: look into checkpoints, compare, convert and verify them."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
