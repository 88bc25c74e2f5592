"""Optimizer: a real torch.optim.Optimizer whose step is at most two launches over a store.

`param_groups` is the single source of truth for who is stepped and with which numbers: schedulers and users write
there, and what changed is followed before the next launch (`membership.py`). State lives in the store's streams
(`states.py`), counts in rows (`rows.py`); `state` and `state_dict` show both per parameter, in torch.optim's format
(`entries.py`, `state_dict.py`), and `capture` and `restore` hand them over as a whole (`record.py`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..backend import AVERAGE, Rule
from ..gradients.attached import make_registry
from ..gradients.plans import PlanSet
from ..variables.registry import HasRegistry, Registry
from ..variables.selectors import is_selector
from .averaging import check_average
from .changes import Change, GroupChanges
from .checks import check_options
from .copies import get_state, set_state
from .divided import DividedStep
from .entries import Entries
from .formats import StateFormat, check_format, check_formats
from .groups import as_groups, check_group_keys, find_registry, kept, resolved
from .homes import given_in
from .membership import Membership, params_of
from .record import FetchState, OptimizerRecord
from .recording import capture_record, record_problems, restore_record
from .showing import show
from .state_dict import load_state_dict, state_dict
from .states import States
from .stats import Observations
from .stepping import Stepping
from .weak import CarveHook, FormOfStates, NamesOf, unhook


class Optimizer(Stepping):
    """Base of all optimizers of flatvars.

    Args:
        params: A VarStore, parameters, or param groups; `"params"` of a group may be a name pattern or a list of them,
            and a variable goes to the first group that matches it. For parameters that lie in no store one is made
            (`optimizer.store`), with the names of `named_parameters()` if those are given, else with numbers.
        defaults: Hyper-parameters of groups that do not set them.
        store: Needed only where `params` are patterns.
        max_norm: Clip the norm over all gradients of this optimizer to it, inside the step: gradients are not
            rewritten.
        skip_nonfinite: Change nothing, not even step counts, when that norm is NaN or infinite; `skipped` counts it.
        state_dtype: Of the state streams; the variables' own if not given, as in torch.optim. In bfloat16, averages of
            squares are rounded at random (`stochastic_rounding`).
        state_format: "root8" stores averages in 8 bits, with a float32 scale for each 128 elements: all that may be, or
            those of a mapping by name; "log4" stores averages of squares in 4 bits, rounded at random. Other states are
            as `state_dtype` says.
        stats: Every step tells norms and counts of its variables, which `stats()` gives; or every k-th, of a number k.

    Raises:
        ForeignParameterError: parameters of two stores, or of none beside those of a store that was adopted by hand.
        SpecError: a parameter that no store can hold: sparse, complex, on the meta device or on another than the rest.
        ValueError: a number out of range, or a key of a group that means nothing there.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        check_options(max_norm, state_dtype, stats)
        check_format(state_format)
        self.check_entries(defaults, self.number_names(defaults))
        groups = as_groups(params)
        registry = find_registry(params, groups, store)
        self.max_norm = max_norm
        self.skip_nonfinite = skip_nonfinite
        self.state_dtype = state_dtype
        self.state_format = state_format
        self.stats_every = int(stats)
        # Without any parameter there is no store yet: the first one says which.
        self._attach(make_registry(torch.device("cpu"), "gather") if registry is None else registry)
        self._homeless = registry is None
        self._following = True
        super().__init__(groups, defaults)
        # Variables that are declared later join by themselves: by their group number, or by what selects a group.
        self.membership.by_number = isinstance(params, HasRegistry)
        self._following = False
        self._follow()
        if self.param_groups:
            check_formats(state_format, self.rules(), self.known_states, type(self).__name__)
        self.arrange()

    def _attach(self, registry: Registry) -> None:
        """All that belongs to this object and its store alone: a copy of the optimizer starts from here."""
        self._homeless = False
        self.registry = registry
        self.states = States(registry, FormOfStates(weakref.ref(self)))
        if self.several:
            self.states.names_of = NamesOf(weakref.ref(self))
            self.states.common = frozenset({AVERAGE})
        self.param_groups: list[dict[str, Any]] = []
        self.membership = Membership(registry)
        self.entries = Entries(self)
        self._enrolled = -1  # version of the membership whose variables have rows
        self._plans: PlanSet | None = None
        self._divided: DividedStep | None = None
        self._planned = -1  # version of the membership that the plans are for
        self._planned_for: Any = None  # what of the param groups they are for
        self._frozen: list[Tensor] = []
        self._last_rules: dict[int, Rule] = {}
        self._kinds: tuple[Rule, ...] = ()  # of the param groups, when plans were made
        self._counted: Any = (-1,)  # what `_count` has looked at
        self._changes, self._change = GroupChanges(), Change.ANY
        self._counting: dict[int, bool] = {}  # whether steps of a variable counted, by id
        self._norm: Tensor | None = None
        self.observations = Observations()
        self._calls = 0  # steps that were asked for
        hook = CarveHook(weakref.ref(self))
        registry.after_carve.append(hook)
        weakref.finalize(self, unhook, weakref.ref(registry), hook)

    # Groups -----------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's; `"params"` may be name patterns of the store."""
        group = kept(param_group)
        if self._homeless:
            self._move_to(find_registry(None, [group], None))
        selector = group["params"] if is_selector(group["params"]) else None
        taken = {id(param) for other in self.param_groups for param in params_of(other)}
        group = resolved(group, self.registry, taken)
        group = {**self.average_numbers, **group}
        defaults = self.defaults_of(group)
        check_group_keys(group, {**defaults, **self.average_numbers}, type(self).__name__)
        self.check_entries({**defaults, **group}, self.number_names(defaults))
        if self.average is not None:
            check_average(self.average, group)
        self._take_in(given_in(group), "the group was not added")
        super().add_param_group(group)
        if selector is not None:
            self.membership.select(self.param_groups[-1], selector)
        self._follow()

    def _move_to(self, registry: Registry | None) -> None:
        """To the store of the first parameter."""
        if registry is not None:
            groups = self.param_groups
            self._attach(registry)
            self.param_groups = groups

    @property
    def store(self) -> Any:
        """The `VarStore` of the parameters, whoever made it.

        One that was made for this optimizer knows the parameters alone, and goes with the last optimizer over it.
        `optimizer.store.watch(module)` gives it what an adopted one has: the module's names, its other parameters and
        its buffers, so that files are whole, and an eye on what is replaced there.
        """
        return self.registry.handle()

    # State ------------------------------------------------------------------------------------------------------------

    @property  # type: ignore[override]
    def state(self) -> Entries:
        """Parameter to a dict of its step count and states, as torch.optim's: what is written there is stepped on."""
        return self.entries

    @state.setter
    def state(self, content: Mapping[Any, Any]) -> None:
        self.entries.assign(content)

    def carved(self) -> None:
        """The store carved anew."""
        if self._plans is not None:
            self._plans.lasting.clear()  # it would keep the old streams until the next step
        self.entries.own_dropped()
        self.entries.forget(self.states.lost(), keep=True)
        self.states.follow_carve()
        self.membership.renew(self.param_groups)
        self.entries.refresh()

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's format: it loads there, and theirs loads here. Synchronizes to read step counts."""
        self.refuse_swapped("a state dict would take them for each other")
        return state_dict(self)

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copies a state dict of this class or of torch.optim's namesake into the streams, in the streams' dtype.

        Raises:
            ValueError: other numbers of groups or parameters, or another class's; nothing has changed then.
        """
        self.refuse_swapped("loaded states would take their place")
        load_state_dict(self, state_dict)

    def capture(self) -> OptimizerRecord:
        """All that the optimizer holds, in place: nothing is copied, and nothing waits for the device."""
        self.refuse_swapped("what is saved or copied would take them for each other; store.save(path) saves them alone")
        return capture_record(self)

    @torch.no_grad()
    def restore(self, record: OptimizerRecord, fetch: FetchState | None = None) -> None:
        """Puts a record in the place of what the optimizer holds.

        Args:
            record: Of this optimizer at another time, or of one that was saved.
            fetch: Writes the states, one by one, where the record has no streams.

        Raises:
            MismatchError: the record is of another class or of other groups, or has numbers that are none; nothing has
                changed then.
        """
        self.refuse_swapped("restored states would take their place")
        restore_record(self, record, fetch)

    def problems(self, record: OptimizerRecord) -> list[str]:
        """What keeps `restore` from taking a record, in words; nothing changes."""
        self.follow()
        return record_problems(self, record)

    # deepcopy and pickle take the store along, as torch.optim's take their parameters: copy or save both in one call,
    # copy.deepcopy((model, store, optimizer)), and the copies belong together.

    def __getstate__(self) -> dict[str, Any]:
        return get_state(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_state(self, state)

    def __repr__(self) -> str:
        options = {name: getattr(self, name) for name in ("max_norm", "skip_nonfinite", "state_dtype", "state_format")}
        options["stats"] = self.stats_every or None
        return show(self, self.registry, options)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"a shallow copy of {type(self).__name__} would share its state streams, and both would step them; use "
            "copy.deepcopy((model, store, optimizer)), or make a second optimizer and load state_dict() into it"
        )
