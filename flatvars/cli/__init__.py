"""The commands of `python -m flatvars`."""

from .main import main

__all__ = ["main"]
