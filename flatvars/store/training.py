"""What of a store trains, and the gradients of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..errors import FlatvarsError
from ..gradients import freezing, norms
from ..gradients.attached import masks_of
from ..gradients.norms import VariableNorms
from ..modules.path import Real
from ..optim.scaling import scale_of
from ..variables.selectors import Selector
from .named import ByName


class TrainingStore(ByName):
    """A part of `VarStore`."""

    # Masks ------------------------------------------------------------------------------------------------------------

    def freeze(self, selector: Selector = None, *, clear_grad: bool = True) -> None:
        """Stops training the selected variables (all if not given); their optimizer state is kept.

        Costs nothing from then on: frozen variables have no tiles. `compact()` gives their memory back.

        Args:
            selector: Names, globs, regular expressions, predicates: see `flatvars.select`.
            clear_grad: Drop their gradients; else they are kept, and stay unused until the variables are trained again.
        """
        freezing.freeze(self.registry, self.registry.matching(selector), clear_grad)

    def unfreeze(self, selector: Selector = None) -> None:
        """Trains the selected variables again; without a selector, those that `freeze` froze. Buffers stay as they are.

        A variable that was frozen when the store was carved gets room for gradients and state: the buffers are
        re-carved, and everything is kept.
        """
        freezing.unfreeze(self.registry, self.registry.matching(selector), selected=selector is not None)

    def compact(self) -> None:
        """Gives back the gradient and state bytes of frozen variables; their state and element masks are forgotten.

        No gradient is lost: what `freeze(clear_grad=False)` kept waits in `.grad`, and a variable that plain
        `requires_grad_(False)` left with a gradient, which the next step uses as torch's does, keeps its room until a
        `compact()` that finds it without.
        """
        freezing.compact(self.registry)

    def set_trainable_mask(self, selector: Selector, mask: Tensor | None) -> None:
        """Trains only some elements of the selected variables: rows of an embedding, what pruning left.

        Masked elements keep their value and optimizer state, bit for bit, under every optimizer, weight decay included.
        Their gradient counts as 0 in every norm and in clipping, whatever it holds, NaN too. Step counts go on. A mask
        follows its variable through growth, freezing, `to()` and changes of dtype; `compact()` on a frozen variable
        forgets it. It costs a byte for each trainable element of its dtype, and nothing once no element is masked.

        Args:
            selector: Names, globs, regular expressions, predicates: see `flatvars.select`.
            mask: bool [shape], or what broadcasts to it, such as [rows, 1]: True trains. None, or all True: no mask.

        Raises:
            UnknownNameError: a pattern matches nothing.
            MaskError: a mask of another dtype or shape, or a variable without room for gradients, as a buffer. Nothing
                has changed then.

        Example:
            >>> store = VarStore.from_module(nn.Embedding(4, 2))
            >>> store.set_trainable_mask("weight", torch.tensor([[True], [False], [True], [True]]))
            >>> store.trainable_mask("weight")[:, 0].tolist()
            [True, False, True, True]
        """
        masks_of(self.registry).set(selector, mask)

    def trainable_mask(self, name: str) -> Tensor | None:
        """Which elements of a variable train, bool [shape], or None where all do. A copy; synchronizes.

        Raises:
            UnknownNameError: the store has no variable of that name.
        """
        return self.registry.masks.of(self[name])

    # Gradients --------------------------------------------------------------------------------------------------------

    def accumulate(
        self, grads: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None, scale: Real = 1.0
    ) -> None:
        """Moves gradients into the flat stream, `scale` times: one launch, which takes the norm on the way.

        The first call after a step or a `zero_grad()` overwrites, later ones add. In "gather" mode `.grad` is None
        afterwards, and the sum is in `store.grads` and `Variable.grad`.

        Args:
            grads: Gradients by name, or one per trainable variable in creation order (None: none); the parameters'
                `.grad` if not given.
            scale: Factor, for example 1/k for the mean of k micro-batches.

        Raises:
            GradientError: a gradient of another shape or dtype class; which, is said.
        """
        self._gradients.accumulate(grads, scale)

    @contextmanager
    def last_backward(self, scaler: Any = None) -> Iterator[None]:
        """Averages gradients over ranks while the backward pass inside of it runs, the last one of a step.

        Of a store with `mesh=` and `bucket_cap_mb=`. Every rank has averages of its range when the block ends, and
        gradients of no use elsewhere: in `.grad` with grads="views", in the flat buffer else. A step or a `zero_grad()`
        comes next. Whatever else is done about gradients in between, such as a second backward pass, `accumulate`,
        clipping (use `max_norm=`), `scaler.unscale_` or a change in place, raises there or, on every rank, in the step,
        which then steps nothing. Backward passes of micro-batches come before, without a block.

        What raises inside is raised; the step of every rank says so, and all go on after `zero_grad()`.

        Args:
            scaler: The GradScaler that scales the loss and then steps, if there is one: gradients are divided by its
                scale before they are averaged.

        Raises:
            FlatvarsError: the store was made without `bucket_cap_mb`.
            GradientError: what the last block exchanged was not used, or a block is open; inside, a backward pass that
                reaches a variable twice, or a gradient that cannot be used.

        Example:
            >>> store = VarStore.from_module(model, mesh=mesh, bucket_cap_mb=25)  # doctest: +SKIP
            >>> with store.last_backward():  # doctest: +SKIP
            ...     model(batch).mean().backward()
            >>> optimizer.step()  # doctest: +SKIP
        """
        overlap = self._gradients.overlap
        if overlap is None:
            raise FlatvarsError(
                "last_backward() is of a store that averages gradients over ranks in buckets: make it with mesh= and "
                "bucket_cap_mb=25; without, leave the block out, and step() averages"
            )
        with overlap.block(scale_of(scaler, self.device)):
            yield

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; no byte of the stream is written, the next `accumulate` overwrites.

        With `set_to_none=False` the gradients that exist become zeros, which is not the same: zeros still decay
        weights and move momentum. Use this, or the optimizer's, to drop what `accumulate` gathered: a module's own
        `zero_grad()` sees only `.grad`.
        """
        self._gradients.zero(set_to_none)

    def grad_norm(self, norm_type: Real = 2.0) -> Tensor:
        """Norm of all gradients as one vector, a device scalar; 0 if there are none. No synchronization."""
        return norms.norm(self._gradients, float(norm_type))

    def norms(self, norm_type: Real = 2.0) -> VariableNorms:
        """Norms of every trainable variable in one launch; nothing waits for the device.

        Returns:
            A mapping from names to (norm of the value, norm of the gradient or None), device scalars, which are made
            when they are read. `value_norm` and `grad_norm` are all of them, a tensor each: `norms.grad_norm.tolist()`
            waits once for what a loop of `.item()` waits for at every variable.
        """
        return norms.norms(self._gradients, float(norm_type))

    def clip_grad_norm_(
        self,
        max_norm: Real,
        norm_type: Real = 2.0,
        error_if_nonfinite: bool = False,
        *,
        per_tensor: bool = False,
    ) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ over the flat stream: gathers, scales in place, returns the norm before.

        Args:
            per_tensor: Clip the norm of every variable's gradient by itself instead of that of all together, which is
                returned all the same.

        Raises:
            GradientError: `error_if_nonfinite` and the norm is NaN or infinite (this synchronizes).
            ValueError: `per_tensor` with an order that is not positive.
        """
        return norms.clip_norm_(self._gradients, max_norm, float(norm_type), error_if_nonfinite, per_tensor)

    def clip_grad_value_(self, clip_value: Real) -> None:
        """torch.nn.utils.clip_grad_value_ over the flat stream: gathers and clamps to [-clip_value, clip_value]."""
        norms.clip_value_(self._gradients, clip_value)
