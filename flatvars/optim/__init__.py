"""Optimizers with torch.optim's names and arguments; one fused step over a store, whatever the number of variables."""

from ..backend import VALUE, Rule, rule, scalars, statistics
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .adan import Adan
from .ademamix import AdEMAMix
from .adopt import ADOPT
from .asgd import ASGD
from .base import Optimizer
from .ema import EMA
from .grams import Grams
from .group_helpers import decay_groups, layerwise_lr
from .lamb import LAMB
from .lars import LARS
from .lion import Lion
from .mars import MARS
from .muon import Muon
from .muon_settings import muon_settings
from .nadam import NAdam
from .normuon import NorMuon
from .own_rule import RuleOptimizer
from .prodigy import Prodigy
from .radam import RAdam
from .rmsprop import RMSprop
from .rprop import Rprop
from .schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from .sgd import SGD
from .stable_adamw import StableAdamW
from .stats import VariableStats

__all__ = [
    "ADOPT",
    "ASGD",
    "EMA",
    "LAMB",
    "LARS",
    "MARS",
    "SGD",
    "VALUE",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Grams",
    "Lion",
    "Muon",
    "NAdam",
    "NorMuon",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
    "RuleOptimizer",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "StableAdamW",
    "VariableStats",
    "decay_groups",
    "layerwise_lr",
    "muon_settings",
    "rule",
    "scalars",
    "statistics",
]
