"""Errors of flatvars. Each message says what was found, what was needed and which call mends it."""

from __future__ import annotations

from .kernels.errors import FlatvarsError, GradientError, RuleError

__all__ = [
    "AliasError",
    "CheckpointError",
    "DamagedFileError",
    "DisagreementError",
    "FlatvarsError",
    "ForeignParameterError",
    "GradientError",
    "InitError",
    "MaskError",
    "MismatchError",
    "NameTakenError",
    "RuleError",
    "SpecError",
    "UnknownNameError",
]


class SpecError(FlatvarsError, ValueError):
    """A variable that no store can hold: a bad name, shape, dtype or layout."""


class InitError(FlatvarsError, ValueError):
    """An initializer with impossible arguments, or one that does not fit a variable."""


class MaskError(FlatvarsError, ValueError):
    """A mask that a variable cannot have: its dtype, its shape, or no room to train."""


class NameTakenError(FlatvarsError, ValueError):
    """A name that the store holds already."""


class UnknownNameError(FlatvarsError, KeyError):
    """A name, or a pattern, that no variable of the store has."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which would put a sentence in quotes.
        return str(self.args[0])


class AliasError(FlatvarsError, RuntimeError):
    """A parameter no longer lies in its store's buffer: training on would update memory the model does not use."""


class MovedWarning(UserWarning):
    """Parameters had left their store, and were taken back in; told once a store."""


class ForeignParameterError(FlatvarsError, ValueError):
    """A parameter that belongs to no store, or to another one."""


class DisagreementError(FlatvarsError, RuntimeError):
    """The ranks that share a store differ in what must be the same on all of them."""


class CheckpointError(FlatvarsError, RuntimeError):
    """A checkpoint that cannot be written, or not be loaded here; nothing was changed."""


class DamagedFileError(CheckpointError):
    """The file itself is at fault: truncated, flipped bits, hostile. An older checkpoint may be whole."""


class MismatchError(CheckpointError):
    """The file is sound, but it is not this store's: names, shapes or dtypes differ."""
