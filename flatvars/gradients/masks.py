"""Element masks: single elements that do not train, such as rows of an embedding or pruned weights.

One byte an element, in a stream that exists only in regions where a variable is masked. It is inverted, so that the
zeros of new room mean "trains", and it is all there is to know: whether a variable has a mask is read from it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import FlatvarsError, MaskError
from ..memory.streams import FROZEN_ELEMENTS, GRADS, Stream, byte
from ..variables.registry import Registry
from ..variables.selectors import Selector
from ..variables.variable import Variable
from .freezing import flags_moved, follow_flags, freeze
from .sentinel import is_unwritten


class ElementMasks:
    """The element masks of a registry's variables."""

    def __init__(self, registry: Registry) -> None:
        # Weak: the registry keeps the call below, and buffers must go with the last handle.
        self._registry = weakref.ref(registry)
        registry.after_carve.append(self.prune)

    @property
    def registry(self) -> Registry:
        registry = self._registry()
        assert registry is not None
        return registry

    @torch.no_grad()
    def set(self, selector: Selector, mask: Tensor | None) -> None:
        """See `VarStore.set_trainable_mask`."""
        registry = self.registry
        with registry.lock:
            registry.settle()
            if flags_moved(registry):
                follow_flags(registry)
            variables = registry.matching(selector)
            if mask is not None:
                for variable in variables:
                    check_mask(variable, mask)
            self._put(variables, mask)

    @torch.no_grad()
    def take(self, variable: Variable, mask: Tensor | None) -> None:
        """Gives a variable the mask that `of` told of another, or of itself at another time; None removes it."""
        with self.registry.lock:
            if mask is not None or self.of(variable) is not None:
                self._put([variable], mask if mask is None else mask.to(self.registry.device))

    def _put(self, variables: Sequence[Variable], mask: Tensor | None) -> None:
        for variable in variables:
            self._write(variable, mask)
        self.prune()
        self.registry.generation += 1
        clear_masked(self.registry)

    def freeze(self, variables: Sequence[Variable], clear_grad: bool = True) -> None:
        """See `VarStore.freeze`."""
        freeze(self.registry, variables, clear_grad)

    def _write(self, variable: Variable, mask: Tensor | None) -> None:
        streams, region = self.registry.streams, variable.dtype
        if not variable.spec.has_room:  # only ever to remove a mask, and there is none
            return
        if mask is not None and not bool(mask.all()):
            stream = streams.get(FROZEN_ELEMENTS, region, byte)
            stream.write(variable.span, ~mask)
        elif (FROZEN_ELEMENTS, region) in streams:
            streams.get(FROZEN_ELEMENTS, region, byte).write(variable.span, None)

    def of(self, variable: Variable) -> Tensor | None:
        """See `VarStore.trainable_mask`."""
        stream = self.registry.streams.find(FROZEN_ELEMENTS, variable.dtype)
        if stream is None or not variable.spec.has_room or not bool(stream.flat(variable.span).any()):
            return None
        return stream.view(variable.span) == 0

    def prune(self) -> None:
        """Frees the stream of every region where no element is masked any more."""
        streams = self.registry.streams
        for region in streams.layout.regions:
            stream = streams.find(FROZEN_ELEMENTS, region.dtype)
            if stream is not None and not bool(stream.buffer.any()):
                streams.drop(FROZEN_ELEMENTS, region.dtype)

    def check(self) -> None:
        """Raises FlatvarsError where padding is masked: a step would keep whatever lies there."""
        streams = self.registry.streams
        for region in streams.layout.regions:
            stream = streams.find(FROZEN_ELEMENTS, region.dtype)
            if stream is None:
                continue
            padding = Stream(stream.buffer.clone())
            for span in streams.layout.spans:
                if span.spec.dtype == region.dtype and span.spec.has_room:
                    padding.write(span, None)
            if bool(padding.buffer.any()):
                raise FlatvarsError(
                    f"padding of the {region.dtype} region is masked: something else wrote into its stream"
                )


@torch.no_grad()
def clear_masked(registry: Registry) -> None:
    """Puts zeros where elements are masked: what the gradient stream holds there is no gradient, and may be NaN.

    What says that nobody wrote it goes on saying so.
    """
    streams = registry.streams
    for region in streams.layout.regions:
        frozen, stream = streams.find(FROZEN_ELEMENTS, region.dtype), streams.find(GRADS, region.dtype)
        if frozen is not None and stream is not None:
            stream.buffer.masked_fill_(frozen.buffer.view(torch.bool) & ~is_unwritten(stream.buffer), 0.0)


def check_mask(variable: Variable, mask: Tensor) -> None:
    """Raises MaskError for a mask that the variable cannot have."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout != torch.strided or mask.is_meta:
        given = f"a {mask.dtype} tensor ({mask.layout}, {mask.device})" if isinstance(mask, Tensor) else repr(mask)
        raise MaskError(
            f"the mask for {variable.name!r} is {given}; a dense bool tensor is needed, True where elements train, or "
            "None to remove it"
        )
    shape = tuple(variable.shape)
    if not broadcasts_to(tuple(mask.shape), shape):
        raise MaskError(
            f"the mask for {variable.name!r} has shape {tuple(mask.shape)}, which does not broadcast to the variable's "
            f"{shape}; for rows of a matrix give [rows, 1]"
        )
    if not variable.spec.has_room:
        raise MaskError(
            f"variable {variable.name!r} has no room for gradients and state, so none of its elements train: it is a "
            "buffer, or was frozen when the store was carved or compacted; call store.unfreeze() on it first"
        )


def broadcasts_to(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape expands to the other by torch's rules."""
    aligned = shape[len(shape) - len(given) :]
    return len(given) <= len(shape) and all(n in (1, wanted) for n, wanted in zip(given, aligned, strict=True))
