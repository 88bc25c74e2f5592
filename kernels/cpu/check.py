"""Whether Numba takes a rule, told without a step."""

from __future__ import annotations

import numpy as np
from numba.core.errors import NumbaError

from ..errors import RuleError
from ..rules import Rule
from .statistics import updater as statistics_updater
from .update import updater


def check(rule: Rule) -> None:
    """Compiles a rule for both of its precisions.

    Raises:
        RuleError: with what the compiler says.
    """
    for dtype in (np.float32, np.float64):
        name = np.dtype(dtype).name
        try:
            updater(rule, name, (name,) * len(rule.states), dtype, False)
            if rule.statistics is not None:
                statistics_updater(rule, name, (name,) * len(rule.states), dtype, False)
        except NumbaError as error:
            line = getattr(getattr(error, "loc", None), "line", None)
            said = " ".join(str(error).split())
            raise RuleError(
                rule.function, line, f"Numba does not compile it: {said}", "see `rule` for words"
            ) from error
