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
from .optim import EMA
from .store import VarStore, copies
from .variables.selectors import Select, select
from .variables.variable import Variable
from .version import VERSION

__version__ = VERSION

copies.register()


def __dir__() -> list[str]:
    """What users call; modules that are only imported from within are left out."""
    return sorted([*__all__, "__doc__", "__file__", "__name__", "__version__"])


__all__ = [
    "EMA",
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
