"""The mathematics of each optimizer: one rule a file, no loads, no stores."""

from .adadelta import ADADELTA
from .adafactor import ADAFACTOR, ADAFACTOR_GRADIENT
from .adagrad import ADAGRAD
from .adam import ADAM, ADAMW, AMSGRAD, AMSGRADW
from .adamax import ADAMAX
from .adan import ADAN
from .ademamix import ADEMAMIX
from .adopt import ADOPT
from .asgd import ASGD
from .average import ASIDE, AVERAGE, BEGIN, EXCHANGE, PUT_BACK, SCHEDULES, SET_ASIDE, UPDATES, averaged
from .caution import cautious_updates
from .decay import OPTIONS, with_decay
from .grams import GRAMS
from .lamb import LAMB
from .lars import LARS
from .lion import LION
from .mars import MARS
from .muon import MUON, MUON_APPLY, MUON_DIRECTION
from .nadam import NADAM
from .observe import OBSERVED, observe
from .prodigy import PRODIGY
from .radam import RADAM
from .rmsprop import RMSPROP, RMSPROP_CENTERED, RMSPROP_CENTERED_MOMENTUM, RMSPROP_MOMENTUM
from .rprop import RPROP
from .rule import VALUE, Rule, rule
from .schedule_free import SCHEDULE_FREE_ADAMW, SCHEDULE_FREE_SGD, TO_X, TO_Y
from .sgd import SGD, SGD_MOMENTUM
from .stable_adamw import STABLE_ADAMW
from .stages import Scalars, Statistics, scalars, statistics

__all__ = [
    "ADADELTA",
    "ADAFACTOR",
    "ADAFACTOR_GRADIENT",
    "ADAGRAD",
    "ADAM",
    "ADAMAX",
    "ADAMW",
    "ADAN",
    "ADEMAMIX",
    "ADOPT",
    "AMSGRAD",
    "AMSGRADW",
    "ASGD",
    "ASIDE",
    "AVERAGE",
    "BEGIN",
    "EXCHANGE",
    "GRAMS",
    "LAMB",
    "LARS",
    "LION",
    "MARS",
    "MUON",
    "MUON_APPLY",
    "MUON_DIRECTION",
    "NADAM",
    "OBSERVED",
    "OPTIONS",
    "PRODIGY",
    "PUT_BACK",
    "RADAM",
    "RMSPROP",
    "RMSPROP_CENTERED",
    "RMSPROP_CENTERED_MOMENTUM",
    "RMSPROP_MOMENTUM",
    "RPROP",
    "SCHEDULES",
    "SCHEDULE_FREE_ADAMW",
    "SCHEDULE_FREE_SGD",
    "SET_ASIDE",
    "SGD",
    "SGD_MOMENTUM",
    "STABLE_ADAMW",
    "TO_X",
    "TO_Y",
    "UPDATES",
    "VALUE",
    "Rule",
    "Scalars",
    "Statistics",
    "averaged",
    "cautious_updates",
    "observe",
    "rule",
    "scalars",
    "statistics",
    "with_decay",
]
