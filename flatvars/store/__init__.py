"""VarStore, the thin top of the library, and what is about whole stores: copies, transfers."""

from .store import VarStore

__all__ = ["VarStore"]
