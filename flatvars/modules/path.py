"""Path: a place in a store's tree of names, where variables are declared; Entry: one name there, get or create."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import init
from ..errors import SpecError
from ..init import Initializer
from ..variables.variable import Variable
from .declare import Declarations, check_part

# Inside the classes, `float` is the conversion method.
Real = float


@dataclass(frozen=True)
class Path:
    """A prefix of names, and the param group of what is declared below it. Made by `store.root()` and `path / part`.

    Every method that declares a variable returns its tensor: a Parameter, or a plain tensor for `*_no_train`. It can be
    used at once; its values depend on (seed of the store, full name, index) alone.

    Example:
        >>> layer = VarStore().root() / "layer1" / 3
        >>> layer.components()
        ['layer1', '3']
        >>> weight = layer.kaiming_uniform("weight", (4, 2))
        >>> bias = layer.zeros("bias", (4,))
    """

    _declarations: Declarations
    _parts: tuple[str, ...] = ()
    group: int = 0

    # The tree -------------------------------------------------------------------------------------------------------

    def sub(self, part: str | int) -> Path:
        """The path below, with the same group.

        Raises:
            SpecError: the part is empty or contains a dot.
        """
        return dataclasses.replace(self, _parts=(*self._parts, check_part(str(part), "path part")))

    def __truediv__(self, part: str | int) -> Path:
        return self.sub(part)

    def components(self) -> list[str]:
        """The parts of the path; [] for the root."""
        return list(self._parts)

    def set_group(self, group: int) -> Path:
        """The same path for another param group: that of what is declared through it from now on.

        Raises:
            ValueError: a negative number.
        """
        if group < 0:
            raise ValueError(f"group {group} is negative; param groups are numbered from 0")
        return dataclasses.replace(self, group=int(group))

    @property
    def device(self) -> torch.device:
        return self._declarations.registry.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the trainable variables that are declared here."""
        return self._declarations.dtype

    def name(self, leaf: str | int) -> str:
        """The full name of a variable here.

        Raises:
            SpecError: the leaf is empty or contains a dot.
        """
        return ".".join((*self._parts, check_part(str(leaf), "variable name")))

    def variables(self) -> dict[str, Variable]:
        """The variables below this path by full name, in creation order; `a` does not hold `ab.x`."""
        return {v.name: v for v in self._declarations.registry.variables if self._holds(v)}

    def _holds(self, variable: Variable) -> bool:
        return tuple(variable.name.split(".")[: len(self._parts)]) == self._parts

    def get(self, name: str) -> Tensor | None:
        """The tensor of a variable here, or None."""
        variable = self._declarations.registry.by_name.get(self.name(name))
        return None if variable is None else variable.param

    def entry(self, name: str) -> Entry:
        """A name here, to get or create: `path.entry("w").or_zeros((3,))`. Holds no lock."""
        return Entry(self, name)

    # Declaring ------------------------------------------------------------------------------------------------------

    def var(
        self, name: str, shape: Sequence[int], init: Initializer, *, dtype: torch.dtype | None = None
    ) -> nn.Parameter:
        """A trainable variable.

        Args:
            name: Without dots. A name that is in use gets a suffix, or raises: see `VarStore(on_duplicate=)`.
            shape: Lengths of the axes.
            init: Of its values, from `flatvars.init`.
            dtype: The store's if not given.

        Raises:
            SpecError, NameTakenError: and nothing was declared.
        """
        return self._create(name, shape, init, dtype=dtype)

    def _create(
        self, name: str, shape: Sequence[int], initializer: Initializer, *, dtype: torch.dtype | None = None
    ) -> nn.Parameter:
        variable = self._declarations.create(self.name(name), shape, initializer, dtype=dtype, group=self.group)
        assert isinstance(variable.param, nn.Parameter)
        return variable.param

    def zeros(self, name: str, shape: Sequence[int]) -> nn.Parameter:
        return self._create(name, shape, init.zeros())

    def ones(self, name: str, shape: Sequence[int]) -> nn.Parameter:
        return self._create(name, shape, init.ones())

    def randn_standard(self, name: str, shape: Sequence[int]) -> nn.Parameter:
        """Normal with mean 0 and standard deviation 1."""
        return self._create(name, shape, init.normal())

    def randn(self, name: str, shape: Sequence[int], mean: Real, std: Real) -> nn.Parameter:
        return self._create(name, shape, init.normal(mean, std))

    def uniform(self, name: str, shape: Sequence[int], low: Real, high: Real) -> nn.Parameter:
        """Uniform in [low, high)."""
        return self._create(name, shape, init.uniform(low, high))

    def kaiming_uniform(self, name: str, shape: Sequence[int]) -> nn.Parameter:
        """He initialization over the fan-in, for ReLU."""
        return self._create(name, shape, init.kaiming_uniform())

    def kaiming_normal(self, name: str, shape: Sequence[int]) -> nn.Parameter:
        """He initialization over the fan-in, for ReLU."""
        return self._create(name, shape, init.kaiming_normal())

    def orthogonal(self, name: str, shape: Sequence[int], gain: Real = 1.0) -> nn.Parameter:
        """Orthogonal rows or columns, two axes or more."""
        return self._create(name, shape, init.orthogonal(gain))

    def zeros_no_train(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer of zeros, float32 whatever the store's dtype."""
        return self._buffer(name, shape, init.zeros(), dtype)

    def ones_no_train(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A buffer of ones, float32 whatever the store's dtype."""
        return self._buffer(name, shape, init.ones(), dtype)

    def _buffer(self, name: str, shape: Sequence[int], initializer: Initializer, dtype: torch.dtype) -> Tensor:
        full = self.name(name)
        return self._declarations.create(full, shape, initializer, dtype=dtype, trainable=False, group=self.group).param

    def var_copy(self, name: str, tensor: Tensor) -> Tensor:
        """A trainable variable with a tensor's values, in the store's dtype and row-major."""
        values = torch.empty(tensor.shape, dtype=self.dtype, device=self.device).copy_(tensor.detach())
        return self._declarations.take(self.name(name), values, group=self.group).param

    def add(self, name: str, tensor: Tensor, trainable: bool | None = None) -> Tensor:
        """A variable with a tensor's values, dtype and memory order; see `VarStore.add`."""
        return self._declarations.take(self.name(name), tensor, trainable=trainable, group=self.group).param

    # Converting -----------------------------------------------------------------------------------------------------

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Converts the floating variables below this path, with gradients and state; handles follow."""
        if not dtype.is_floating_point:
            raise SpecError(
                f"{dtype} is not a floating dtype; variables are converted to float, half, bfloat16, double"
            )
        registry = self._declarations.registry
        with registry.lock:
            registry.settle()
            chosen = {v.id for v in registry.variables if v.dtype.is_floating_point and self._holds(v)}
            registry.recarve(lambda v: dataclasses.replace(v.spec, dtype=dtype) if v.id in chosen else v.spec)

    def half(self) -> None:
        self.set_dtype(torch.float16)

    def bfloat16(self) -> None:
        self.set_dtype(torch.bfloat16)

    def float(self) -> None:
        self.set_dtype(torch.float32)

    def double(self) -> None:
        self.set_dtype(torch.float64)

    def __repr__(self) -> str:
        return f"Path({'.'.join(self._parts)!r}, group={self.group})"


@dataclass(frozen=True)
class Entry:
    """A name of a path: every `or_*` returns the tensor that is there, or declares it.

    Getting draws no random number and writes nothing. Two threads that ask for one name get one variable.

    Raises:
        SpecError: the variable there has another shape than asked for.
    """

    _path: Path
    _name: str

    def or_var(self, shape: Sequence[int], init: Initializer) -> Tensor:
        return self._or(shape, init)

    def _or(self, shape: Sequence[int], initializer: Initializer, *, trainable: bool = True) -> Tensor:
        path = self._path
        with path._declarations.registry.lock:
            found = self._find(shape)
            if found is not None:
                return found
            if trainable:
                return path.var(self._name, shape, initializer)
            return path._buffer(self._name, shape, initializer, torch.float32)

    def _find(self, shape: Sequence[int]) -> Tensor | None:
        found = self._path.get(self._name)
        if found is not None and tuple(found.shape) != tuple(shape):
            raise SpecError(
                f"shape mismatch on {self._path.name(self._name)!r}: {tuple(shape)} was asked for, but the variable "
                f"there has {tuple(found.shape)}; ask for that shape, or take another name"
            )
        return found

    def or_var_copy(self, tensor: Tensor) -> Tensor:
        """The variable that is there, untouched; else a copy of the tensor."""
        with self._path._declarations.registry.lock:
            found = self._find(tensor.shape)
            return self._path.var_copy(self._name, tensor) if found is None else found

    def or_zeros(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.zeros())

    def or_ones(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.ones())

    def or_randn_standard(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.normal())

    def or_randn(self, shape: Sequence[int], mean: Real, std: Real) -> Tensor:
        return self._or(shape, init.normal(mean, std))

    def or_uniform(self, shape: Sequence[int], low: Real, high: Real) -> Tensor:
        return self._or(shape, init.uniform(low, high))

    def or_kaiming_uniform(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.kaiming_uniform())

    def or_kaiming_normal(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.kaiming_normal())

    def or_orthogonal(self, shape: Sequence[int], gain: Real = 1.0) -> Tensor:
        return self._or(shape, init.orthogonal(gain))

    def or_zeros_no_train(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.zeros(), trainable=False)

    def or_ones_no_train(self, shape: Sequence[int]) -> Tensor:
        return self._or(shape, init.ones(), trainable=False)
