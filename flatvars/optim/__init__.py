"""Optimizers with torch.optim's names and arguments; one fused step over a store, whatever the number of variables."""

from ..backend import Rule, rule
from .adam import Adam, AdamW
from .base import Optimizer
from .lion import Lion
from .own_rule import RuleOptimizer
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Lion", "Optimizer", "RMSprop", "Rule", "RuleOptimizer", "rule"]
