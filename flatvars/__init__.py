"""flatvars: all parameters of a model in one contiguous buffer, and training steps in one or two launches."""

from . import checkpoint, optim
from .errors import (
    AliasError,
    CheckpointError,
    DamagedFileError,
    FlatvarsError,
    ForeignParameterError,
    GradientError,
    MismatchError,
    NameTakenError,
    SpecError,
)
from .spec import VarSpec
from .store import VarStore
from .variable import Variable

__version__ = "0.1.0"

__all__ = [
    "AliasError",
    "CheckpointError",
    "DamagedFileError",
    "FlatvarsError",
    "ForeignParameterError",
    "GradientError",
    "MismatchError",
    "NameTakenError",
    "SpecError",
    "VarSpec",
    "VarStore",
    "Variable",
    "checkpoint",
    "optim",
]
