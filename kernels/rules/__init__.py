"""The mathematics of each optimizer: one rule a file, no loads, no stores."""

from .adam import ADAM, ADAMW, AMSGRAD, AMSGRADW
from .lion import LION
from .rmsprop import RMSPROP, RMSPROP_CENTERED, RMSPROP_CENTERED_MOMENTUM, RMSPROP_MOMENTUM
from .rule import Rule, rule
from .sgd import SGD, SGD_MOMENTUM

__all__ = [
    "ADAM",
    "ADAMW",
    "AMSGRAD",
    "AMSGRADW",
    "LION",
    "RMSPROP",
    "RMSPROP_CENTERED",
    "RMSPROP_CENTERED_MOMENTUM",
    "RMSPROP_MOMENTUM",
    "SGD",
    "SGD_MOMENTUM",
    "Rule",
    "rule",
]
