"""What the optimizer of a cell is called, and what it is called with."""

from __future__ import annotations

from typing import Any

ADAM = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
DECAYED = {"lr": 1e-3, "weight_decay": 0.1}
HYPER: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 1e-3, "weight_decay": 0.1},
    "momentum": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1},
    "lion": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
    "rmsprop": {"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.1},
    "adam": {**ADAM, "weight_decay": 0.1},
    "adamw": {**ADAM, "weight_decay": 0.1},
    "amsgrad": {**ADAM, "weight_decay": 0.1},
    "adagrad": {"lr": 1e-2, "lr_decay": 0.1, "weight_decay": 0.1},
    "adadelta": {"lr": 1.0, "weight_decay": 0.1},
    "adamax": {**ADAM, "weight_decay": 0.1},
    "nadam": {**ADAM, "weight_decay": 0.1},
    "radam": {**ADAM, "weight_decay": 0.1},
    "rprop": {"lr": 1e-3},
    "asgd": {"lr": 1e-2, "weight_decay": 0.1},
    "adam-amsgrad": {**ADAM, "weight_decay": 0.1},
    "rmsprop-momentum": {"lr": 1e-3, "momentum": 0.9},
    "rmsprop-centered": {"lr": 1e-3},
    "rmsprop-centered-momentum": {"lr": 1e-3, "momentum": 0.9},
    "adopt": DECAYED,
    "ademamix": DECAYED,
    "grams": DECAYED,
    "adan": DECAYED,
    "schedule-free-adamw": DECAYED,
    "schedule-free-sgd": {"lr": 1e-1, "weight_decay": 0.1},
    "stable-adamw": DECAYED,
    "lamb": DECAYED,
    "lars": {"lr": 1e-1, "momentum": 0.9, "weight_decay": 0.1},
    "mars": DECAYED,
    "prodigy": {"lr": 1.0, "weight_decay": 0.1},
    "adafactor": {"lr": 1e-2, "weight_decay": 0.1},
    "muon": DECAYED,
    "cautious-adamw": {**ADAM, "weight_decay": 0.1},
    "adamw-ema": {**ADAM, "weight_decay": 0.1},
    "adamw-stats": {**ADAM, "weight_decay": 0.1},
}
# Name in torch.optim (and in fv.optim), and what it is called with beside `HYPER`.
TORCH_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {}),
    "rmsprop": ("RMSprop", {}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "amsgrad": ("AdamW", {"amsgrad": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}),
    "radam": ("RAdam", {}),
    "rprop": ("Rprop", {}),
    "asgd": ("ASGD", {}),
    "adam-amsgrad": ("Adam", {"amsgrad": True}),
    "rmsprop-momentum": ("RMSprop", {}),
    "rmsprop-centered": ("RMSprop", {"centered": True}),
    "rmsprop-centered-momentum": ("RMSprop", {"centered": True}),
    "adafactor": ("Adafactor", {}),
    "muon": ("Muon", {}),
}
# Name in fv.optim, where torch has none or the step does more.
OUR_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "lion": ("Lion", {}),
    "adopt": ("ADOPT", {}),
    "ademamix": ("AdEMAMix", {}),
    "grams": ("Grams", {}),
    "adan": ("Adan", {}),
    "schedule-free-adamw": ("ScheduleFreeAdamW", {}),
    "schedule-free-sgd": ("ScheduleFreeSGD", {}),
    "stable-adamw": ("StableAdamW", {}),
    "lamb": ("LAMB", {}),
    "lars": ("LARS", {}),
    "mars": ("MARS", {}),
    "prodigy": ("Prodigy", {}),
    "cautious-adamw": ("AdamW", {"cautious": True}),
    "adamw-ema": ("AdamW", {}),
    "adamw-stats": ("AdamW", {"stats": True}),
}
