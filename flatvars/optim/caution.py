"""Caution as param groups ask for it: of weight decay, and of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Rule, cautious_updates, with_decay


def with_caution(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> Rule:
    """A rule with decoupled decay, as param groups with `cautious_decay` or `cautious` ask for; the others see none."""
    if any(group.get("cautious") for group in groups):
        rule = cautious_updates(rule)
    return with_decay(rule, "cautious") if any(group.get("cautious_decay") for group in groups) else rule
