"""Launches that repeat: the compiled kernel is kept, and called without classifying every argument again.

`kernel[grid](...)` binds all arguments and finds out what each is compiled for: of 15.6 us of a host's time a launch,
a kept kernel takes 2.9 (measured with the driver stubbed). What a kernel is compiled for is known here: constants, the
dtypes of the tensors that change between launches, and which of them lie on 16-byte boundaries. Integers are never
compiled in (`do_not_specialize`), but their width is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

_dtype = attrgetter("dtype")


class Handles:
    """The compiled kernels of one plan: tensors that all its launches share are not looked at again.

    On HIP a kernel is compiled for the size of tensors as well, so there every launch goes the long way, as it does in
    the interpreter, which compiles nothing.
    """

    def __init__(self) -> None:
        self._runners: dict[tuple[Any, ...], Any] = {}
        self._keeps = torch.version.hip is None

    def launch(
        self,
        kernel: Any,
        programs: int,
        args: Sequence[Any],
        constants: Mapping[str, Any],
        options: Mapping[str, Any],
        changing: Sequence[Tensor],
        width: int = 0,
    ) -> None:
        """Runs `kernel` with `args`, then `constants` in the order of its signature.

        Args:
            changing: Those of the tensors in `args` that may be others next time.
            width: The largest of the integers in `args` that may be others next time.
        """
        misaligned = [address & 15 != 0 for address in map(Tensor.data_ptr, changing)]
        key = (kernel, programs, *constants.values(), *map(_dtype, changing), *misaligned, width.bit_length() > 31)
        runner = self._runners.get(key)
        if runner is not None:
            runner(*args, *constants.values())
            return
        compiled = kernel[(programs,)](*args, **constants, **options)
        if compiled is not None and self._keeps:
            self._runners[key] = compiled[programs, 1, 1]
