"""Carving: the memory of declared variables. The only place where spans are given and moved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from ..backend import Format
from ..distributed.group import Group
from ..distributed.shards import Sharding, is_successor
from ..errors import AliasError, FlatvarsError
from ..memory.layout import Layout, plan_layout
from ..memory.spec import VarSpec
from ..memory.streams import VALUES, Streams, normal_tensors
from .binding import bind, describe_stray, is_bound
from .claims import Claims
from .following import spec_of, take_back, tell, why_unheld
from .guard import AliasGuard
from .variable import GradientAccess, Variable, byte_range, described, overlaps

OnMoved = Literal["follow", "error"]
"""What is done about memory that left the streams."""

MOVED_AT_ONCE = 1 << 16
"""Elements of a stretch: tensors that begin in one are copied before the memory of any is given back."""

FOLLOW: OnMoved = "follow"
ERROR: OnMoved = "error"


class Carving:
    """Variables in creation order over one set of streams.

    A declared variable has memory of its own until the streams are asked for: then all that were declared are carved at
    once, so that any number of declarations costs one carve.

    Attributes:
        generation: Grows whenever a plan made before must not be used again: spans moved, or a mask flipped.
        before_carve: Called while everything still lies where it was, with no argument.
        after_carve: Called after spans moved.
        claims: Which tensors are its variables'.
        value_format: Of values of its dtype; None where the dtype says it all.
        on_moved: What is done about memory that left the streams: "follow" or "error".
        sharding: Where values stay as shards of DTensors; None for those that lie in the streams.
        group: The ranks that share the state of optimizers, each a range of every region; None for one process.
        taken_in: Of such ranks: variables whose values came from elsewhere since all were known to have the same.
        gradients: Of the variables, wherever they lie; whoever is a registry has them.
    """

    gradients: GradientAccess

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_moved: OnMoved = FOLLOW
        self.group: Group | None = None
        self.sharding: Sharding | None = None
        self.taken_in: set[Variable] = set()
        self._told = False  # that something was followed
        self.variables: list[Variable] = []
        self.generation = 0
        self.lock = threading.RLock()
        self.before_carve: list[Callable[[], None]] = []
        self.after_carve: list[Callable[[], None]] = []
        self._layout: Layout = plan_layout([])
        self.value_format: Format | None = None
        self._streams = Streams(self._layout, device)
        self.claims = Claims(self)
        self._guard: AliasGuard | None = None
        self._guarded = (0, 0)  # generation and number of variables it was made for
        self._carved = 0  # variables that lie in the streams; those behind are declared only
        self._storages: dict[int, list[Variable]] = {}  # of those, by the address of the storage they brought along
        self._announcing: int | None = None  # the thread that tells of a carve
        self._retired: str | None = None
        self._side_by_side: set[int] = set()  # ids
        self._kept_whole: list[str] = []  # reasons

    @property
    def layout(self) -> Layout:
        """Of all variables; carves what was declared since it was looked at last."""
        self.settle()
        return self._layout

    @property
    def streams(self) -> Streams:
        """Over the layout of all variables; carves what was declared since."""
        self.settle()
        return self._streams

    def check_usable(self) -> None:
        """Raises FlatvarsError when another store has taken the variables over."""
        if self._retired is not None:
            raise FlatvarsError(self._retired)

    def retire(self, reason: str) -> None:
        """Gives all variables away; whatever still uses this object gets `reason` as an error."""
        with self.lock:
            self._retired = reason
            self.variables, self._carved = [], 0
            self._layout = plan_layout([])
            self._streams = Streams(self._layout, self.device, values=self.value_format)
            self.generation += 1

    @contextmanager
    def kept_whole(self, reason: str) -> Iterator[None]:
        """Inside, no variable may leave or give up its room: `check_leaving` raises the reason."""
        self._kept_whole.append(reason)
        try:
            yield
        finally:
            self._kept_whole.remove(reason)

    def check_leaving(self, what: str) -> None:
        """Raises FlatvarsError where a variable is about to leave, or to give up its room, and must not now.

        Args:
            what: Does it.
        """
        if self._kept_whole:
            raise FlatvarsError(f"{what} would lose something now: {self._kept_whole[-1]}")

    def store_values_as(self, format_: Format | None) -> None:
        """Values of its dtype are of a format from now on, or of none. For a registry without variables."""
        assert not self.variables
        self.value_format = format_
        self._streams = Streams(self._layout, self.device, values=format_)

    def keep_in_place(self, sharding: Sharding) -> None:
        """Values stay where they are from now on. For a registry without variables."""
        assert not self.variables
        self.sharding = sharding
        self._streams = Streams(self._layout, self.device, placed=True)

    def check_whole(self) -> None:
        """Raises FlatvarsError where this rank has a part of the values alone, for what reads or writes all."""
        if self.sharding is not None:
            raise FlatvarsError(
                "the values of this store are shards that lie where fully_shard or parallelize_module put them, and "
                "files, snapshots and copies of this rank would hold a part alone: save and load with "
                "torch.distributed.checkpoint on all ranks, dcp.save(dict(zip(('model', 'optim'), "
                "get_state_dict(model, optimizer))))"
            )

    def follow_shards(self) -> None:
        """Finds the values of variables whose shards were given other memory: FSDP2 does so before the first forward.

        Raises:
            AliasError: a shard of another shape, dtype or device, or another DTensor in the place of one; nothing has
                changed then.
        """
        if self.sharding is None:
            return
        for variable in self.variables:
            for place in variable.shard_places:
                if is_successor(place.tensor(), variable.whole):
                    raise AliasError(
                        f"variable {variable.name!r} is no longer used: its module holds another DTensor in the place "
                        "of the one that was adopted, as load_state_dict(assign=True) leaves it. Make a new store with "
                        "VarStore.from_module(model), and a new optimizer; or load without assign=True"
                    )
        moved = self.sharding.moved([(v.param, v.whole) for v in self.variables])
        wrong = [
            self.variables[k] for k, tensor in moved.items() if described(tensor) != described(self.variables[k].param)
        ]
        if wrong:
            raise AliasError(
                f"the shard of variable {wrong[0].name!r} is another now, {described(moved[wrong[0].index])} where it "
                f"was {described(wrong[0].param)}: the model was converted, moved or sharded anew. Make a new store of "
                "it with VarStore.from_module(model), and a new optimizer"
            )
        for k, tensor in moved.items():
            self.variables[k].param.data = tensor
        if moved:
            self._place(self._plan([v.spec for v in self.variables]))
            self._notify()

    # Carving --------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Carves the variables that were declared since the last time; older ones that strayed stay where they are."""
        if self._carved == len(self.variables) and self._retired is None:
            return
        if self._announcing is not None and self._announcing == threading.get_ident():
            return
        with self.lock, normal_tensors():
            self.check_usable()
            old = self._carved
            if old == len(self.variables):  # another thread did it meanwhile
                return
            aligned = [v for v in self.variables[:old] if self.is_bound(v, v.param)]
            device = self._renew_declared(old)
            specs = [v.spec for v in self.variables]
            self._carve(specs, device, {i: i for i in range(old)}, aligned)
            self._move_all_in(self.variables[old : len(specs)])
            self._carved = len(specs)
            self._storages = {}
            self._notify()

    def _renew_declared(self, old: int) -> torch.device:
        """Follows what became of declared tensors before their first carve: `module.double()`, `.to()`, `.data =`.

        Returns:
            The device for the carve: the one that all went to, where nothing is carved yet.

        Raises:
            AliasError: a tensor that no store can hold; nothing has changed then.
        """
        waiting = [v for v in self.variables[old:] if v.declared is not None]
        changed = [v for v in waiting if not v.param.is_meta and described(v.param) != v.declared]
        for variable in changed:
            if reason := why_unheld(variable.param):
                raise AliasError(describe_stray(variable, reason))
        for variable in changed:
            variable.spec, variable.declared = spec_of(variable, variable.param), described(variable.param)
        moved = {v.param.device for v in changed}
        return moved.pop() if not old and len(changed) == len(self.variables) and len(moved) == 1 else self.device

    def recarve(self, change: Callable[[Variable], VarSpec], device: torch.device | None = None) -> None:
        """Lays the same variables out anew, with other dtypes, room or device; every handle follows.

        Args:
            change: From a variable to its new spec; asked when what had left the store is back in it.
        """
        with self.lock, normal_tensors():
            self.settle()
            self.guard.check_memory()
            self.guard.renew_buffers()
            self.lay_out([change(v) for v in self.variables], self.device if device is None else device)

    def lay_out(self, specs: Sequence[VarSpec], device: torch.device, fresh: Sequence[Variable] = ()) -> None:
        """The same by specs of all variables; what has left the store is left behind.

        Args:
            fresh: Variables that begin anew, with zeros in every stream.
        """
        with self.lock, normal_tensors():
            begin = {v.index for v in fresh}
            for variable in fresh:
                variable.state_epoch += 1
            self._carve(specs, device, {i: i for i in range(len(specs)) if i not in begin}, self.variables)
            self._notify()

    def give_away(self, leaving: Sequence[Variable]) -> None:
        """Takes variables out: each Parameter is the same object, with values in memory of its own; the rest closes up.

        What was made for them (gradients, state) must be gone or left behind by then.
        """
        with self.lock, normal_tensors():
            self.settle()
            self._announce()  # while an index still says where a variable lies
            gone = {v.index for v in leaving}
            source = dict(enumerate(i for i in range(len(self.variables)) if i not in gone))
            for variable in leaving:
                bind(variable, variable.param.detach().clone(memory_format=torch.preserve_format))
                variable.index, variable._span = -1, None
                variable.state_epoch += 1
            self._move_up([self.variables[old] for old in source.values()], source)

    def reorder(self, variables: Sequence[Variable]) -> None:
        """Puts all variables into another order; nothing else of them changes."""
        with self.lock, normal_tensors():
            self.settle()
            if list(variables) != self.variables:
                self._announce()
                self._move_up(variables, {new: v.index for new, v in enumerate(variables)})

    def _move_up(self, variables: Sequence[Variable], source: Mapping[int, int]) -> None:
        """Makes these all variables; who must know was told.

        Args:
            source: From an index to the one that the variable there had.
        """
        self.variables[:] = variables
        for index, variable in enumerate(self.variables):
            variable.index = index
        self.claims.add(self.variables)
        self._carved = len(self.variables)
        self._carve([v.spec for v in self.variables], self.device, source, self.variables, announced=True)
        self._notify()

    def lay_side_by_side(self, variables: Iterable[Variable]) -> None:
        """Makes these, and all of earlier calls, lie first in their regions, shape by shape; carves if they do not yet.

        Names, ids, values, gradients and state stay, and variables that are declared later find their place.
        """
        with self.lock:
            wanted = self._side_by_side.union(v.id for v in variables)
            if wanted == self._side_by_side:
                return
            if self._carved:
                self.settle()
            kept, self._side_by_side = self._side_by_side, wanted
            if self._carved and self._plan([v.spec for v in self.variables]) != self._layout:
                try:
                    self.recarve(_as_it_is)
                except BaseException:
                    self._side_by_side = kept
                    raise

    def _plan(self, specs: Sequence[VarSpec]) -> Layout:
        """The layout of specs of the first variables."""
        known = self.variables[: len(specs)] if self._side_by_side else ()
        beside = {i for i, v in enumerate(known) if v.id in self._side_by_side}
        return plan_layout(specs, side_by_side=beside, ranks=None if self.group is None else self.group.ranks)

    def _carve(
        self,
        specs: Sequence[VarSpec],
        device: torch.device,
        source: Mapping[int, int],
        bound: Sequence[Variable],
        announced: bool = False,
    ) -> None:
        """Makes streams for the specs, copies what variables had into them, and binds `bound`.

        Args:
            source: Index of each variable that had something, and the index it had.
            announced: Whether it was told already that spans move.
        """
        layout = self._plan(specs)
        stays = layout == self._layout and device == self.device and all(to == origin for to, origin in source.items())
        if self.group is not None and self._streams.divided and not stays:
            raise FlatvarsError(
                "optimizer state of this store is shared out over ranks, and laying the variables out anew would move "
                "it from rank to rank: add, convert, move and unfreeze variables before the first step, or save with "
                "torch.distributed.checkpoint and load into a new store and optimizer"
            )
        if self.sharding is not None:
            _check_in_place(self.variables, specs, device)
        if not announced:
            self._announce()
        for variable, spec in zip(self.variables, specs, strict=False):
            # Without room for state, what an optimizer knew of the variable is gone: its step count is another's.
            variable.state_epoch += variable.spec.has_room and not spec.has_room
        if source and self.device.type == "cuda":
            # Kernels of any stream may still read what is about to be freed, and `record_stream` on a piece of the
            # buffer does not tell the allocator, which knows the buffer alone.
            torch.cuda.synchronize(self.device)
        streams = self._streams.recarve(layout, device, source)
        self._streams, self.device = streams, device
        self._place(streams.layout)
        for variable in bound:
            bind(variable, self.piece(variable))

    def _announce(self) -> None:
        """Tells that spans are about to move. Who is told finds them where they were: nothing is carved meanwhile."""
        self._announcing = threading.get_ident()
        try:
            for call in self.before_carve:
                call()
        finally:
            self._announcing = None

    def _place(self, layout: Layout) -> None:
        """Writes down where the variables lie; nothing moves."""
        self._layout = self._streams.layout = layout
        for variable, span in zip(self.variables, self._layout.spans, strict=False):
            variable.spec, variable._span = span.spec, span
        if self.sharding is not None:
            self._streams.put((v._span, v.param.detach()) for v in self.variables if v._span is not None)

    def _move_all_in(self, variables: Sequence[Variable]) -> None:
        """Moves each into its span: those of a stretch with one copy, while caches hold what they consist of."""
        for stretch, some in groupby(variables, self._stretch):
            if stretch is None:
                for variable in some:
                    self.move_in(variable, variable.param)
            else:
                self._move_some_in(stretch[0], list(some))

    def _stretch(self, variable: Variable) -> tuple[torch.dtype, int] | None:
        """Of which region, and which one there; None for a variable that is not simply copied."""
        param, spec, span = variable.param, variable.spec, variable._span
        assert span is not None
        plain = self.sharding is None and not param.is_meta and param.shape == spec.shape
        if not plain or (self.value_format is not None and self.is_encoded(variable)):
            return None
        return spec.dtype, span.offset // MOVED_AT_ONCE

    def _move_some_in(self, region: torch.dtype, variables: Sequence[Variable]) -> None:
        views = self._streams.get(VALUES, region).own_pieces(v.span for v in variables)
        torch._foreach_copy_(views, [v.param for v in variables])
        for variable, view in zip(variables, views, strict=True):
            bind(variable, view)

    def move_in(self, variable: Variable, param: Tensor) -> None:
        """Copies a tensor's values into the variable's span, and makes it the variable's; its memory is released."""
        view = self.piece(variable)
        if (
            self.sharding is None and not param.is_meta and param.shape == view.shape
        ):  # from meta there are no values, maybe not even a shape
            if self.is_encoded(variable):
                self._streams.get(VALUES, variable.dtype).write(variable.span, param.detach())
            else:
                view.copy_(param.detach())
        variable.param = param
        self.claims.add([variable])
        bind(variable, view)

    def _notify(self) -> None:
        self.generation += 1
        for call in self.after_carve:
            call()

    def share_memory(self) -> None:
        """See `VarStore.share_memory_`."""
        with self.lock, normal_tensors():
            self.settle()
            self.guard.check_memory()
            self.guard.renew_buffers()
            self._announce()
            self._streams.share()
            for variable in self.variables:
                bind(variable, self.piece(variable))
            self._notify()

    # Looking ----------------------------------------------------------------------------------------------------------

    def view(self, stream: str, variable: Variable) -> Tensor:
        """The variable's shape over an existing stream; a tensor with a version counter of its own.

        Views share the counter of their base: an in-place write to one variable would then break the backward pass of
        every other.
        """
        span = variable.span  # carves, where that is still to do
        return self._streams.get(stream, variable.dtype).view(span).data

    def is_encoded(self, variable: Variable) -> bool:
        """Whether a variable's values are of a format, so that its Parameter does not show all of them."""
        span = variable.span  # carves, where that is still to do
        return self._streams.get(VALUES, variable.dtype).is_encoded(span)

    def number_dtype(self, variable: Variable) -> torch.dtype:
        """Of the numbers that a variable stands for."""
        span = variable.span
        return self._streams.get(VALUES, variable.dtype).dtype_of(span)

    def read(self, variable: Variable) -> Tensor:
        """The numbers of a variable, [shape]: in place, or decoded."""
        if not self.is_encoded(variable):
            return variable.value
        return self._streams.get(VALUES, variable.dtype).read(variable.span)

    @torch.no_grad()
    def write(self, variable: Variable, numbers: Tensor) -> None:
        """Replaces the numbers of a variable by a tensor's, [shape]."""
        if variable._span is None or not self.is_encoded(variable):
            (variable.param if variable.whole is variable.param else variable.value).copy_(numbers)
            return
        self._streams.get(VALUES, variable.dtype).write(variable.span, numbers)
        torch.autograd.graph.increment_version([variable.param])

    def piece(self, variable: Variable) -> Tensor:
        """The variable's values as its Parameter holds them: in the buffer, with a storage of its own."""
        assert variable._span is not None
        return self._streams.get(VALUES, variable.dtype).piece(variable._span)

    def hold(self, variable: Variable, param: Tensor) -> None:
        """Makes a tensor that stands where the variable's did its own; it is bound by the next carve."""
        variable.param = param
        variable.places = [place.renewed() for place in variable.places]
        self.claims.add([variable])

    def take_back(self, moved: Mapping[Variable, Tensor], buffers: Mapping[Variable, Tensor]) -> None:
        """See `following.take_back`; warns when it is done for the first time.

        Raises:
            AliasError: `on_moved` says so, or something would be lost.
        """
        if self.on_moved == ERROR:
            raise AliasError(describe_stray(next(iter(moved)), "on_moved='error' asks to be told"))
        with self.lock, normal_tensors():
            take_back(self, moved, buffers)
            self.note_taken_in(moved)
        if not self._told:
            self._told = True
            tell(list(moved))

    def note_taken_in(self, variables: Iterable[Variable]) -> None:
        """Notes variables whose values came from elsewhere: on other ranks they may be others."""
        if self.group is not None:
            self.taken_in.update(v for v in variables if not v.is_buffer)

    def is_bound(self, variable: Variable, param: Tensor) -> bool:
        """Whether a tensor is the variable's span."""
        return is_bound(param, self.view(VALUES, variable))

    def await_carve(self, variable: Variable) -> None:
        """Notes of a variable that is declared only what its tensor is, and where it lies."""
        variable.declared = described(variable.param)
        if not variable.param.is_meta and variable.spec.numel:
            self._storages.setdefault(variable.param.untyped_storage().data_ptr(), []).append(variable)

    def sharing(self, tensor: Tensor) -> Variable | None:
        """A variable whose memory a tensor shares, in part at least."""
        if tensor.is_meta or not tensor.numel():
            return None
        first, stop = byte_range(tensor)
        nearby = self._storages.get(tensor.untyped_storage().data_ptr(), [])
        if any(begin < stop and first < end for begin, end in self.spread()):
            nearby = [*nearby, *self.variables[: self._carved]]
        return next((v for v in nearby if overlaps(v.param, tensor)), None)

    def spread(self) -> list[tuple[int, int]]:
        """Addresses of the first byte and behind the last byte of the values of each region."""
        if self.sharding is not None:
            return [byte_range(v.param) for v in self.variables if v.spec.numel]
        buffers = [self._streams.values(region.dtype) for region in self._layout.regions]
        return [(b.data_ptr(), b.data_ptr() + b.nbytes) for b in buffers if len(b)]

    def addresses(self, variables: Sequence[Variable]) -> list[int]:
        """Where the values of carved variables begin in memory, as torch tells it: 0 for those without elements."""
        if self.sharding is not None:
            return [self.view(VALUES, v).data_ptr() if v.spec.numel else v.param.data_ptr() for v in variables]
        begins = {region.dtype: self._streams.values(region.dtype).data_ptr() for region in self._layout.regions}
        return [begins[v.dtype] + v.span.offset * v.dtype.itemsize if v.spec.numel else 0 for v in variables]

    @property
    def guard(self) -> AliasGuard:
        """Over all variables that are carved."""
        made_for = self.generation, self._carved
        if self._guard is None or self._guarded != made_for:
            self._guard, self._guarded = AliasGuard(self, self.variables[: self._carved]), made_for
        return self._guard

    def check_aliases(self) -> None:
        """Raises AliasError where values are not what modules use; see `AliasGuard.check_values`."""
        self.guard.check_values()


def _check_in_place(variables: Sequence[Variable], specs: Sequence[VarSpec], device: torch.device) -> None:
    """Raises FlatvarsError where a carve would convert or move values that are not the store's to move."""
    for variable, spec in zip(variables, specs, strict=False):
        if spec.dtype != variable.param.dtype or device != variable.param.device:
            raise FlatvarsError(
                f"variable {variable.name!r} is a shard of {variable.param.dtype} on {variable.param.device} that lies "
                f"where fully_shard or parallelize_module put it; to make it {spec.dtype} on {device}, convert the "
                "model first, and make a store of what comes out"
            )


def _as_it_is(variable: Variable) -> VarSpec:
    return variable.spec
