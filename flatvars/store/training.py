"""What trains, and with which gradients: masks, accumulation, norms, clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..gradients import freezing, norms
from ..gradients.attached import masks_of
from ..variables.selectors import Selector
from .looking import Looking


class Training(Looking):
    """Masks and gradients; the step itself is the optimizer's."""

    # Masks ------------------------------------------------------------------------------------------------------------

    def freeze(self, selector: Selector = None, *, clear_grad: bool = True) -> None:
        """Stops training the selected variables (all if not given); their optimizer state is kept.

        Costs nothing from then on: frozen variables have no tiles. `compact()` gives their memory back.

        Args:
            selector: Names, globs, regular expressions, predicates: see `flatvars.select`.
            clear_grad: Drop their gradients; else they are kept, and stay unused until the variables are trained again.
        """
        freezing.freeze(self._registry, self._registry.matching(selector), clear_grad)

    def unfreeze(self, selector: Selector = None) -> None:
        """Trains the selected variables again; without a selector, those that `freeze` froze. Buffers stay as they are.

        A variable that was frozen when the store was carved gets room for gradients and state: the buffers are
        re-carved, and everything is kept.
        """
        freezing.unfreeze(self._registry, self._registry.matching(selector), selected=selector is not None)

    def compact(self) -> None:
        """Gives back the gradient and state bytes of frozen variables; their state and element masks are forgotten."""
        freezing.compact(self._registry)

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
        masks_of(self._registry).set(selector, mask)

    def trainable_mask(self, name: str) -> Tensor | None:
        """Which elements of a variable train, bool [shape], or None where all do. A copy; synchronizes.

        Raises:
            UnknownNameError: the store has no variable of that name.
        """
        return self._registry.masks.of(self[name])

    # Gradients --------------------------------------------------------------------------------------------------------

    def accumulate(
        self, grads: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None, scale: float = 1.0
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; no byte of the stream is written, the next `accumulate` overwrites.

        With `set_to_none=False` the gradients that exist become zeros, which is not the same: zeros still decay
        weights and move momentum. Use this, or the optimizer's, to drop what `accumulate` gathered: a module's own
        `zero_grad()` sees only `.grad`.
        """
        self._gradients.zero(set_to_none)

    def grad_norm(self, norm_type: float = 2.0) -> Tensor:
        """Norm of all gradients as one vector, a device scalar; 0 if there are none. No synchronization."""
        return norms.norm(self._gradients, float(norm_type))

    def norms(self, norm_type: float = 2.0) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Norms of every trainable variable: (of its value, of its gradient or None), device scalars, in one launch."""
        return norms.norms(self._gradients, float(norm_type))

    def clip_grad_norm_(
        self,
        max_norm: float,
        norm_type: float = 2.0,
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

    def clip_grad_value_(self, clip_value: float) -> None:
        """torch.nn.utils.clip_grad_value_ over the flat stream: gathers and clamps to [-clip_value, clip_value]."""
        norms.clip_value_(self._gradients, clip_value)
