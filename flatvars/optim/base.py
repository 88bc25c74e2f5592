"""Optimizer: a real torch.optim.Optimizer whose step is at most two launches over a store.

`param_groups` is the single source of truth: schedulers and users write there, and what changed is copied to the device
before the next launch. State lives in the store's streams; `state` and `state_dict` show it per parameter, in
torch.optim's format.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..backend import Rule
from ..errors import FlatvarsError, ForeignParameterError
from ..gradients.attached import gradients_of
from ..gradients.cycle import Collected
from ..gradients.freezing import follow_flags
from ..gradients.plans import PlanSet
from ..memory.streams import Cover, Stream, hull, same_dtype
from ..variables.registry import HasRegistry, Registry, variable_of
from ..variables.selectors import Selector, is_selector
from ..variables.variable import Variable
from .checks import check_complete
from .conveniences import Conveniences
from .copies import get_state, set_state
from .groups import find_registry, group_of, resolve_params, selectors_of
from .scaling import read_scaling
from .state import OptimizerState, load_state_dict, state_dict

# A variable and how often its state was given up: a count belongs to the state it counted.
CountKey = tuple[int, int]


def count_key(variable: Variable) -> CountKey:
    return variable.id, variable.state_epoch


def is_trained(variable: Variable) -> bool:
    return variable.spec.trainable and not variable.frozen


def always(dtype: torch.dtype, region: torch.dtype) -> torch.dtype:
    """For streams that do not follow the dtype of their region."""
    return dtype


def _release(reference: weakref.ref[Registry], key: str) -> None:
    """Frees the state of an optimizer that is gone. The registry is not kept for that: its hooks may lead back here."""
    registry = reference()
    if registry is not None:
        registry.release_optimizer(key)


class Optimizer(Conveniences):
    """Base of all optimizers of flatvars.

    Args:
        params: A VarStore, parameters that lie in one store, or param groups; `"params"` of a group may be a name
            pattern or a list of them, and a variable goes to the first group that matches it.
        defaults: Hyper-parameters of groups that do not set them.
        store: Needed only where `params` are patterns.
        max_norm: Clip the norm over all gradients of this optimizer to it, inside the step: gradients are not
            rewritten.
        skip_nonfinite: Change nothing, not even step counts, when that norm is NaN or infinite; `skipped` counts it.
        state_dtype: Of the state streams; the variables' own if not given, as in torch.optim.

    Raises:
        ForeignParameterError: a parameter of no store, or of two.
    """

    # A GradScaler then leaves unscaling and skipping to the step; see `scaling.py`.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if max_norm is not None and not max_norm >= 0.0:
            raise ValueError(f"max_norm={max_norm} is not a norm; give a number >= 0, or None not to clip")
        if not isinstance(params, (HasRegistry, Tensor, dict, list, tuple)) and not is_selector(params):
            params = list(params)
        self._attach(find_registry(params, store))
        self.max_norm = max_norm
        self.skip_nonfinite = skip_nonfinite
        self.state_dtype = state_dtype
        self._skipped = torch.zeros((), dtype=torch.int32, device=self._registry.device)
        self._selectors: list[Selector] = []  # of each param group
        super().__init__(resolve_params(params, self._registry, self._taken), defaults)
        # Variables that are declared later join by themselves: by their group number, or by what selects a group.
        self._by_number = isinstance(params, HasRegistry)
        self._selectors = selectors_of(params)
        self._seen = len(self._registry.variables)
        self.state = OptimizerState(self)  # type: ignore[assignment]

    _params_generation = -1  # of the registry, when the Parameters of `param_groups` were its variables

    def _attach(self, registry: Registry) -> None:
        """All that belongs to this object and its store alone: a copy of the optimizer starts from here."""
        self._registry = registry
        self._variables: list[list[Variable]] = []  # of each param group
        self._plans: PlanSet | None = None
        self._steps: list[Tensor] = []  # taken by each variable, of each part of the plans
        self._frozen: list[Tensor] = []
        self._counts: dict[CountKey, int] = {}  # steps taken, while there are no plans
        self._norm: Tensor | None = None
        self._states: dict[tuple[torch.dtype, str], list[Stream]] = {}
        self._states_generation = -1
        self._key = registry.register_optimizer()
        self.state = OptimizerState(self)  # type: ignore[assignment]
        weakref.finalize(self, _release, weakref.ref(registry), self._key)

    def rule(self) -> Rule:
        """The mathematics of the step, given the param groups as they are."""
        raise NotImplementedError

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states that a param group has: torch keeps no momentum buffer for a group without momentum."""
        return self.rule().states

    # Groups -------------------------------------------------------------------------------------------------------

    def _taken(self) -> set[int]:
        return {variable.id for group in self._variables for variable in group}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's; `"params"` may be name patterns of the store."""
        resolved = resolve_params([param_group], self._registry, self._taken)[0]
        super().add_param_group(resolved)
        variables = []
        for param in self.param_groups[-1]["params"]:
            found = variable_of(param)
            if found is None or found[0] is not self._registry:
                self.param_groups.pop()
                raise ForeignParameterError(
                    f"a parameter of shape {tuple(param.shape)} lies in "
                    f"{'no store' if found is None else 'another store'}; adopt its module with "
                    "VarStore.from_module(module) or store.add_module(module) first, and use one optimizer per store"
                )
            variables.append(found[1])
        self._variables.append(variables)
        self._selectors.append(param_group["params"] if is_selector(param_group["params"]) else None)
        self._retire_plans()

    def _join(self) -> None:
        """Takes up the variables that were declared since the last time; groups they number are made of defaults."""
        if self._params_generation != self._registry.generation:
            self._renew_params()
        variables = self._registry.variables
        for variable in variables[self._seen :]:
            number = variable.group if self._by_number else group_of(variable, self._selectors)
            if number is None or not isinstance(variable.param, nn.Parameter) or variable.id in self._taken():
                continue
            while len(self.param_groups) <= number:
                self.add_param_group({"params": []})
            self.param_groups[number]["params"].append(variable.param)
            self._variables[number].append(variable)
            self._states_generation = -1
        self._seen = len(variables)

    def _renew_params(self) -> None:
        """A Parameter that was assigned to a module took the place of the old one in the store."""
        for group, variables in zip(self.param_groups, self._variables, strict=True):
            group["params"] = [v.param for v in variables]
        self._params_generation = self._registry.generation

    def take_up(self) -> list[Variable]:
        self._join()
        return self._members()

    # Plans --------------------------------------------------------------------------------------------------------

    def _current_plans(self) -> PlanSet:
        """The plans of this optimizer's trainable variables; made anew when spans moved or masks flipped."""
        self._registry.settle()
        if self._seen != len(self._registry.variables):
            self._join()
        plans = self._plans
        if plans is not None and plans.generation == self._registry.generation:
            if not any(param.requires_grad for param in self._frozen):
                return plans
            follow_flags(self._registry)
        elif any(v.requires_grad and not is_trained(v) for v in self._members()):
            follow_flags(self._registry)
        self._retire_plans()
        return self._make_plans()

    def _members(self) -> list[Variable]:
        return [v for group in self._variables for v in group]

    def _make_plans(self) -> PlanSet:
        self._renew_params()
        members = [(v, g) for g, group in enumerate(self._variables) for v in group]
        trainable = sorted((m for m in members if is_trained(m[0])), key=lambda m: m[0].index)
        plans = PlanSet(self._registry, [v for v, _ in trainable], [g for _, g in trainable])
        self._frozen = [v.param for v, _ in members if not is_trained(v)]
        device = self._registry.device
        counts = [[self._counts.get(count_key(plans.variables[k]), 0) for k in part.order] for part in plans.parts]
        self._steps = [torch.tensor(taken, dtype=torch.float32, device=device) for taken in counts]
        self._plans = plans
        self._plan_keys = [count_key(variable) for variable in plans.variables]
        self._skipped = self._skipped.to(self._registry.device)
        return plans

    def _retire_plans(self) -> None:
        """Reads the step counts back (this synchronizes) and forgets the plans."""
        self._counts = self.step_counts()
        self._plans = None
        self._states_generation = -1  # members may have joined, which the streams must cover

    def step_counts(self) -> dict[CountKey, int]:
        """Steps taken by each variable, by `count_key`. Synchronizes."""
        counts = dict(self._counts)
        if self._plans is not None:
            for part, steps in zip(self._plans.parts, self._steps, strict=True):
                counts.update({self._plan_keys[k]: int(n) for k, n in zip(part.order, steps.tolist(), strict=True)})
        return counts

    def state_streams(self, region: torch.dtype) -> list[Stream]:
        """The state streams of a region, in the rule's order, over one range; made of zeros when first asked for."""
        if self._states_generation != self._registry.generation:
            self._states, self._states_generation = {}, self._registry.generation
        rule = self.rule()
        key = (region, rule.name)
        if key not in self._states:
            cover = self._cover(region)
            self._states[key] = [self._stream(name, region, cover) for name in rule.states]
        return self._states[key]

    def _cover(self, region: torch.dtype) -> Cover:
        """From the first to the last variable that has room for state, and all that is covered already."""
        streams = self._registry.streams
        found = [streams.find(name, region) for name in streams.names() if name.startswith(f"{self._key}.")]
        ranges = [held.cover for held in found if held is not None]
        spans = [v.span for v in self._members() if v.dtype == region and v.spec.trainable]
        if spans:
            ranges.append(hull(spans))
        if not ranges:
            return 0, 0
        return min(start for start, _ in ranges), max(stop for _, stop in ranges)

    def _stream(self, name: str, region: torch.dtype, cover: Cover) -> Stream:
        fixed = self.state_dtype
        dtype_of = same_dtype if fixed is None else partial(always, fixed)
        return self._registry.streams.get(f"{self._key}.{name}", region, dtype_of, cover)

    # Stepping -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, strict: bool = False) -> Any:
        """One step of every variable that has a gradient: a norm launch if clipping or skipping needs it, and a step.

        Args:
            closure: Computes the loss and its gradients; its value is returned.
            strict: Every trained variable must have a gradient.

        Raises:
            AliasError: a parameter no longer lies in the store, or its module holds another one.
            GradientError: a gradient of a wrong shape or kind, or, if `strict`, none. Nothing is stepped then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plans = self._current_plans()
        plans.guard.check()
        gradients = gradients_of(self._registry)
        collected = gradients.collect(plans)
        touched = collected.touched
        if strict and not all(hits := gradients.hits(plans, collected)):
            names = [v.name for v, hit in zip(plans.variables, hits, strict=True) if not hit and v.requires_grad]
            check_complete(names)
        self._launch(plans, collected)
        gradients.spend(plans, collected)
        # Kernels write behind autograd's back: without this, a backward pass through values that a forward pass saved
        # before this step would silently use the new ones.
        stepped = plans.params if all(touched) else [p for p, hit in zip(plans.params, touched, strict=True) if hit]
        torch.autograd.graph.increment_version(stepped)
        return loss

    def _launch(self, plans: PlanSet, collected: Collected) -> None:
        gradients = gradients_of(self._registry)
        scaling = read_scaling(self, self._registry.device, collected.gathered)
        norm = plans.norm
        if self.max_norm is not None or self.skip_nonfinite or collected.unseen:
            norm = gradients.norm_for(plans, collected, scaling["grad_scale"])
        if self.max_norm is not None or self.skip_nonfinite:
            self._norm = norm
        rule = self.rule()
        for part, source, steps in zip(plans.parts, collected.sources, self._steps, strict=True):
            states = self.state_streams(part.region)
            part.plan.step_(
                source,
                rule,
                plans.values(part),
                [held.buffer for held in states],
                self.param_groups,
                steps=steps,
                base=states[0].base if states else 0,
                norm=norm,
                max_norm=self.max_norm,
                skip=self.skip_nonfinite,
                skipped=self._skipped,
                **scaling,
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's, and drops what `store.accumulate` gathered for the variables of this optimizer."""
        self._join()
        gradients_of(self._registry).zero(set_to_none, self._members(), self._plans)

    @property
    def grad_norm(self) -> Tensor:
        """The gradient norm that the last step clipped or checked by, before clipping: a device scalar, no sync."""
        if self._norm is None:
            raise FlatvarsError(
                "no step of this optimizer has taken a norm; pass max_norm= or skip_nonfinite=True, or call "
                "store.grad_norm()"
            )
        return self._norm

    @property
    def skipped(self) -> Tensor:
        """How many steps `skip_nonfinite` or a GradScaler skipped: a device scalar, no sync."""
        return self._skipped

    def upload_hyperparameters(self) -> None:
        """Copies changed `param_groups` to the device now. Call it before replaying a captured CUDA graph of `step`."""
        for part in self._current_plans().parts:
            part.plan.upload_hyper(self.rule(), self.param_groups, self.max_norm)

    # State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's format: it loads there, and theirs loads here. Synchronizes to read step counts."""
        self._join()
        return state_dict(self)

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copies a state dict of this class or of torch.optim's namesake into the streams, in the streams' dtype.

        Raises:
            ValueError: other numbers of groups or parameters; nothing has changed then.
        """
        self._join()
        load_state_dict(self, state_dict)

    # deepcopy and pickle take the store along, as torch.optim's take their parameters: copy or save both in one call,
    # copy.deepcopy((model, store, optimizer)), and the copies belong together.

    def __getstate__(self) -> dict[str, Any]:
        return get_state(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_state(self, state)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"a shallow copy of {type(self).__name__} would share its state streams, and both would step them; use "
            "copy.deepcopy((model, store, optimizer)), or make a second optimizer and load state_dict() into it"
        )
