"""Weight decay as param groups ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Rule, with_decay


def with_caution(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> Rule:
    """A rule with decoupled decay, cautious if a param group says `cautious_decay`; the others decay as ever."""
    return with_decay(rule, "cautious") if any(group.get("cautious_decay") for group in groups) else rule
