"""Initializers as data: what a variable's first values are, without memory and without a generator.

Each is a frozen dataclass, so it can be compared, hashed, printed and stored with the variable. Kernels write what
`draw` says; `Orthogonal` and `Sparse` finish on the tensor what one launch cannot do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..backend import Draw, fills
from ..errors import InitError
from .fans import fans

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Initializer:
    """What a variable's first values are."""

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        """What the kernel writes into a variable of this shape.

        Raises:
            InitError: the initializer does not fit the shape or the dtype.
        """
        raise NotImplementedError

    @property
    def is_constant(self) -> bool:
        """Whether integer variables and buffers can take it."""
        return False


def check_initializer(initializer: object, what: str) -> None:
    """Raises InitError for something that is no initializer, such as `fv.init.zeros` without its parentheses."""
    if not isinstance(initializer, Initializer):
        raise InitError(
            f"{what} is {initializer!r}; give an initializer such as fv.init.zeros(), with its parentheses, or in a "
            "rule None to leave a variable alone"
        )


def check_float32(initializer: Initializer, *numbers: float) -> None:
    """Raises InitError where a number is not finite in float32, in which values are made."""
    for number in numbers:
        if not abs(number) <= torch.finfo(torch.float32).max:
            raise InitError(f"{initializer}: {number} is not a finite float32")


@dataclass(frozen=True)
class Constant(Initializer):
    """One number in all places."""

    value: float

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        if not dtype.is_floating_point:
            if self.value != int(self.value):
                raise InitError(f"{self} for a variable of {dtype}; give an integer")
            return Draw(fills.CONSTANT, (self.value,))
        number = fills.rounded_constant(self.value, dtype)
        if math.isinf(number) and not math.isinf(self.value):
            raise InitError(f"{self} does not fit {dtype}, whose largest number is {torch.finfo(dtype).max}")
        return Draw(fills.CONSTANT, (number,))

    @property
    def is_constant(self) -> bool:
        return True


@dataclass(frozen=True)
class Uniform(Initializer):
    """Even over [low, high) in float32, on a grid of 2^24 points."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InitError(
                f"uniform_ expects to return a [from, to) range, but found from={self.low} > to={self.high}"
            )
        check_float32(self, self.low, self.high, self.high - self.low)

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        low, high = np.float32(self.low), np.float32(self.high)
        top = max(low, np.nextafter(high, np.float32(-np.inf)))
        return Draw(fills.UNIFORM, (float(low), float(np.float32(self.high - self.low)), float(top)))


@dataclass(frozen=True)
class Normal(Initializer):
    """Gaussian; tails reach 6.76 standard deviations."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std >= 0.0:
            raise InitError(f"normal expects std >= 0.0, but found std {self.std}")
        check_float32(self, self.mean, self.std)

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        return Draw(fills.NORMAL, (float(np.float32(self.mean)), float(np.float32(self.std))))


@dataclass(frozen=True)
class TruncNormal(Initializer):
    """Gaussian between two bounds (values, not multiples of std), redrawn inside: no mass piles up at the bounds."""

    mean: float
    std: float
    a: float
    b: float

    def __post_init__(self) -> None:
        if not self.std > 0.0 or not self.a < self.b:
            raise InitError(f"{self} needs std > 0 and a < b")
        check_float32(self, self.mean, self.std)
        # Below, probabilities come near float32's smallest numbers.
        if not self._mass()[2] > 1e-30:
            raise InitError(f"{self}: nearly nothing of this normal lies between a and b; move the bounds to the mean")

    def _mass(self) -> tuple[float, float, float]:
        """Probability below a, above b, and between."""
        low, high = (self.a - self.mean) / self.std, (self.b - self.mean) / self.std

        def below(z: float) -> float:
            return 0.5 * math.erfc(-z / math.sqrt(2.0))

        # Differences are taken where the numbers are small, so that they keep their digits.
        if low > 0.0:
            between = below(-low) - below(-high)
        elif high < 0.0:
            between = below(high) - below(low)
        else:
            between = 1.0 - below(low) - below(-high)
        return below(low), below(-high), between

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        numbers = (*self._mass(), self.mean, self.std, self.a, self.b)
        return Draw(fills.TRUNCATED, tuple(float(np.float32(number)) for number in numbers))


@dataclass(frozen=True)
class Scaled(Initializer):
    """Variance scaling: std = gain / sqrt(fan). Kaiming, Xavier and LeCun are this with a gain and a fan.

    Attributes:
        distribution: "uniform" (over [-sqrt(3) std, sqrt(3) std)) or "normal".
        mode: "fan_in", "fan_out", or "fan_avg", the mean of both.
        fan_in, fan_out: Instead of what the shape says.
    """

    distribution: str
    gain: float
    mode: str
    fan_in: float | None = None
    fan_out: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("fan_in", "fan_out", "fan_avg"):
            raise InitError(f"Mode {self.mode} not supported, please use one of ['fan_in', 'fan_out']")
        if not (math.isfinite(self.gain) and self.gain >= 0.0):
            raise InitError(f"gain {self.gain} is not a finite number >= 0")
        for fan in (self.fan_in, self.fan_out):
            if fan is not None and not fan > 0:
                raise InitError(f"fan {fan} is not positive")

    def std(self, shape: Shape) -> float:
        """Standard deviation for a shape with elements."""
        found_in, found_out = fans(shape)
        fan_in = found_in if self.fan_in is None else self.fan_in
        fan_out = found_out if self.fan_out is None else self.fan_out
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}[self.mode]
        return self.gain / math.sqrt(fan)

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        std = self.std(shape)
        if self.distribution == "normal":
            return Normal(0.0, std).draw(shape, dtype)
        bound = math.sqrt(3.0) * std
        return Uniform(-bound, bound).draw(shape, dtype)


@dataclass(frozen=True)
class Eye(Initializer):
    """Ones on the diagonal of a matrix, zeros elsewhere."""

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        if len(shape) != 2:
            raise InitError(f"Only tensors with 2 dimensions are supported by {self}, not {shape}")
        return Draw(fills.DIAGONAL, (shape[1], 1, 0, shape[0]))


@dataclass(frozen=True)
class Dirac(Initializer):
    """A convolution [out, in / groups, *kernel] that copies its input, as far as there are channels."""

    groups: int

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        if len(shape) not in (3, 4, 5):
            raise InitError(f"Only tensors with 3, 4, or 5 dimensions are supported by {self}, not {shape}")
        if self.groups < 1 or shape[0] % self.groups:
            raise InitError(f"dim 0 must be divisible by groups: {self} for {shape}")
        center = 0
        for length in shape[2:]:
            center = center * length + length // 2
        return Draw(fills.DIAGONAL, (shape[1], math.prod(shape[2:]), center, shape[0] // self.groups))


@dataclass(frozen=True)
class Sparse(Initializer):
    """Gaussian with a share of each column set to zero; which rows follows from the seed and the name."""

    sparsity: float
    std: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity <= 1.0:
            raise InitError(f"sparsity {self.sparsity} is not a share between 0 and 1")
        Normal(0.0, self.std)

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        if len(shape) != 2:
            raise InitError(f"Only tensors with 2 dimensions are supported by {self}, not {shape}")
        return Normal(0.0, self.std).draw(shape, dtype)

    def finish_(self, value: Tensor, seed: int, key: int) -> None:
        """Zeroes the rows whose words are the smallest of their column."""
        rows, columns = value.shape
        words = fills.ranking_words(seed, key, rows * columns).reshape(rows, columns)
        chosen = np.argsort(words, axis=0, kind="stable")[: math.ceil(self.sparsity * rows)]
        value.scatter_(0, torch.from_numpy(chosen).to(value.device), 0.0)


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Rows (or columns, where there are fewer) that are orthonormal, times a gain; from the QR of a normal matrix."""

    gain: float

    def draw(self, shape: Shape, dtype: torch.dtype) -> Draw:
        if len(shape) < 2:
            raise InitError(f"Only tensors with 2 or more dimensions are supported by {self}, not {shape}")
        return Normal(0.0, 1.0).draw(shape, dtype)

    def finish_(self, value: Tensor, normals: Tensor) -> None:
        """Writes the orthogonal matrix of `normals`, [numel] float32, or float64 where `value` is.

        The factorization has no 16-bit form, and rounding its input would lose orthogonality: it is rounded last.
        """
        rows = value.shape[0]
        matrix = normals.view(rows, -1)
        wide = rows < matrix.shape[1]
        q, r = torch.linalg.qr(matrix.T if wide else matrix)
        q *= torch.where(r.diagonal() < 0.0, -self.gain, self.gain)
        value.copy_((q.T if wide else q).reshape(value.shape))
