"""flatvars: all parameters of a model in one contiguous buffer, and training steps in one or two launches."""

from . import checkpoint, init, nn, optim
from .errors import (
    AliasError,
    CheckpointError,
    DamagedFileError,
    DisagreementError,
    FlatvarsError,
    ForeignParameterError,
    GradientError,
    InitError,
    MaskError,
    MismatchError,
    MovedWarning,
    NameTakenError,
    RuleError,
    SpecError,
    UnknownNameError,
)
from .memory.spec import VarSpec
from .modules.path import Entry, Path
from .store import VarStore, copies
from .variables.selectors import Select, select
from .variables.variable import Variable

__version__ = "0.1.0"

copies.register()

__all__ = [
    "AliasError",
    "CheckpointError",
    "DamagedFileError",
    "DisagreementError",
    "Entry",
    "FlatvarsError",
    "ForeignParameterError",
    "GradientError",
    "InitError",
    "MaskError",
    "MismatchError",
    "MovedWarning",
    "NameTakenError",
    "Path",
    "RuleError",
    "Select",
    "SpecError",
    "UnknownNameError",
    "VarSpec",
    "VarStore",
    "Variable",
    "checkpoint",
    "init",
    "nn",
    "optim",
    "select",
]
