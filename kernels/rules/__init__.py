"""The mathematics of each optimizer: one rule a file, no loads, no stores."""

from .adam import ADAM, ADAMW, AMSGRAD, AMSGRADW
from .lion import LION
from .rule import Rule, rule
from .sgd import SGD, SGD_MOMENTUM

__all__ = ["ADAM", "ADAMW", "AMSGRAD", "AMSGRADW", "LION", "SGD", "SGD_MOMENTUM", "Rule", "rule"]
