"""`fv.init`: initializers by torch.nn.init's names, and whole modules by name patterns in one launch."""

from .fans import calculate_gain, fans
from .fills import Target, fill_, name_key, prepare
from .initializers import Initializer
from .patterns import Rules, apply_, choose, keep_norms, refill_, target_of, tensor
from .schemes import (
    constant,
    dirac,
    eye,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    orthogonal,
    sparse,
    trunc_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)

__all__ = [
    "Initializer",
    "Rules",
    "Target",
    "apply_",
    "calculate_gain",
    "choose",
    "constant",
    "dirac",
    "eye",
    "fans",
    "fill_",
    "kaiming_normal",
    "kaiming_uniform",
    "keep_norms",
    "lecun_normal",
    "lecun_uniform",
    "name_key",
    "normal",
    "ones",
    "orthogonal",
    "prepare",
    "refill_",
    "sparse",
    "target_of",
    "tensor",
    "trunc_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
