"""Frameworks that train models, where they are installed: the extra `frameworks` brings them."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

import pytest


def needed(name: str) -> ModuleType:
    """Imports a framework, or skips the module that asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they deprecate parts of each other
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"{name} is not installed: pip install 'flatvars[frameworks]'", allow_module_level=True)
