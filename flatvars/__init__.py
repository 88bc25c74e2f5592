"""flatvars: all parameters of a model in one contiguous buffer, and training steps in one or two launches."""

from . import optim
from .errors import (
    AliasError,
    FlatvarsError,
    ForeignParameterError,
    GradientError,
    MaskError,
    NameTakenError,
    SpecError,
)
from .spec import VarSpec
from .store import VarStore
from .variable import Variable

__version__ = "0.1.0"

__all__ = [
    "AliasError",
    "FlatvarsError",
    "ForeignParameterError",
    "GradientError",
    "MaskError",
    "NameTakenError",
    "SpecError",
    "VarSpec",
    "VarStore",
    "Variable",
    "optim",
]
